"""Settings that have no effect because of others: logged, not an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sft.configuration.checks.steps import WITHOUT_WARMUP
from sft.configuration.keys import flat_keys
from sft.configuration.schema import SFTConfig

HIGHEST_USUAL_LEARNING_RATE = 0.5
"""Above it, a learning rate is probably a typing error (2e5 instead of 2e-5), with any optimizer."""


def find_notices(config: SFTConfig) -> Iterator[str]:
    """Yield a line for each setting that differs from its default and has no effect.

    A saved configuration contains every default, so defaults are not reported.
    """
    trackers = config.logging.report_to
    if config.logging.wandb_project and "wandb" not in trackers:
        yield "wandb_project has no effect: report_to does not include wandb."
    if config.logging.logging_dir and "tensorboard" not in trackers:
        yield "logging_dir has no effect: report_to does not include tensorboard."
    data, training = config.data, config.training
    if not data.streaming and data.shuffle_block_rows != _default("shuffle_block_rows"):
        yield "shuffle_block_rows has no effect: streaming is false."
    if data.streaming and data.order == "given" and data.shuffle_block_rows != _default("shuffle_block_rows"):
        yield "shuffle_block_rows has no effect: order is given."
    if data.prompt_loss_weight and training.share_prefixes:
        yield "share_prefixes has no effect: with prompt_loss_weight, the leading tokens that rows share are trained."
    if data.streaming and training.passed_through.dataloader_drop_last:
        yield "dataloader_drop_last has no effect: a stream has no last batch."
    yield from _schedule_notices(config)
    if training.passed_through.use_liger_kernel:
        yield "use_liger_kernel: Liger's layers are used, but not its loss, which is computed in chunks here."
    if training.torch_compile is True and not (training.packing or training.tokens_per_batch):
        yield "torch_compile: without packing or tokens_per_batch, batches vary in size, and each new size recompiles."
    if training.tokens_per_batch and training.per_device_train_batch_size != _default("per_device_train_batch_size"):
        yield "per_device_train_batch_size has no effect: tokens_per_batch sets the micro-batch size."
    if training.checkpoint_every_n_layers != 1 and not training.gradient_checkpointing:
        yield "checkpoint_every_n_layers has no effect: gradient_checkpointing is false."
    if data.on_bad_rows == "error" and data.max_bad_row_share != _default("max_bad_row_share"):
        yield "max_bad_row_share has no effect: on_bad_rows: error stops at any bad row."
    if config.fsdp is not None or training.passed_through.deepspeed is not None:
        reducer = "FSDP" if config.fsdp is not None else "DeepSpeed"
        ddp = ("ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_broadcast_buffers")
        given = [key for key in ddp if key in training.extra_training_arguments]
        for key in [*given, *(["ddp_comm_hook"] if config.distributed.ddp_comm_hook else [])]:
            yield f"{key} has no effect: {reducer} sums the gradients."
    if training.passed_through.gradient_checkpointing_kwargs and not training.gradient_checkpointing:
        yield "gradient_checkpointing_kwargs has no effect: gradient_checkpointing is false."


def _schedule_notices(config: SFTConfig) -> Iterator[str]:
    training, passed = config.training, config.training.passed_through
    for key in ("warmup_steps", "warmup_ratio"):
        if getattr(training, key) and training.lr_scheduler_type in WITHOUT_WARMUP:
            yield f"{key} has no effect: lr_scheduler_type is {training.lr_scheduler_type}."
    if training.max_steps > 0 and training.num_train_epochs != _default("num_train_epochs"):
        yield "num_train_epochs has no effect: max_steps ends the run."
    if passed.save_strategy == "no" and training.save_total_limit != _default("save_total_limit"):
        yield "save_total_limit has no effect: save_strategy is no."
    if passed.save_strategy == "no" and passed.save_only_model:
        yield "save_only_model has no effect: save_strategy is no."
    elif passed.save_only_model:
        yield "save_only_model: a run that is stopped cannot be resumed from its checkpoints."
    if training.learning_rate == 0:
        yield "learning_rate is 0: the weights do not change."
    elif training.learning_rate > HIGHEST_USUAL_LEARNING_RATE:
        yield (
            f"learning_rate is {training.learning_rate:g}, and training will probably diverge: usual are 1e-5 to "
            "5e-5 for full fine-tuning, 1e-4 to 3e-4 for LoRA. A minus sign in the exponent may be missing."
        )


def _default(key: str) -> Any:
    return flat_keys()[key].default
