"""From a loaded model to one that is ready to train: sharded, with its layout of rows and its end tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from sft.checkpointing.resume_point import ResumePoint
from sft.common.device_errors import is_out_of_memory
from sft.common.errors import ConfigError, MemoryShortage, one_line
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import SFTConfig
from sft.modeling.embedding_noise import add_embedding_noise
from sft.modeling.fitting import set_generation_defaults
from sft.modeling.footprint import footprint
from sft.modeling.input_casts import leave_casts_to_autocast
from sft.modeling.rope_by_row import unknown_rope
from sft.modeling.router_loss import RouterLoss
from sft.modeling.sharding import shard_weights
from sft.processes.environment import uses_deepspeed
from sft.reporting.log_lines import model_line
from sft.training.decided_layout import restore_attention, saved_findings
from sft.training.model_trials import ModelTrials
from sft.training.prepared_model import PreparedModel, class_name
from sft.training.router_balance import asked_coefficient, decide_router_loss, router_line
from sft.training.row_layout import RowLayout, resolve_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.train")


def prepare_model(
    config: SFTConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    precision: Precision,
    context: DistributedContext,
    *,
    is_chat: bool,
    resume: ResumePoint | None = None,
) -> PreparedModel:
    """Shards the model where `fsdp` asks for it, tries out how rows can be laid out, and logs both.

    Args:
        config: the whole configuration.
        model: as `model_manager.load_model` returns it.
        tokenizer: the one that rows were made with.
        precision: the types to compute in.
        context: the processes that share the model; a dry run is one process.
        is_chat: whether answers end as the chat template ends them.
        resume: the checkpoint to resume from; what was found out about its model is used again.

    Raises:
        ConfigError: if a setting asks for what this model or device cannot do.
        ModelError: if the model is not causal.
        MemoryShortage: if the model alone does not fit.
    """
    weights = getattr(torch, precision.weights)
    size = footprint(model, weights.itemsize if config.fsdp is not None and config.lora is None else 0)
    logger.info(model_line(size, class_name(model), precision, config.quantization))
    with _memory_shortage_in_one_line(context):
        is_sharded = config.fsdp is not None and _shard_weights(model, config, precision, context)
        if not is_sharded and not uses_deepspeed(config.training.passed_through.deepspeed):
            _move_to_device(model, context.device)
        leave_casts_to_autocast(model)
        add_embedding_noise(model, config.training.passed_through.neftune_noise_alpha)
        kept = saved_findings(resume, config)
        restore_attention(model, kept, config.model.attn_implementation)
        layout = resolve_layout(
            model,
            config.model,
            config.training,
            precision,
            context,
            pad_token_id=tokenizer.pad_token_id,
            max_seq_length=config.data.max_seq_length,
            kept=kept,
        )
        router, loss_lines = _router_loss(model, config, precision)
    lines = [layout.describe(), *loss_lines, *_rope_lines(model, layout, config.data.max_seq_length)]
    for line in filter(None, lines):
        logger.info(line)
    return PreparedModel(
        model=model,
        tokenizer=tokenizer,
        precision=precision,
        layout=layout,
        footprint=size,
        eos_token_ids=tuple(set_generation_defaults(model, tokenizer, is_chat=is_chat)),
        router_loss=router,
    )


def _router_loss(
    model: "PreTrainedModel", config: SFTConfig, precision: Precision
) -> tuple[RouterLoss | None, list[str | None]]:
    """The load-balancing loss to train, and lines about it and about terms of the model's loss that are not trained.

    Raises:
        ConfigError: if the settings ask for a loss that cannot be trained.
    """
    configured, trials = config.training.router_aux_loss_coef, ModelTrials(model, precision)
    scores = trials.router_scores()
    if uses_deepspeed(config.training.passed_through.deepspeed):
        if configured:
            raise ConfigError("router_aux_loss_coef: cannot be combined with deepspeed; use fsdp, or remove the key.")
        return None, [trials.untrained_loss_line()]
    loss = decide_router_loss(model, scores, configured)
    known = scores.value * asked_coefficient(model) if scores is not None else None
    return loss, [router_line(loss, scores, model, configured), trials.untrained_loss_line(known)]


def _move_to_device(model: "PreTrainedModel", device: str) -> None:
    """Moves a model that no device shares with others; a quantized one was loaded onto its device."""
    if not getattr(model, "is_quantized", False):
        cast(Any, model).to(device)  # mypy loses the signature behind transformers' decorator


def _rope_lines(model: "PreTrainedModel", layout: RowLayout, max_seq_length: int) -> Iterator[str]:
    """What rotary positions that depend on the length of a row mean for the run."""
    if layout.own_rope is not None:
        yield (
            f"RoPE depends on the length of a row ({layout.own_rope}): it is computed for each row by its own length, "
            "whatever its batch; shared leading tokens are not computed once."
        )
    kind = unknown_rope(model, max_seq_length)
    if kind is not None:
        yield (
            f"RoPE of the kind {kind} is computed by the model's own code: if it depends on the longest row of a "
            "batch, training and evaluation depend on the batch sizes."
        )


@contextmanager
def _memory_shortage_in_one_line(context: DistributedContext) -> Iterator[None]:
    """Context in which memory that runs out ends the run: nothing about the model can be concluded from it.

    Raises:
        MemoryShortage: in place of torch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortage(
            f"Out of memory on {context.device} while the model was loaded there and tried on a few tokens, before any "
            "training. Free the device, choose a smaller model, or reduce its weights with quantization_config or fsdp "
            f"({one_line(error, 160)})."
        ) from error


def _shard_weights(
    model: "PreTrainedModel", config: SFTConfig, precision: Precision, context: DistributedContext
) -> bool:
    """Shards the weights over the processes, if there are several.

    Returns:
        Whether they are sharded, or would be: a dry run for several processes leaves them unsharded.
    """
    if context.world_size == 1:
        return (config.distributed.num_gpus or 1) > 1  # otherwise a notice says that fsdp has no effect
    if precision.mixed == "fp16":
        raise ConfigError("fsdp: computes in bfloat16 or float32, and this GPU has no bfloat16; write fp16: false.")
    assert config.fsdp is not None
    count = shard_weights(
        model,
        context.device.partition(":")[0],
        context.world_size,
        weights=getattr(torch, precision.weights),
        mixed=precision.mixed,
        reshard_after_forward=config.fsdp.reshard_after_forward,
    )
    logger.info("Weights are sharded over %d processes (FSDP2), %d layers one by one.", context.world_size, count)
    return True
