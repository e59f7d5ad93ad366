"""What a trainer is assembled with: trackers, display, metrics log, stream, compiled layers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from sft.batching.stream import MicroBatchStream
from sft.modeling.compiling import compile_layers
from sft.processes.environment import tensorboard_folder
from sft.processes.signals import StopRequest
from sft.processes.terminal import live_terminal
from sft.reporting.log_lines import output_line
from sft.reporting.metrics_log import MetricsLog
from sft.reporting.trackers.install import Trackers, install_trackers
from sft.reporting.trackers.run_text import describe_run
from sft.training.evaluating_trainer import EvaluatingTrainer
from sft.training.live_display import DisplayCallback
from sft.training.prepared_model import PreparedModel
from sft.training.run_setup import RunSetup
from sft.training.sample_answers import SampleAnswers
from sft.training.scored_answers import ScoredAnswers
from sft.training.stopping import StopCallback

logger = logging.getLogger("sft.train")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTraining:
    """A trainer with its companions."""

    trainer: EvaluatingTrainer
    trackers: Trackers
    display: DisplayCallback | None
    """Shows progress; None except in the first process."""
    stop: StopCallback
    request: StopRequest
    samples: SampleAnswers
    scored: ScoredAnswers | None
    """Scores generated answers; None where the settings ask for none."""

    @contextmanager
    def on_terminal(self) -> Iterator[None]:
        """Shows a live line on a terminal while entered."""
        with live_terminal() as line:
            if self.display is not None:
                self.display.line = line
            yield


def compile_model(prepared: PreparedModel, options: Mapping[str, Any]) -> None:
    """Compile the layers with `torch.compile`, at their first call, where that is decided.

    Args:
        prepared: the model.
        options: of `torch.compile`.
    """
    if prepared.layout.findings.compiles_layers:
        count = compile_layers(prepared.model, has_fixed_shape=prepared.layout.has_fixed_shape, **options)
        logger.info("Compiling %d layers, at the first steps.", count)


def install_run_trackers(trainer: EvaluatingTrainer) -> Trackers:
    """Our trackers, with a description of the run."""
    setup = trainer.setup
    description = describe_run(
        setup.identity.configuration,
        setup.data.report,
        setup.prepared.footprint,
        setup.plan,
        setup.context,
        products=trainer.products,
        peak_flops=trainer.progress.peak_flops,
    )
    return install_trackers(trainer, description, first_step=setup.first_step, tensorboard_folder=tensorboard_folder())


def add_display(trainer: EvaluatingTrainer) -> DisplayCallback | None:
    """The progress display of the main process; None elsewhere."""
    setup = trainer.setup
    if not setup.context.is_main_process:
        return None
    has_tensorboard = "tensorboard" in (trainer.args.report_to or ())
    logging_dir = tensorboard_folder() if has_tensorboard else None
    logger.info(output_line(setup.identity.environment, str(trainer.args.output_dir), logging_dir))
    display = DisplayCallback(
        trainer.progress,
        first_step=setup.first_step,
        total_steps=setup.plan.total_steps,
        steps_per_epoch=setup.plan.steps_per_epoch,
        has_validation=trainer.eval_dataset is not None,
    )
    trainer.add_callback(display)
    return display


def open_metrics_log(setup: RunSetup) -> MetricsLog | None:
    """`metrics.jsonl`, without what was logged after the checkpoint that is resumed from. Main process only."""
    if not setup.context.is_main_process:
        return None
    path = Path(setup.config.training.output_dir, "metrics.jsonl")
    if setup.resume is None:
        return MetricsLog(path, check=setup.check_output)
    step = setup.resume.step
    known = TrainerState.load_from_json(str(setup.resume.path / TRAINER_STATE_NAME)).log_history
    num_evaluations = sum("eval_loss" in event and event["step"] == step for event in known)
    return MetricsLog(path, resume_step=step, num_evaluations=num_evaluations, check=setup.check_output)


def open_stream(setup: RunSetup) -> MicroBatchStream | None:
    """The micro-batches after the resumed step, if rows are streamed."""
    if setup.data.stream is None:
        return None
    return MicroBatchStream(
        setup.data.stream,
        setup.prepared.layout.collator,
        setup.plan.per_device_train_batch_size,
        rank=setup.context.rank,
        world_size=setup.context.world_size,
        first_micro_batch=setup.first_step * setup.plan.gradient_accumulation_steps,
    )
