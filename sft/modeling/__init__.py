"""Models in torch and transformers: loading, adapters, quantization, attention, loss, sharding, saving.

Public names:
    precision: `resolve_precision`.
    tokenizer, loading, adapters, quantization: `load_tokenizer`, `load_model`, `add_adapters`, `dequantize`.
    fitting, footprint, flops: model and tokenizer adjusted to each other; the size and cost of a model.
    document_attention, isolation: attention within the documents of a packed row, and whether a model supports it.
    output_layer, supervised_loss, evaluation_sums: loss and metrics of supervised tokens.
    compiling, gradient_checkpointing, gradient_sum, random_state: what a training step needs.
    sharding, sharded_state, state_copy: FSDP2, and state written to and read from files.
    answering, merging, saving: other uses of a model than training.

Must not know: data sets, files of a run, the trainer. A model is recognized by its structure, never by its name.
"""
