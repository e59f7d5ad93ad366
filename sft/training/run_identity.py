"""What makes a run this run: settings, data, names. Kept in each checkpoint, and compared when a run goes on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sft.checkpointing.checkpoints import check_same_run, check_steps_are_left
from sft.checkpointing.resume_point import ResumePoint
from sft.common.data_records import TrainingData
from sft.common.files import json_safe
from sft.common.run_records import Answer, BatchPlan, EvaluationResult
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_sha256, config_values
from sft.data.digest import rows_digest
from sft.reporting.summary import plan_facts


def facts_of_run(config: SFTConfig, data: TrainingData, resume_point: ResumePoint | None) -> dict[str, Any]:
    """What each checkpoint's manifest keeps, ready for JSON.

    Args:
        config: the whole.
        data: the rows.
        resume_point: the checkpoint to resume from. In the same folder it is the same run for the trackers too.
    """
    saved = resume_point.manifest if resume_point and resume_point.is_in(config.training.output_dir) else {}
    facts = {
        "configuration": config_values(config),
        "configuration_sha256": config_sha256(config),
        "data": {
            "train": rows_digest(data.train),
            "train_rows": len(data.train),
            "validation": None if data.validation is None else rows_digest(data.validation),
        },
        "wandb_run_id": saved.get("wandb_run_id") or uuid.uuid4().hex[:8],
    }
    return json_safe(facts)


def with_name_of_run(config: SFTConfig, resume_point: ResumePoint | None) -> SFTConfig:
    """The configuration with the name that the run has, where none is given now."""
    is_named = config.logging.run_name is not None
    if is_named or resume_point is None or not resume_point.is_in(config.training.output_dir):
        return config
    name = resume_point.manifest.get("configuration", {}).get("run_name")
    return replace(config, logging=replace(config.logging, run_name=name))


def check_resumable(resume_point: ResumePoint | None, facts: Mapping[str, Any], plan: BatchPlan) -> None:
    """Refuses to go on from a checkpoint of another run, or one that has nothing left; tells what has changed.

    Args:
        resume_point: None for a fresh start.
        facts: of this run.
        plan: of this run.

    Raises:
        ConfigError: naming what is in the way.
    """
    if resume_point is not None:
        check_same_run(resume_point, facts, plan_facts(plan), plan.world_size)
        check_steps_are_left(resume_point, plan.total_steps)


def first_evaluation(resume_point: ResumePoint | None, facts: Mapping[str, Any]) -> EvaluationResult | None:
    """The evaluation from before the first step, as the checkpoint's run made it; None if it must be made.

    Args:
        resume_point: the checkpoint to resume from; None for a fresh start.
        facts: of this run: on other validation data, or from another model, the result is another.
    """
    saved = _manifest_of_same_model(resume_point, facts)
    if saved.get("eval_before") is None or saved["data"]["validation"] != facts["data"]["validation"]:
        return None
    return EvaluationResult(**saved["eval_before"])


def first_answers(resume_point: ResumePoint | None, facts: Mapping[str, Any]) -> dict[str, Answer]:
    """Sample prompt -> its answer from before the first step, as the checkpoint's run had it.

    Args:
        resume_point: the checkpoint to resume from; None for a fresh start.
        facts: of this run: another model answers otherwise.
    """
    saved = _manifest_of_same_model(resume_point, facts).get("samples_before") or {}
    return {prompt: Answer(**answer) for prompt, answer in saved.items()}


def _manifest_of_same_model(resume_point: ResumePoint | None, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint's manifest; empty where there is none, or its run started from another model."""
    saved = resume_point.manifest if resume_point else {}
    is_same = saved and saved["configuration"]["model_name_or_path"] == facts["configuration"]["model_name_or_path"]
    return saved if is_same else {}
