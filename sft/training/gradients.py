"""How a step's gradient is summed for this model: by our own code, by FSDP, or by DeepSpeed."""

from __future__ import annotations

from typing import Any

from sft.modeling.gradient_sum import broadcast_weights
from sft.modeling.sharding import reshard_weights
from sft.training.bad_steps import BadSteps
from sft.training.sharded_step import ShardedStep
from sft.training.step import StepGradient


def build_step(trainer: Any, bad_steps: BadSteps) -> StepGradient | ShardedStep | None:
    """The step of a trainer that is put together; None where DeepSpeed sums the gradients.

    Accelerate would wrap the model in DistributedDataParallel. A model that is marked as prepared is not wrapped: our
    own code sums the gradients once a step, or FSDP does it in the backward pass.
    """
    if trainer.is_deepspeed_enabled:
        return None
    trainer.add_callback(bad_steps)
    if trainer.is_sharded:
        reshard_weights(trainer.model)
        trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
        return ShardedStep(lambda: _trained_weights(trainer.model), bad_steps)
    weights = _trained_weights(trainer.model)
    if trainer.context.world_size > 1:
        trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
        broadcast_weights(weights)
    plan = trainer.setup.plan
    return StepGradient(
        weights,
        trainer.layout.collator,
        plan.per_device_train_batch_size,
        trainer.context,
        num_chunks=plan.num_chunks,
        bad_steps=None if trainer.args.fp16 else bad_steps,
        on_retry=trainer.means.restart_step,
    )


def _trained_weights(model: Any) -> list[Any]:
    return [weight for weight in model.parameters() if weight.requires_grad]
