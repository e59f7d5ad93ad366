"""Models in torch and transformers: loading, adapters, quantization, attention, loss, sharding, saving.

Public names:
    precision: `resolve_precision`.
    tokenizer, loading, adapters, quantization: `load_tokenizer`, `load_model`, `add_adapters`, `dequantize`.
    fitting, footprint, flops: model and tokenizer adjusted to each other; the size and cost of a model.
    architecture, causality, text_path, extra_loss, few_tokens: what config.json and a few tokens show about a model.
    adapter_targets, text_adapters, experts, frozen_weights: adapters where text passes, and what they leave frozen.
    tokenizer_files: what a tokenizer's files need and leave unsaid.
    published_quantization: weights that are quantized in their files.
    processor_files: what is saved beside a model of images and text.
    rope_by_row, embedding_noise: rotary embeddings and noise that depend on the length of a row.
    document_attention, mixers_by_document: what keeps the documents of a packed row apart.
    isolation: whether a model supports that.
    router_loss: the load-balancing loss of experts, as sums.
    output_layer, supervised_loss, evaluation_sums, expert_load: loss and metrics of supervised tokens; chosen experts.
    compiling, gradient_checkpointing, data_parallel, random_state: what a training step needs.
    sharding, sharded_state, saved_names, state_copy: FSDP2, and state written to and read from files.
    answering, merging, saving, saved_folder: other uses of a model than training.
    model_files, loading_errors, prediction_heads, generation_settings: what is unusable in a model's files, each in one
        line.

Must not know: data sets, files of a run, the trainer. A model is recognized by its structure, never by its name.
"""
