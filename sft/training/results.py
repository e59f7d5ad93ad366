"""What a run leaves: the model, the records, and what is said at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sft.checkpointing.final_model import model_staging_folder, publish_model, write_model
from sft.common.data_records import TrainingData
from sft.common.files import write_json
from sft.common.optional_packages import missing_package
from sft.common.run_records import BatchPlan, TrainingResult
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_sha256
from sft.modeling.saving import save_final_model
from sft.reporting.curves import draw_curves
from sft.reporting.log_lines import before_and_after_lines, sample_lines
from sft.reporting.metrics_log import read_metrics
from sft.reporting.summary import build_summary
from sft.reporting.trackers.install import Trackers
from sft.training.checkpointed_trainer import CheckpointedTrainer
from sft.training.hub_pushes import NOT_PUSHED_STATUS
from sft.training.run_report import HTML_FILE, RunReport

logger = logging.getLogger("sft")
TRACKED_RESULTS = ("status", "train", "eval_before", "eval_after", "samples_ended", "bad_steps", "memory_shortages")
"""What trackers show of the summary in the end."""


def save_and_report(
    config: SFTConfig,
    trainer: CheckpointedTrainer,
    trackers: Trackers,
    data: TrainingData,
    plan: BatchPlan,
    result: TrainingResult,
    command: str,
    report: RunReport,
) -> int:
    """Saves the model, writes the records, and says what came of it; returns the exit status."""
    context, output = trainer.context, Path(config.training.output_dir)
    completed = result.status == "completed"
    if completed and trainer.is_deepspeed_enabled:
        trainer.save_model(str(model_staging_folder(output)))  # gathers the shards, which takes every process
        if context.is_main_process:
            publish_model(model_staging_folder(output), output)
    elif completed:
        weights = trainer.gather_whole_weights()
        if context.is_main_process:
            write_model(output, partial(save_final_model, trainer.model, trainer.processing_class, weights=weights))
    status = 0 if completed else 128 + result.stopped_by
    if not context.is_main_process:
        return status
    to_hub = None
    if completed and trainer.args.push_to_hub:
        is_sent = trainer.hub.push_model(lambda: trainer.create_model_card(model_name=output.absolute().name))
        status = 0 if is_sent else NOT_PUSHED_STATUS
        to_hub = trainer.hub.problem or "sent"
    curves = _draw_curves(output, config.logging.run_name or str(output))
    summary = build_summary(
        result, data.report, trainer.plan_now(), config_sha256(config), context.device,
        data_digests=trainer.facts.get("data"),
    )  # fmt: skip
    summary |= {"trackers": trackers.problems(), "push_to_hub": to_hub}
    write_json(summary, output / "run_summary.json")
    trackers.finish(result.steps, {name: summary[name] for name in TRACKED_RESULTS}, curves)
    if trackers.problems() != summary["trackers"]:
        write_json({**summary, "trackers": trackers.problems()}, output / "run_summary.json")
    report.finish(result)
    if not completed:
        logger.info("Stopped at step %d of %d, saved in %s.", result.steps, plan.total_steps, result.last_checkpoint)
        logger.info("Go on with: %s --resume_from_checkpoint auto", command)
        return status
    for line in [*sample_lines(result.samples), "", *before_and_after_lines(result.eval_before, result.eval_after)]:
        logger.info(line)
    logger.info(
        "Trained %d steps in %.0f s: %.1f examples/s, %s tokens/s, %s of them trained.",
        result.steps, result.seconds, result.examples_per_second,
        f"{result.tokens_per_second:,.0f}", f"{result.supervised_tokens_per_second:,.0f}",
    )  # fmt: skip
    kind = "adapters" if config.lora is not None else "model"
    logger.info("Saved the %s and the records in %s. What came of it: %s", kind, output, output / HTML_FILE)
    if status:
        logger.info(
            "push_to_hub: the %s is not on the Hub (%s), so the exit status is %d. Send it with: hf upload %s %s",
            kind, to_hub, status, trainer.hub.name, output,
        )  # fmt: skip
    return status


def _draw_curves(output: Path, title: str) -> Path | None:
    """Draw `training_curves.png`. Returns its path, or None where matplotlib is missing, which is logged."""
    picture = output / "training_curves.png"
    try:
        draw_curves(read_metrics(output / "metrics.jsonl"), picture, title)
    except ImportError:
        missing = missing_package("matplotlib")
        logger.info("%s was not drawn: this %s. %s shows the curves.", picture, missing, HTML_FILE)
        return None
    return picture


def attach_report(
    config: SFTConfig, trainer: CheckpointedTrainer, data: TrainingData, facts: Mapping[str, Any], command: str
) -> RunReport:
    """The report of the run, which the trainer keeps up to date from now on."""
    report = RunReport(
        config, data, trainer.context, model=trainer.model, plan=trainer.plan_now,
        bad_steps=lambda: trainer.bad_steps.count, data_digests=facts["data"], command=command,
    )  # fmt: skip
    trainer.add_callback(report)
    return report
