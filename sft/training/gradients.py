"""How a step's gradient is summed over processes for this model: by DDP, by FSDP, or by DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch

from sft.batching.layout import model_inputs
from sft.modeling.data_parallel import COMM_DTYPES, GradientSum, MicroBatchLoss
from sft.modeling.sharding import reshard_weights
from sft.processes.agreement import open_cpu_group
from sft.training.adapter_gradients import AdapterGradients
from sft.training.arguments import replays_graphs
from sft.training.bad_steps import BadSteps
from sft.training.chunk_count import ChunkCount
from sft.training.sharded_step import ShardedStep
from sft.training.step import StepGradient

LossFunction = Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]


def loss_function(trainer: Any) -> LossFunction:
    """A function of model and micro-batch: the weighted sum of its targets' cross-entropies, a float32 scalar."""
    plain = trainer.means.plain

    def loss_sum(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        balance = trainer.router_balance
        shares: list[torch.Tensor] = []
        total = trainer.layout.output.loss_sum(
            model,
            model_inputs(batch) if balance is None else balance.inputs(batch),
            batch,
            label_smoothing=trainer.args.label_smoothing_factor,
            count_hits=trainer.means.add_correct,
            read_output=None if balance is None else balance.reader(batch, shares.append),
            add_plain_loss=None if plain is None else plain.add,
        )
        if plain is not None and "target_weights" not in batch:
            plain.add(total.detach())
        # The value stays that of the cross-entropies, which is what is logged; the gradient is that of both.
        return total if not shares else total + (shares[0] - shares[0].detach())

    return loss_sum


def _restart_step(trainer: Any) -> None:
    trainer.means.restart_step()
    if trainer.router_balance is not None:
        trainer.router_balance.restart_step()


def data_parallel_of(trainer: Any) -> Literal["ddp", "fsdp2", "deepspeed", "none"]:
    """What sums the gradients of several processes."""
    if trainer.is_deepspeed_enabled:
        return "deepspeed"
    if trainer.is_sharded:
        return "fsdp2"
    return "ddp" if trainer.context.world_size > 1 else "none"


def build_step(trainer: Any, loss_sum: LossFunction, bad_steps: BadSteps) -> StepGradient | ShardedStep | None:
    """The step of a trainer that is put together; None where DeepSpeed sums the gradients.

    Accelerate would wrap the model in DistributedDataParallel by itself. A model that is marked as prepared is not
    wrapped: `StepGradient` wraps it together with its loss, so that a step can be retried, or FSDP reduces the shards.
    """
    if trainer.is_deepspeed_enabled:
        return None
    trainer.add_callback(bad_steps)
    if hasattr(trainer.model, "peft_config"):
        trainer.add_callback(AdapterGradients())
    if trainer.context.world_size > 1 or trainer.is_sharded:
        trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
    if trainer.is_sharded:
        reshard_weights(trainer.model)
        return ShardedStep(lambda: [weight for weight in trainer.model.parameters() if weight.requires_grad], bad_steps)
    config, plan, checks = trainer.setup.config.training, trainer.setup.plan, None if trainer.args.fp16 else bad_steps
    loss = MicroBatchLoss(trainer.model, loss_sum)
    cpu_group, gradient_sum = open_cpu_group(trainer.context), None
    if cpu_group is not None:
        gradient_sum = GradientSum(
            loss,
            cpu_group,
            bucket_cap_mb=config.passed_through.ddp_bucket_cap_mb,
            finds_unused=config.passed_through.ddp_find_unused_parameters,
            syncs_buffers=config.passed_through.ddp_broadcast_buffers,
            comm_dtype=COMM_DTYPES.get(trainer.setup.config.distributed.ddp_comm_hook),
            marks_bad_losses=checks is not None,
        )
    return StepGradient(
        loss,
        trainer.layout.collator,
        ChunkCount(micro_batch_size=plan.per_device_train_batch_size, num_chunks=plan.num_chunks),
        trainer.context,
        gradient_sum=gradient_sum,
        bad_steps=checks,
        on_retry=partial(_restart_step, trainer),
        starts_with_zeros=replays_graphs(trainer.setup.config.training),
    )
