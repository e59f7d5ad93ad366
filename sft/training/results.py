"""What a run leaves behind: the result of training, the saved model, the records, and the last lines of the log."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sft.checkpointing.checkpoints import list_checkpoints
from sft.checkpointing.final_model import model_staging_folder, publish_model, write_model
from sft.common.data_records import RowRemarks
from sft.common.errors import ConfigError, one_line
from sft.common.files import write_json
from sft.common.markdown import escape_markdown
from sft.common.optional_packages import missing_package
from sft.common.run_records import TrainingResult
from sft.common.text import printable
from sft.modeling.saving import save_final_model
from sft.processes.agreement import agree_on_smallest
from sft.processes.device_memory import peak_memory_bytes, total_memory_bytes
from sft.processes.terminal import log_drawn, open_live_line
from sft.reporting.curves import draw_curves
from sft.reporting.log_lines import before_and_after_lines, before_and_after_rows, sample_lines
from sft.reporting.metrics_log import read_metrics
from sft.reporting.remarks import remark_lines
from sft.reporting.run_record import read_run_record
from sft.reporting.summary import MEASURED, build_summary
from sft.training.gradients import data_parallel_of
from sft.training.hub_pushes import NOT_PUSHED_STATUS
from sft.training.run_report import HTML_FILE, RunReport
from sft.training.scored_answers import scores_text
from sft.training.stopping import StopCallback

logger = logging.getLogger("sft")
WITHOUT_SUMMARY_STATUS = 2
"""The exit status of a run whose model is saved, but not `run_summary.json`."""
_T = TypeVar("_T")
TRACKED_RESULTS = (
    "status",
    "train",
    "eval_before",
    "eval_after",
    "test_before",
    "test_after",
    "samples_ended",
    "bad_steps",
    "memory_shortages",
)
"""Entries of the summary that trackers show at the end."""


def training_result(trainer: Any, steps: int, stop: StopCallback) -> TrainingResult:
    """The counts, speeds and memory of a run that has just ended.

    Args:
        trainer: after training.
        steps: optimizer steps of the run, those before a resume included.
        stop: has the signal that stopped it, if any.
    """
    progress = trainer.progress
    seconds = progress.seconds()
    supervised, tokens, rows, *_, dropped = progress.counts.tolist()
    device = trainer.context.device
    peak, total = peak_memory_bytes(device), total_memory_bytes(device)
    checkpoints = list_checkpoints(trainer.args.output_dir)
    return TrainingResult(
        status="interrupted" if stop.stopped else "completed",
        stopped_by=stop.stopped_by,
        steps=steps,
        epochs=float(trainer.state.epoch or 0.0) if trainer.train_sampler is not None else None,
        loss=trainer.means.mean_loss,
        loss_unweighted=None if trainer.means.plain is None else trainer.means.plain.mean_loss,
        seconds=seconds,
        examples_per_second=rows / seconds,
        tokens_per_second=tokens / seconds,
        supervised_tokens_per_second=supervised / seconds,
        model_flops_per_second=progress.model_flops() / seconds,
        mfu=progress.utilization(progress.model_flops() / seconds),
        rows_dropped=int(dropped),
        remarks=trainer.stream_drops.remarks.records() if trainer.stream_drops is not None else RowRemarks(),
        bad_steps=trainer.bad_steps.count,
        memory_shortages={
            "training": trainer.step_gradient.chunks.shortages if trainer.step_gradient else 0,
            "evaluation": trainer.evaluation_step.shortages,
        },
        peak_memory_bytes=peak,
        memory_share=peak / total if total else None,
        early_stop=trainer.early_stopping.reason if trainer.early_stopping is not None else None,
        last_checkpoint=str(checkpoints[-1]) if checkpoints else None,
    )


def with_earlier_speed(result: TrainingResult, output: Path) -> TrainingResult:
    """The result of a resume that had nothing left to train, with the speed and memory of the run that trained.

    Args:
        result: of the resume.
        output: folder of the run; without a summary of the same number of steps, the result is returned as it is.
    """
    try:
        earlier = read_run_record(output).summary.get("train", {})
    except ConfigError:
        return result
    if earlier.get("steps") != result.steps:
        return result
    return dataclasses.replace(result, **{name: earlier[name] for name in MEASURED if name in earlier})


def attach_report(training: Any) -> RunReport:
    """The report of the run, which the trainer keeps up to date from now on."""
    trainer = training.trainer
    report = RunReport(trainer.setup, plan=trainer.current_plan, bad_steps=lambda: trainer.bad_steps.count)
    trainer.add_callback(report)
    return report


def save_and_report(training: Any, result: TrainingResult, report: RunReport) -> int:
    """Saves the model, writes the records, and logs the result. A collective operation.

    Args:
        training: as `trainer_utils.build_trainer` returned it.
        result: of the training.
        report: the run's report, which is finished here.

    Returns:
        The exit status, the same on all processes: only the main process knows whether the push to the Hub succeeded.
    """
    trainer = training.trainer
    completed = result.status == "completed"
    if completed:
        trainer.confirm_output()
        _save_model(trainer)
    status = 0 if completed else 128 + result.stopped_by
    if trainer.context.is_main_process:
        if result.steps == trainer.setup.first_step:
            result = with_earlier_speed(result, Path(trainer.setup.config.training.output_dir))
        status = _report(training, result, report, status)
    # No process exits while others still write.
    return -agree_on_smallest(-status, trainer.context)


def _report(training: Any, result: TrainingResult, report: RunReport, status: int) -> int:
    """Writes the records, pushes the model if that is set, and logs the result; returns the exit status.

    The summary comes first, and is written again with what the later steps found out. No failure of one step, such as a
    picture that cannot be drawn, ends the others.
    """
    trainer, setup = training.trainer, training.trainer.setup
    output = Path(setup.config.training.output_dir)
    is_pushing = status == 0 and trainer.pushes_to_hub
    pushed = "not finished" if is_pushing else None
    summary = _write_summary(training, result, pushed)
    if is_pushing:
        name = output.absolute().name
        is_pushed = trainer.hub.push_model(lambda: trainer.create_model_card(model_name=str(escape_markdown(name))))
        status = 0 if is_pushed else NOT_PUSHED_STATUS
        pushed = trainer.hub.problem or "sent"
    picture = output / "training_curves.png"
    title = setup.config.logging.run_name or str(output)
    curves = _attempt(picture, lambda: _draw_curves(output / "metrics.jsonl", picture, title))
    training.trackers.finish(result.steps, {name: summary[name] for name in TRACKED_RESULTS if name in summary}, curves)
    if (pushed, training.trackers.problems()) != (summary.get("push_to_hub"), summary.get("trackers")):
        summary = _write_summary(training, result, pushed)
    report.finish(result)
    if result.status == "completed":
        _attempt("the result", lambda: _log_result(trainer, result, status))
        return status if summary else status or WITHOUT_SUMMARY_STATUS
    logger.info("Stopped at step %d of %d, saved in %s.", result.steps, setup.plan.total_steps, result.last_checkpoint)
    logger.info("Resume with: %s --resume_from_checkpoint auto", setup.command)
    return status


def _attempt(what: str | Path, write: Callable[[], _T]) -> _T | None:
    """One of the steps after training; an error becomes a line of the log, since the model is saved."""
    try:
        return write()
    except Exception as error:
        logger.warning("%s cannot be written: %s: %s", what, type(error).__name__, one_line(error))
        return None


def _save_model(trainer: Any) -> None:
    """Saves the final model; processes that hold shards take part."""
    output = Path(trainer.setup.config.training.output_dir)
    if trainer.is_deepspeed_enabled:
        trainer.save_model(str(model_staging_folder(output)))
        if trainer.context.is_main_process:
            publish_model(model_staging_folder(output), output)
        return
    weights = trainer.gather_full_weights()
    if trainer.context.is_main_process:
        write_model(output, partial(save_final_model, trainer.model, trainer.processing_class, weights=weights))


def _write_summary(training: Any, result: TrainingResult, pushed: str | None) -> dict[str, Any]:
    """Writes `run_summary.json`; returns its contents, or {} if it cannot be written."""
    trainer, setup = training.trainer, training.trainer.setup
    path = Path(setup.config.training.output_dir, "run_summary.json")

    def write() -> dict[str, Any]:
        summary = build_summary(
            result,
            setup.data.report,
            trainer.current_plan(),
            setup.identity.configuration_sha256,
            setup.context.device,
            data_digests=dataclasses.asdict(setup.identity.data),
        )
        environment = dataclasses.asdict(setup.identity.environment) | {"data_parallel": data_parallel_of(trainer)}
        summary |= {"environment": environment, "trackers": training.trackers.problems(), "push_to_hub": pushed}
        write_json(summary, path)
        return summary

    return _attempt(path, write) or {}


def _draw_curves(metrics: Path, picture: Path, title: str) -> Path | None:
    """Draws `training_curves.png`; returns its path, or None if matplotlib is missing, which is logged."""
    try:
        draw_curves(read_metrics(metrics), picture, title)
    except ImportError:
        missing = missing_package("matplotlib")
        logger.info("%s was not drawn: this %s. %s shows the curves.", picture, missing, HTML_FILE)
        return None
    return picture


def _log_result(trainer: Any, result: TrainingResult, status: int) -> None:
    """Logs the results of a completed run."""
    config = trainer.setup.config
    output = Path(config.training.output_dir)
    for line in [*sample_lines(result.samples), ""]:
        logger.info(line)
    table, terminal = (
        before_and_after_rows(result.eval_before, result.eval_after, result.at_ends),
        open_live_line(sys.stdout),
    )
    drawn = terminal.table("validation", table[0], table[1:]) if table and terminal is not None else None
    log_drawn(logger, before_and_after_lines(table), drawn)
    for when, one in (("before", result.eval_before), ("after", result.eval_after)):
        for name, found in (one.answers if one is not None else {}).items():
            logger.info("Answers %s, %s: %s.", when, name, scores_text(found))
    steps = result.steps - trainer.setup.first_step  # the seconds are those since a resume
    if result.early_stop is not None:
        logger.info("Training was %s.", result.early_stop)
    if steps:
        logger.info(
            "Trained %d steps in %.0f s: %.1f examples/s, %s tokens/s, %s supervised tokens/s.",
            steps,
            result.seconds,
            result.examples_per_second,
            f"{result.tokens_per_second:,.0f}",
            f"{result.supervised_tokens_per_second:,.0f}",
        )
    else:
        logger.info(
            "All %d steps were trained before this resume. To train for longer, raise num_train_epochs or max_steps.",
            result.steps,
        )
    for _, text in remark_lines(result.remarks):
        logger.info("Streamed rows: %s.", printable(text))
    kind = "adapters" if config.lora is not None else "model"
    logger.info("Saved the %s and the records in %s. Report: %s", kind, output, output / HTML_FILE)
    if status:
        logger.info(
            "push_to_hub: the %s was not pushed to the Hub (%s), so the exit status is %d. Push it with: "
            "hf upload %s %s",
            kind,
            trainer.hub.problem,
            status,
            trainer.hub.name,
            output,
        )
