"""Sections about training: optimization, processes, sharding, logging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sft.configuration.passed_through import PassedThrough
from sft.configuration.rules import (
    CommaSeparated,
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
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Training. A step is an optimizer step."""

    output_dir: PathText = "./sft_output"
    """Folder for the model, checkpoints, metrics and the run summary."""

    per_device_train_batch_size: PositiveInt | Literal["auto"] = 8
    """Micro-batch size: rows per device and forward pass; with `packing`, packs. auto: the fastest size that fits into
    memory, found by a short trial with the longest rows. auto is also the default if `global_batch_size` is set."""

    global_batch_size: PositiveInt | None = None
    """Rows (packs) per step over all devices. Sets `gradient_accumulation_steps`, so that training is the same on any
    number of devices. Default: micro-batch size x accumulation steps x number of processes."""

    auto_batch_size: bool = False
    """Set both `per_device_train_batch_size` and `per_device_eval_batch_size` to auto."""

    target_memory_utilization: Annotated[float, Range(above=0, maximum=1)] = 0.9
    """Share of each device's free memory that `auto` may use."""

    memory_budget_gib: PositiveFloat | None = None
    """Memory that `auto` may use, in GiB per device (on CPU: per process, in total), instead of a share of the free
    memory."""

    packing: bool = False
    """Pack rows together into sequences of up to `max_seq_length` tokens, so that all micro-batches are about equally
    full. Rows do not attend to each other. Batch sizes then count packs, so a step has many more rows: adjust the
    learning rate."""

    tokens_per_batch: PositiveInt | None = None
    """Fill micro-batches up to this number of tokens, instead of `per_device_train_batch_size` rows. At least
    `max_seq_length`."""

    padding_free: bool | Literal["auto"] = "auto"
    """Concatenate the rows of a micro-batch instead of padding them; rows do not attend to each other. The results are
    the same, and training is faster. auto: use it if the model supports it (tested on a few tokens), otherwise pad and
    log the reason; also pad on a GPU that has no kernel for it. true: stop if the model does not support it. false:
    always pad."""

    per_device_eval_batch_size: PositiveInt | Literal["auto"] = 8
    """Rows per device in an evaluation batch. Affects speed and memory, not the result. auto: found by trial."""

    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches per step. Rows per step: micro-batch size x this x number of processes."""

    learning_rate: NonNegativeFloat = 5e-5
    """Peak learning rate. Typical: 1e-5 to 5e-5 for full fine-tuning, 1e-4 to 3e-4 for LoRA."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW). Not applied to biases and norms."""

    num_train_epochs: Annotated[float, Range(above=0, maximum=1e9)] = 3.0
    """Number of passes over the training data."""

    max_steps: Annotated[int, StepLimit()] = -1
    """Stop after this many steps, regardless of `num_train_epochs`. -1: no limit."""

    warmup_steps: Annotated[float, WholeOrShare(least=0)] = 0
    """Steps over which the learning rate rises from 0 to its peak. Values below 1 are a share of all steps."""

    warmup_ratio: Share = 0.0
    """Warm-up as a share of all steps. Give either this or `warmup_steps`."""

    lr_scheduler_type: str = "linear"
    """Learning rate schedule after warm-up: linear, cosine, constant, constant_with_warmup, ..."""

    max_grad_norm: NonNegativeFloat = 1.0
    """Clip gradients to this norm. 0: no clipping."""

    optim: str = "adamw_torch_fused"
    """Optimizer: adamw_torch_fused, adamw_torch, adamw_bnb_8bit, adafactor, sgd, ...; adamw_bf16_split and
    adamw_bf16_stochastic for `dtype: bfloat16`."""

    seed: Annotated[int, Range(minimum=0, maximum=2**32 - 1)] = 42
    """Random seed for the data order, the validation split, the initial LoRA weights and dropout."""

    fp16: bool | Literal["auto"] = "auto"
    """Mixed precision in float16. auto: on GPUs without bfloat16 support."""

    bf16: bool | Literal["auto"] = "auto"
    """Mixed precision in bfloat16. auto: if all GPUs of the run support it; never on CPU, where it takes more memory. A
    resumed run keeps the precision of its checkpoint."""

    router_aux_loss_coef: NonNegativeFloat | None = None
    """Coefficient of the load-balancing loss of a mixture of experts, over the tokens of the global batch. 0: none.
    Default: as the model's config.json asks (`output_router_logits`, `router_aux_loss_coef`)."""

    share_prefixes: bool = True
    """Compute leading tokens that rows of a micro-batch have in common (such as a system prompt) only once. The results
    are the same. Requires padding-free micro-batches; disabled with dropout and where layers are compiled."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about 25 % slower."""

    checkpoint_every_n_layers: PositiveInt = 1
    """With `gradient_checkpointing`: recompute only every n-th layer. 1: all layers; 2: half of them, if memory
    allows."""

    torch_compile: bool | Literal["auto"] = "auto"
    """Compile the model's layers with torch.compile. auto: on a GPU with `packing` or `tokens_per_batch` (batches then
    have a fixed size, and nothing is recompiled), if a trial before the first step shows that this makes the run
    shorter."""

    reuse_freed_memory: bool | Literal["auto"] = "auto"
    """Keep freed memory in the process (glibc) for the next step instead of returning it to the system: about 25 %
    faster on CPU, with higher memory use. auto: when training on CPU."""

    max_bad_steps: PositiveInt = 3
    """Stop after this many consecutive skipped steps, and report their rows. A step is skipped on all processes if its
    loss or gradient is NaN or inf. Not counted: steps skipped by the loss scaler in float16. With DeepSpeed, no step is
    skipped."""

    hang_timeout_seconds: NonNegativeFloat = 1500.0
    """Abort if there is no progress (a step, an evaluation batch, or prepared rows) for this many seconds: each process
    writes its Python stacks to `hang-rank-N.txt` in `output_dir` and exits with status 142. The first step and saving
    may take four times as long. The default is below the 1800 seconds after which communication libraries abort with
    less information. 0: never."""

    eval_steps: Steps | None = None
    """Evaluate every `eval_steps` steps. Values below 1 are a share of all steps. Default: after each epoch."""

    save_steps: Steps | None = None
    """Save a checkpoint every `save_steps` steps. Values below 1 are a share of all steps. Default: after each
    epoch."""

    save_total_limit: PositiveInt | None = 2
    """Number of checkpoints to keep, including the best one; older ones are deleted. null: keep all."""

    early_stopping_patience: PositiveInt | None = None
    """Stop training after this many evaluations in a row in which `metric_for_best_model` (default: the validation
    loss) did not improve."""

    early_stopping_threshold: NonNegativeFloat = 0.0
    """With `early_stopping_patience`: only a change of more than this counts as an improvement."""

    answer_scores: Annotated[list[str], CommaSeparated()] = field(default_factory=list)
    """Scores of generated answers: exact_match, contains, json_equal, number_match, or a function `my_scores.py:judge`
    of prompt messages, answer, reference and row. Before and after training, on `answer_rows` rows."""

    answer_max_new_tokens: PositiveInt = 128
    """Longest scored answer, in tokens."""

    answer_batch_size: PositiveInt = 16
    """Prompts that are answered at once. Affects speed and memory, not the scores."""

    answers_at_evaluations: bool = False
    """Score answers at evaluations during training too."""

    load_best_model_at_end: bool = False
    """At the end, load the checkpoint with the lowest validation loss (or best `metric_for_best_model`), instead of
    keeping the final weights."""

    resume_from_checkpoint: bool | PathText | None = None
    """Resume training from a checkpoint: a checkpoint folder; true for the newest valid one in `output_dir`, which must
    exist; auto for the newest one if there is any."""

    dataloader_num_workers: NonNegativeInt | Literal["auto"] = "auto"
    """Worker processes that assemble batches. 0: in the training process. auto: 2 on GPU, 0 on CPU."""

    extra_training_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of transformers' TrainingArguments, given as top-level keys; names and types are checked."""

    @property
    def passed_through(self) -> PassedThrough:
        """Typed access to the fields of `extra_training_arguments` that this program reads itself."""
        return PassedThrough(self.extra_training_arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    """Multiple processes."""

    num_gpus: PositiveInt | None = None
    """Number of GPUs (processes) to train on, on this machine. Values above 1 start torchrun. Default: 1, or the number
    of processes that the launcher started."""

    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl"] | None = None
    """Communication backend. Default: nccl on GPUs, gloo on CPU."""

    ddp_comm_hook: Literal["bf16", "fp16"] | None = None
    """Send gradients between processes in this type: half of the bytes of float32, at the cost of precision. Default:
    their own type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """Logging and sample answers."""

    report_to: Annotated[list[str], CommaSeparated(null_is_empty=True)] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers: tensorboard, wandb, ... (a name or a list), or none. `metrics.jsonl` is always written."""

    run_name: str | None = None
    """Name of the run in the trackers."""

    wandb_project: str | None = None
    """Weights & Biases project. Without an API key the run is recorded offline, in `output_dir`."""

    logging_dir: PathText | None = None
    """Folder for TensorBoard files. Default: `logs` in `output_dir`."""

    logging_steps: Steps = 10
    """Log every `logging_steps` steps. Values below 1 are a share of all steps."""

    sample_prompts: list[str] | None = None
    """Prompts that the model answers before training, at each evaluation and after training. Default: the first three
    of the validation data, or of the training data without it. []: none."""

    sample_max_new_tokens: PositiveInt = 64
    """Maximum length of a sample answer, in tokens."""

    sample_at_evaluations: bool = True
    """Answer the sample prompts at each evaluation too, not only before and after training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FSDPConfig:
    """`fsdp`: shard weights, gradients and optimizer state over all processes (FSDP2), for models that do not fit on
    one GPU. `fsdp: {}` uses the defaults. Has no effect with a single process."""

    checkpoints: Literal["full", "sharded"] = "full"
    """full: the same files as without fsdp, gathered by the first process. sharded: each process writes its own shard,
    which is faster. Both can be resumed with any number of processes. The final model is always saved in full."""

    reshard_after_forward: bool = True
    """Free a layer's gathered weights after its forward pass and gather them again for the backward pass. false: a
    third less communication, but each GPU holds all weights during a step."""
