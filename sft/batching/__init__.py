"""From rows to micro-batches: order, packing, layout, shared prefixes, batch plan, and the memory they take.

Pure: a function of rows, sizes, seed and epoch. Only `layout`, `stream` and `transfer` make tensors.

Public names:
    order: `RankBatchSampler`, `PackedBatchSampler`, `filler`: which process sees which rows.
    packing: `plan_packs`, `PackPlan`: which rows share a pack.
    layout: `FlatCollator`, `PaddedCollator`, `SupervisedRows`, `model_inputs`: rows to tensors.
    prefixes: `find_owners`, `cut_into_pieces`: leading tokens that rows share.
    stream: `MicroBatchStream`: micro-batches of an endless stream.
    chunks: `split_rows`, `next_num_chunks`: a micro-batch in smaller chunks.
    plan: `resolve_batch_plan`: rows per step, steps per epoch, total steps.
    memory, kernels, optimizer_state: `MemoryFacts`, `estimate_memory`, `kernel_bytes`, `optimizer_bytes`.
    fit, advice: `fit_batch_size`, `candidate_sizes`, `advise`: what fits, and what to change where it does not.
    transfer: `to_device`.

Must not know: models, tokenizers, prompts, files, processes other than their number.
"""
