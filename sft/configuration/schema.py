"""Every key of the configuration: its type, its default, its meaning.

The YAML is flat. Each key belongs to the one section that has a field of its name; only `lora_config`,
`quantization_config` and `fsdp` nest. The string under a field is its documentation: `--help` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sft.configuration.passed_through import PassedThrough
from sft.configuration.rules import (
    CommaSeparated,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    StepLimit,
    Steps,
    WholeOrShare,
    WholeShare,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model and its tokenizer."""

    model_name_or_path: PathText
    """The model to start from: a folder, or a name on the Hugging Face Hub. Required."""

    gguf_file: str | None = None
    """A GGUF file inside that folder (or repository) to read the weights from; they are de-quantized and trained
    and saved as ordinary safetensors."""

    tokenizer_name_or_path: PathText | None = None
    """Where the tokenizer comes from, if not from the model's own place."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in memory. auto: float32 (with mixed precision where `bf16`/`fp16` say so) when all weights
    are trained; with LoRA the frozen weights are bfloat16 on a GPU that has it (float16 on one that has not), float32
    on CPU."""

    attn_implementation: str | None = None
    """Attention: eager, sdpa, flash_attention_2, ... Default: what transformers chooses for the model."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources that you trust."""

    chat_template: str | None = None
    """Replaces the tokenizer's chat template: a name that ships here (chatml, plain), a file, or the Jinja text
    itself. Default: the tokenizer's own; a tokenizer without one gets `plain` for chat-like data."""


