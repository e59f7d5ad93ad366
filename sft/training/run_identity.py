"""What identifies a run: settings, data, precision, layout, names. Kept in each checkpoint, and compared on resume."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

from sft.checkpointing.checkpoints import check_same_run, check_steps_are_left
from sft.checkpointing.resume_point import ResumePoint
from sft.common.files import json_safe
from sft.common.machine_records import ComputeEnvironment
from sft.common.run_records import Answer, BatchPlan, EvaluationResult, Precision
from sft.common.secrets import hide_value
from sft.common.text import printable
from sft.common.training_data import TrainingData
from sft.configuration.batch_sizes import AUTO
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_sha256, config_values
from sft.data.digest import rows_digest
from sft.data.store import PreparedRows
from sft.processes.heap import keeps_freed_memory
from sft.processes.output import hide_known
from sft.reporting.environment import compute_environment
from sft.reporting.log_lines import batch_text, mixed_text
from sft.reporting.summary import plan_entries
from sft.training.decided_layout import LayoutFindings
from sft.training.prepared_model import PreparedModel

logger = logging.getLogger("sft.train")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataDigests:
    """Digests of the rows of each split: of their tokens and labels, not of the files that they come from."""

    train: str
    train_rows: int
    validation: str | None = None
    sets: Mapping[str, str] = field(default_factory=dict)
    """Of the test sets and the forgetting check: `test` or `test chats` -> digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """What makes a run this run. Known before the first step, and the same for all of the run."""

    configuration: Mapping[str, Any]
    """Every setting in force, without secrets."""
    configuration_sha256: str
    data: DataDigests
    wandb_run_id: str
    precision: Precision
    layout: str
    """`padding-free` or `padded`."""
    trials: LayoutFindings
    """What the layout was decided by."""
    environment: ComputeEnvironment
    own_rope: str | None = None
    """The kind of RoPE that each row gets by its own length; None in older checkpoints too."""

    def as_manifest(self) -> dict[str, Any]:
        """The part of a checkpoint's manifest that describes the run, ready for JSON."""
        return json_safe(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class BeforeTraining:
    """What was measured before the first step. Checkpoints keep it: a resumed run has other weights by then."""

    evaluation: EvaluationResult | None = None
    at_ends: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """`test_before` and `forgetting_before`, where there are such sets."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """Sample prompt -> answer."""

    def as_manifest(self) -> dict[str, Any]:
        """The part of a checkpoint's manifest that keeps it."""
        document: dict[str, Any] = {"eval_before": self.evaluation and self.evaluation.document()}
        document |= {name: result.document() for name, result in self.at_ends.items()}
        if self.answers:
            document["samples_before"] = {prompt: asdict(answer) for prompt, answer in self.answers.items()}
        return document


def identify_run(
    config: SFTConfig, data: TrainingData, prepared: PreparedModel, device: str, resume: ResumePoint | None = None
) -> RunIdentity:
    """The identity of the run that is about to start.

    Args:
        config: the whole configuration.
        data: the prepared rows.
        prepared: the model; its precision and layout are part of the identity.
        device: of this process.
        resume: the checkpoint to resume from. In the same output folder, trackers continue the same run.
    """
    known_id = None
    if resume is not None and resume.is_in(config.training.output_dir):
        known_id = resume.manifest.get("wandb_run_id")
    return RunIdentity(
        configuration=config_values(config),
        configuration_sha256=config_sha256(config),
        data=DataDigests(
            # `TrainingData` declares a protocol only: its package cannot import the class.
            train=rows_digest(cast(PreparedRows, data.train)),
            train_rows=len(data.train),
            validation=None if data.validation is None else rows_digest(cast(PreparedRows, data.validation)),
            sets={
                f"{kind} {name}": rows_digest(cast(PreparedRows, rows))
                for kind, sets in (("test", data.test_sets), ("forgetting", data.forgetting_sets))
                for name, rows in sets.items()
            },
        ),
        wandb_run_id=known_id or uuid.uuid4().hex[:8],
        precision=prepared.precision,
        layout=prepared.layout.name,
        trials=prepared.layout.findings,
        environment=compute_environment(
            device, reuses_freed_memory=keeps_freed_memory(config.training.reuse_freed_memory, device)
        ),
        own_rope=prepared.layout.own_rope,
    )


def decision_lines(identity: RunIdentity, plan: BatchPlan, resume: ResumePoint | None) -> list[str]:
    """What the run decided where settings leave it open, with the reasons: the comments of the resolved configuration.

    Args:
        identity: of the run.
        plan: the batch plan.
        resume: the checkpoint that the run resumes from.
    """
    found, environment = identity.trials, identity.environment
    sizes = "as set"
    if AUTO in plan.asked.values():
        saved = {} if resume is None else resume.batch_plan or {}
        is_kept = saved.get("asked") == plan.asked and saved.get("world_size") == plan.world_size
        sizes = f"as in {resume.name}" if resume is not None and is_kept else "found by trial"
    named = {"threads": environment.num_threads, "instructions": environment.instruction_set, **environment.versions}
    described = [f"{name} {value}" for name, value in {**named, **environment.variables}.items()]
    is_set = not found.is_padding_free and found.obstacle is None
    one_by_one = f"; document by document, since {found.kernel_obstacle}" if found.attends_one_by_one else ""
    lines = [
        f"precision: {identity.precision.weights} weights, {mixed_text(identity.precision)}",
        f"rows: {identity.layout}{f', since {found.obstacle}' if found.obstacle else ''} "
        f"({'padding_free: false' if is_set else found.reason})",
        f"shared leading tokens computed once: {_yes(found.shares_prefixes)}"
        f"{f', since {found.sharing_obstacle}' if found.sharing_obstacle else ''} ({found.reason})",
        f"loss at the output layer: {_yes(found.uses_output_layer)} ({found.reason})",
        f"attention of the model: {found.attention}{one_by_one}",
        *([] if found.compiles_layers is None else [f"layers compiled: {_yes(found.compiles_layers)}"]),
        f"batch: {batch_text(plan)}, in evaluation {plan.per_device_eval_batch_size} per device ({sizes})",
        f"freed memory reused: {_yes(environment.reuses_freed_memory)}",
        *([f"GPU allocator: {environment.gpu_allocator or 'as torch sets it'}"] if environment.gpu else []),
        f"computed by: {', '.join([environment.gpu or environment.cpu, *described])}",
    ]
    return [printable(line) for line in lines]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def with_shown_run_name(config: SFTConfig, resume: ResumePoint | None) -> SFTConfig:
    """The configuration with the name that trackers, records and the report show: without secrets.

    Where no name is set now, it is that of the resumed run.
    """
    name = config.logging.run_name
    if name is None and resume is not None and resume.is_in(config.training.output_dir):
        name = (resume.manifest.get("configuration") or {}).get("run_name")
    if name is not None and (masked := hide_known(hide_value(name))) != name:
        logger.info("run_name: trackers and records show it, so the secret in it is masked: %s.", masked)
        name = masked
    return replace(config, logging=replace(config.logging, run_name=name))


def check_resume(resume: ResumePoint | None, identity: RunIdentity, plan: BatchPlan) -> None:
    """Refuses to resume from a checkpoint of another run, or with no steps left; logs which settings changed.

    Raises:
        ConfigError: with each setting that must not change.
    """
    if resume is not None:
        check_same_run(resume, identity.as_manifest(), plan_entries(plan), plan.world_size)
        check_steps_are_left(resume, plan.total_steps)


def saved_before_training(
    resume: ResumePoint | None, identity: RunIdentity, validation_rows: Mapping[str, int]
) -> BeforeTraining:
    """What the resumed run measured before its first step, as far as it still holds for this run.

    With another base model nothing holds; with other validation data the evaluation does not.

    Args:
        resume: the checkpoint.
        identity: of this run.
        validation_rows: name of each validation set -> its rows.
    """
    if resume is None:
        return BeforeTraining()
    saved = resume.manifest
    base = (saved.get("configuration") or {}).get("model_name_or_path")
    if base != identity.configuration["model_name_or_path"]:
        return BeforeTraining()
    digests, evaluation = saved.get("data") or {}, saved.get("eval_before")
    if evaluation is not None and not evaluation.get("sets"):  # earlier versions had one set, and did not list it
        evaluation = {**evaluation, "sets": {"validation": {**evaluation, "rows": validation_rows.get("validation")}}}
    if evaluation is not None and (
        digests.get("validation") != identity.data.validation or evaluation["sets"].keys() != validation_rows.keys()
    ):
        evaluation = None
    at_ends = {
        name: EvaluationResult.from_document(saved[name])
        for name in ("test_before", "forgetting_before")
        if saved.get(name) and dict(digests.get("sets") or {}) == dict(identity.data.sets)
    }
    answers = saved.get("samples_before") or {}
    return BeforeTraining(
        evaluation=evaluation and EvaluationResult.from_document(evaluation),
        at_ends=at_ends,
        answers={prompt: _known_fields(Answer, answer) for prompt, answer in answers.items()},
    )


def _known_fields(record: Any, saved: Mapping[str, Any]) -> Any:
    """A record from what a checkpoint keeps of it; another version may have more fields."""
    return record(**{field.name: saved[field.name] for field in fields(record) if field.name in saved})
