"""The parts that are put together around a trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from sft.batching.stream import MicroBatchStream
from sft.checkpointing.resume_point import ResumePoint
from sft.common.data_records import TrainingData
from sft.common.machine_records import MemoryLimits
from sft.common.run_records import BatchPlan, DistributedContext
from sft.modeling.compiling import compile_layers
from sft.modeling.footprint import footprint
from sft.processes.device_memory import memory_for_copy
from sft.processes.signals import StopRequest
from sft.processes.terminal import live_terminal
from sft.reporting.environment import device_name
from sft.reporting.log_lines import output_line
from sft.reporting.metrics_log import MetricsLog
from sft.reporting.trackers.install import Trackers, install_trackers
from sft.reporting.trackers.run_text import describe_run
from sft.training.arguments import tensorboard_folder
from sft.training.callbacks import StopCallback
from sft.training.checkpointed_trainer import CheckpointedTrainer
from sft.training.live_display import DisplayCallback
from sft.training.row_layout import RowLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("sft.train")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTraining:
    """A trainer with what `train` needs beside it."""

    trainer: CheckpointedTrainer
    trackers: Trackers
    display: DisplayCallback | None
    """What a person sees; None in other processes than the first."""
    stop: StopCallback
    request: StopRequest

    @contextmanager
    def on_terminal(self) -> Iterator[None]:
        """Shows on a terminal, while this lasts, how far training is."""
        with live_terminal() as line:
            if self.display is not None:
                self.display.line = line
            yield


def _room_for_copies(context: DistributedContext, limits: MemoryLimits | None) -> Callable[[int], int]:
    if limits is None:
        return lambda before: 0
    return lambda before: memory_for_copy(context.device, limits.budget_bytes, before)


def _compile(model: "PreTrainedModel", layout: RowLayout, options: Mapping[str, Any] | None) -> None:
    if options is not None:
        count = compile_layers(model, has_fixed_shape=layout.has_fixed_shape, **options)
        logger.info("Compiling %d layers, at the first steps.", count)


def _install_trackers(
    trainer: CheckpointedTrainer, data: TrainingData, plan: BatchPlan, *, first_step: int
) -> Trackers:
    description = describe_run(
        trainer.facts.get("configuration", {}), data.report, footprint(trainer.model), plan, trainer.context,
        products=trainer.products, peak_flops=trainer.progress.peak_flops,
    )  # fmt: skip
    return install_trackers(trainer, description, first_step=first_step, tensorboard_folder=tensorboard_folder())


def _add_display(trainer: CheckpointedTrainer, plan: BatchPlan, *, first_step: int) -> DisplayCallback | None:
    if not trainer.context.is_main_process:
        return None
    has_tensorboard = "tensorboard" in trainer.args.report_to
    logger.info(
        output_line(
            device_name(trainer.context.device), trainer.args.output_dir,
            tensorboard_folder() if has_tensorboard else None,
        )
    )  # fmt: skip
    display = DisplayCallback(
        trainer.progress, first_step=first_step, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch,
        has_validation=trainer.eval_dataset is not None,
    )  # fmt: skip
    trainer.add_callback(display)
    return display


def _metrics_log(output_dir: str, resume_point: ResumePoint | None) -> MetricsLog:
    """The run's record, without what came behind the checkpoint that it goes on from."""
    path = Path(output_dir, "metrics.jsonl")
    if resume_point is None:
        return MetricsLog(path)
    known = TrainerState.load_from_json(str(resume_point.path / TRAINER_STATE_NAME)).log_history
    num_evaluations = sum("eval_loss" in event and event["step"] == resume_point.step for event in known)
    return MetricsLog(path, resume_step=resume_point.step, num_evaluations=num_evaluations)


def _stream_from(
    data: TrainingData, plan: BatchPlan, layout: RowLayout, context: DistributedContext, *, first_step: int
) -> MicroBatchStream | None:
    """The micro-batches from a step on, where rows are streamed."""
    if data.stream is None:
        return None
    return MicroBatchStream(
        data.stream,
        layout.collator,
        plan.per_device_train_batch_size,
        rank=context.rank,
        world_size=context.world_size,
        first_micro_batch=first_step * plan.gradient_accumulation_steps,
    )