RECORD_FORMATS = (
    "messages", "conversations", "squad", "alpaca", "prompt_completion", "question_answer", "input_output", "text",
)  # fmt: skip
"""The names that `format` may have. What each means is known to `prompting` alone, which is above this floor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSource:
    """One entry of `datasets`: a source of training rows. A plain text in its place is its `path`."""

    path: PathText | None = None
    """A file, a folder or a glob. Give this or `name`."""

    name: str | None = None
    """A dataset on the Hugging Face Hub, or a local dataset folder."""

    config: str | None = None
    """The configuration of the named dataset, where it has several."""

    split: str | None = None
    """Which split to take. Default: train; of a folder's files, those that its names tell to be training data."""

    format: str | None = None
    """The record format (messages, conversations, alpaca, ...). Default: found by the columns."""

    weight: Annotated[float, Range(above=0, maximum=1000)] = 1.0
    """How often an epoch takes each row of this source: 2 is twice, 0.5 is one half of the rows, chosen by `seed`."""

    columns: dict[str, str] = field(default_factory=dict)
    """Names of its columns -> ours."""

    max_rows: PositiveInt | None = None
    """Read no more than the first so many rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What the model is trained on."""

    datasets: list[DatasetSource] = field(default_factory=list)
    """Several sources of training rows at once, in place of the keys below: a list of `path` or `name`, and where
    needed `config`, `split`, `format`, `weight` (how often an epoch takes each row), `columns`, `max_rows`."""

    dataset_name: str | None = None
    """A dataset on the Hugging Face Hub, or a local dataset folder (as `save_to_disk` writes it, or of data files)."""

    dataset_config_name: str | None = None
    """The configuration of that dataset, where it has several (`main`)."""

    dataset_path: PathText | None = None
    """A folder (or one file) of data. `train_file` and `validation_file` are found under it. Alone, its files are the
    training data; names that hold train, valid, dev, eval or test tell the splits apart."""

    train_file: PathText | None = None
    """Training data: a file (JSON, JSONL, CSV, TXT, Parquet; also .gz, .zst), a glob (*.jsonl), or a folder, where
    names tell the splits apart as under `dataset_path`."""

    validation_file: PathText | None = None
    """Validation data, likewise."""

    validation_split: Annotated[float, Range(above=0, below=1)] | None = None
    """Share of the training rows to set aside for validation, chosen by `seed`: 0.05 is 5 %."""

    max_seq_length: Annotated[int, Range(minimum=2)] = 1024
    """Longest row, in tokens."""

    on_too_long: Literal["truncate", "drop", "error"] = "truncate"
    """A row of more than `max_seq_length` tokens: truncate cuts its end off (where nothing that is trained is left
    then, it is a bad row: see `on_bad_rows`), drop leaves it out and counts it, error stops and lists the first ten."""

    train_on: Literal["all", "last"] = "all"
    """Which turns of the assistant are trained: all, or only the last of each row. A message's own `"train": false` or
    `"weight": 0` leaves its turn out in either case."""

    add_end_token: bool = False
    """Write the tokenizer's end token behind the last answer of a row where the chat template ends it with nothing."""

    preprocessing_num_workers: PositiveInt | Literal["auto"] = "auto"
    """Processes that read, render and tokenize. auto: as many as this process may use CPU cores, where there are rows
    enough to be worth it."""

    data_cache_dir: PathText | None = None
    """Where prepared rows are kept, to start at once the next time. Default: `sft_data` in the user's cache folder."""

    streaming: bool = False
    """Prepare rows while training reads them, and store nothing: for data that should not be kept. Needs `max_steps`;
    validation data is prepared beforehand as ever."""

    shuffle_block_rows: PositiveInt = 10_000
    """With `streaming`: so many rows (to the next few hundred) are held in memory and shuffled among themselves. 1: as
    they stand."""

    dataset_columns: dict[str, str] = field(default_factory=dict)
    """Names of your columns -> ours, e.g. {query: question, reply: answer}."""

    on_bad_rows: Literal["error", "skip"] = "error"
    """A row that cannot be used (bad JSON, empty answer, ...): error stops and lists the first ten, skip leaves it
    out and counts it by reason."""

    max_bad_row_share: WholeShare = 0.1
    """With `on_bad_rows: skip`: stop if more than this share of the rows of a split is dropped."""

    max_leakage_share: WholeShare = 0.0
    """Stop if more than this share of the validation rows stands in the training rows too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How it is trained. A step is an optimizer step."""

    output_dir: PathText = "./sft_output"
    """Where the model, checkpoints, metrics and the summary go."""

    per_device_train_batch_size: PositiveInt | Literal["auto"] = 8
    """Rows in a micro-batch on each device; with `packing`, packs. auto: what fits into memory and is fast, by a short
    trial with the longest rows; what `global_batch_size` is given without."""

    global_batch_size: PositiveInt | None = None
    """Rows (packs) of one step on all devices together, in place of `gradient_accumulation_steps`, which follows from
    it: the same training on any machine. Default: batch size x accumulation x number of processes."""

    auto_batch_size: bool = False
    """Both batch sizes are `auto`, of training and of evaluation."""

    target_memory_utilization: Annotated[float, Range(above=0, maximum=1)] = 0.9
    """Share of the free memory of each device that `auto` may fill."""

    memory_budget_gib: PositiveFloat | None = None
    """What `auto` may fill, in GiB a device (on CPU: a process, all of it), in place of what is free."""

    packing: bool = False
    """Join rows to packs of up to `max_seq_length` tokens, so that every micro-batch is about equally full. Each row
    still sees itself alone. A step then has so many packs, and many more rows: mind the learning rate."""

    tokens_per_batch: PositiveInt | None = None
    """Micro-batches of about this many tokens, as many rows as fit, in place of `per_device_train_batch_size`. At least
    `max_seq_length`."""

    padding_free: bool | Literal["auto"] = "auto"
    """Lay the rows of a micro-batch end to end, each seeing itself alone, so that no padding is computed: the same
    numbers, faster. auto: where the model can (tried on a few tokens), else padded, and the log says why. true: stop
    where it cannot. false: padded."""

    per_device_eval_batch_size: PositiveInt | Literal["auto"] = 8
    """Rows in an evaluation batch on each device. Changes speed and memory, not the result. auto: as above."""

    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches that make one step. Rows a step: batch size x this x number of processes."""

    learning_rate: NonNegativeFloat = 5e-5
    """Peak learning rate. Usual: 1e-5 to 5e-5 for all weights, 1e-4 to 3e-4 for LoRA."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW); not on biases and norms."""

    num_train_epochs: PositiveFloat = 3.0
    """Passes over the training data."""

    max_steps: Annotated[int, StepLimit()] = -1
    """Stop after this many steps, whatever the epochs. -1: epochs decide."""

    warmup_steps: Annotated[float, WholeOrShare(least=0)] = 0
    """Steps in which the learning rate rises from 0 (below 1: a share of all steps)."""

    warmup_ratio: Share = 0.0
    """The same as a share of all steps. Give one of the two."""

    lr_scheduler_type: str = "linear"
    """Course of the learning rate after warm-up: linear, cosine, constant, constant_with_warmup, ..."""

    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm. 0: never."""

    optim: str = "adamw_torch_fused"
    """The optimizer: adamw_torch_fused, adamw_torch, adamw_bnb_8bit, adafactor, sgd, ..."""

    seed: Annotated[int, Range(minimum=0, maximum=2**32 - 1)] = 42
    """Seed of the data order, the validation split, LoRA's start values and dropout."""

    fp16: bool | Literal["auto"] = "auto"
    """Mixed precision in float16. auto: on GPUs that have no bfloat16."""

    bf16: bool | Literal["auto"] = "auto"
    """Mixed precision in bfloat16. auto: on GPUs that have it; on a CPU where a short trial finds its products clearly
    faster (one process only)."""

    share_prefixes: bool = True
    """Compute leading tokens that rows of a micro-batch share (a system prompt) once for all of them: the same numbers,
    less work. Needs rows laid end to end; not with dropout, nor with `torch_compile`."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: much less memory, about a quarter slower."""

    checkpoint_every_n_layers: PositiveInt = 1
    """With `gradient_checkpointing`: only in every so many-th layer. 1: in all; 2: in half of them, where the memory
    allows it."""

    torch_compile: bool = False
    """Compile the model's layers (torch.compile), each kind once. Worth it on GPUs, with `packing` or
    `tokens_per_batch`: batches then have one size, and nothing is compiled again."""

    reuse_freed_memory: bool | Literal["auto"] = "auto"
    """Let the C library (glibc) keep freed memory for the next step instead of giving it back to the system and asking
    for it again: about a quarter faster on CPU, and more memory held. auto: when training on CPU."""

    max_bad_steps: PositiveInt = 3
    """A step whose loss or gradient is no finite number has its update left out, on all processes; after so many in a
    row the run stops and names their rows. In float16 the loss scaler leaves such updates out, and with DeepSpeed
    nothing does: neither is counted."""

    hang_timeout_seconds: NonNegativeFloat = 1500.0
    """Seconds without a step, an evaluation batch or prepared rows after which every process writes its Python stacks
    to `hang-rank-N.txt` in `output_dir` and leaves with status 142. A first step and a save may take four times that.
    Default: sooner than the 1800 seconds after which communication libraries give up, and tell less. 0: never."""

    eval_steps: Steps | None = None
    """Evaluate every so many steps (below 1: a share of all steps). Default: at the end of each epoch."""

    save_steps: Steps | None = None
    """Save a checkpoint every so many steps (below 1: a share). Default: at the end of each epoch."""

    save_total_limit: PositiveInt | None = 2
    """Keep this many checkpoints, the best one among them; older ones are deleted. null: all."""

    load_best_model_at_end: bool = False
    """End with the checkpoint of the lowest validation loss (`metric_for_best_model`), not with the last."""

    resume_from_checkpoint: bool | PathText | None = None
    """A checkpoint folder; true: the newest sound one in `output_dir`, which must have one; auto: if there is one."""

    dataloader_num_workers: NonNegativeInt | Literal["auto"] = "auto"
    """Processes that lay out batches ahead of need. 0: in the training process. auto: 2 where the training process
    keeps a GPU busy, 0 on CPU."""

    extra_training_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of transformers' TrainingArguments, given at the top level, checked by name and type."""

    @property
    def passed_through(self) -> PassedThrough:
        """Typed access to the fields of `extra_training_arguments` that this program reads itself."""
        return PassedThrough(self.extra_training_arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    """Several processes."""

    num_gpus: PositiveInt | None = None
    """GPUs (processes) of this machine to train on. Above 1, torchrun is started. Default: one, or as many as the
    launcher started."""

    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl"] | None = None
    """Communication library. Default: nccl on GPUs, gloo on CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """What is written down while it runs."""

    report_to: Annotated[list[str], CommaSeparated(null_is_empty=True)] = field(default_factory=lambda: ["tensorboard"])
    """Trackers: tensorboard, wandb, ... (a name or a list), or none. `metrics.jsonl` is always written."""

    run_name: str | None = None
    """Name of the run in the trackers."""

    wandb_project: str | None = None
    """Project in Weights & Biases. Without a key the run is kept offline, in `output_dir`."""

    logging_dir: PathText | None = None
    """Where TensorBoard's files go. Default: `logs` in `output_dir`."""

    logging_steps: Steps = 10
    """Log every so many steps (below 1: a share of all steps)."""

    sample_prompts: list[str] | None = None
    """Prompts to answer before training, at each evaluation and after. Default: the first three of the validation (else
    training) data. []: none."""

    sample_max_new_tokens: PositiveInt = 64
    """Longest sample answer, in tokens."""

    sample_at_evaluations: bool = True
    """Answer the sample prompts at each evaluation too, not only before and after training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """`lora_config`: train low-rank adapters instead of all weights."""

    r: PositiveInt = 16
    """Rank of the adapters."""

    lora_alpha: PositiveFloat = 32.0
    """Scale: the adapter's output is multiplied by lora_alpha / r."""

    target_modules: Names = field(default_factory=lambda: ["all-linear"])
    """Layers that get an adapter: a list of name endings, or all-linear."""

    lora_dropout: Share = 0.0
    """Dropout on the adapter's input."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained as well."""

    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """What peft is told of the task."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r): steadier at high rank."""

    use_dora: bool = False
    """Weight-decomposed adapters (DoRA): slower, sometimes better at low rank."""

    modules_to_save: Names | None = None
    """Further layers that are trained and saved whole, e.g. [embed_tokens, lm_head] for new tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationConfig:
    """`quantization_config`: load the frozen weights in 4 or 8 bits (bitsandbytes); needs `lora_config`."""

    load_in_4bit: bool = False
    """QLoRA: frozen weights in 4 bits."""

    load_in_8bit: bool = False
    """Frozen weights in 8 bits."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit number format."""

    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that 4-bit weights are multiplied in. auto: as the unquantized parts (see `dtype`)."""

    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales too: 0.4 bits a parameter less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FSDPConfig:
    """`fsdp`: spread weights, gradients and optimizer state over all processes (FSDP2), where one GPU is too small for
    them. `fsdp: {}` takes the defaults; with one process it is off."""

    checkpoints: Literal["full", "sharded"] = "full"
    """full: the same files as without fsdp, gathered by the first process. sharded: each process writes its own part,
    which is faster and gathers nothing. Any number of processes goes on from either. The model at the end is whole."""

    reshard_after_forward: bool = True
    """Let a layer's weights go after its forward pass, and gather them again for the backward pass. false: a third less
    communication, but all weights stand on each GPU while a step is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig:
    """The whole, resolved configuration."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    logging: LoggingConfig
    distributed: DistributedConfig
    lora: LoRAConfig | None = None
    quantization: QuantizationConfig | None = None
    fsdp: FSDPConfig | None = None
    notices: tuple[str, ...] = ()
    """Lines to print at the start: what was translated, what has no effect. Not part of the saved file."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Key -> `file:line` where it was given, for what turns out to be wrong only later. Not part of the saved file."""
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Key -> the older name under which it was given. Not part of the saved file."""


FLAT_SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "distributed": DistributedConfig,
    "logging": LoggingConfig,
}
NESTED_SECTIONS: dict[str, tuple[str, type]] = {
    "lora_config": ("lora", LoRAConfig),
    "quantization_config": ("quantization", QuantizationConfig),
    "fsdp": ("fsdp", FSDPConfig),
}
"""YAML key -> (field of SFTConfig, section)."""
