"""The input of a report: everything that is known about a run at some point in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from sft.common.data_records import DataReport
from sft.common.json_lines import read_json_lines
from sft.common.run_records import BatchPlan, ModelFootprint, SampleAnswer, TrainingResult
from sft.reporting.samples_log import SAMPLES_SHAPE

RUNNING, COMPLETED, INTERRUPTED, FAILED = "running", "completed", "interrupted", "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepAnswer:
    """The model's answer to a prompt after a step (0: before training)."""

    step: int
    text: str
    ended: bool | None = None
    """Whether it ended with an end token; None if that was not recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredPrompt:
    """A sample prompt with its answers, in the order of steps."""

    prompt: str
    reference: str | None
    """The answer in the data; None without one."""
    answers: tuple[StepAnswer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The machine of the first process."""

    device: str
    device_name: str
    device_memory_bytes: int | None
    num_cores: int
    """CPU cores that a process may use."""
    processes_here: int
    """Processes of the run on this machine."""
    system: str
    versions: Mapping[str, str]

    @property
    def has_gpu(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRecords:
    """A run: while it trains, at its end, or where it was stopped."""

    name: str
    status: str
    """`running`, `completed`, `interrupted` or `failed`."""
    step: int
    """Optimizer steps trained so far."""
    plan: BatchPlan
    data: DataReport
    settings: Mapping[str, Any]
    """Every key of the configuration with its effective value, without secrets."""
    settings_yaml: str
    given: Mapping[str, str] = field(default_factory=dict)
    """Given keys -> where each was given."""
    config_sha256: str = ""
    data_digests: Mapping[str, Any] = field(default_factory=dict)
    footprint: ModelFootprint | None = None
    model_class: str = ""
    machine: Machine
    is_chat: bool = True
    """Whether any training row is a conversation; otherwise all are plain text."""
    events: Sequence[Mapping[str, Any]] = ()
    """The lines of `metrics.jsonl`."""
    prompts: tuple[AnsweredPrompt, ...] = ()
    command: str
    """The command line, without resume options."""
    result: TrainingResult | None = None
    """None while it runs and after a failure."""
    bad_steps: int = 0
    failure: str | None = None
    """The error of a failed run, on one line."""
    ended_by: str | None = None
    """Name of the signal that stopped it."""
    written_at: str = ""

    @property
    def is_running(self) -> bool:
        return self.status == RUNNING

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """Log events of evaluations, in the order of steps."""
        return [event for event in self.events if "eval_loss" in event]

    @property
    def training_losses(self) -> list[tuple[int, float | None]]:
        """(step, loss) of each logged step; None where it was NaN or inf."""
        return [(event["step"], event["loss"]) for event in self.events if "loss" in event]

    def mean_of(self, name: str) -> float | None:
        """Mean of a metric over the training log events; None if none has it."""
        values = [event[name] for event in self.events if "loss" in event and is_number(event.get(name))]
        return sum(values) / len(values) if values else None

    def num_of(self, name: str) -> int:
        """How many training log events have a metric."""
        return sum("loss" in event and is_number(event.get(name)) for event in self.events)

    def last_of(self, name: str) -> float | None:
        """The last logged value of a metric; None if it was never logged."""
        return next((event[name] for event in reversed(self.events) if is_number(event.get(name))), None)

    def figure(self, name: str) -> float | None:
        """A speed, utilization or peak of the whole run: the only source of each figure that is shown.

        That of the result, which `run_summary.json` and the log show too; until there is one, the mean of what was
        logged (of a peak the last). None if it is not known.
        """
        if self.result is not None:
            value = getattr(self.result, name)
            return value if is_number(value) else None
        return self.last_of(name) if name == "peak_memory_bytes" else self.mean_of(name)

    def tokens_at(self, step: int) -> float:
        """Supervised tokens trained until a step, in proportion to the steps between two log events; steps if no event
        has counts of tokens."""
        counts = {0: 0.0} | {
            event["step"]: event["supervised_tokens_seen"]
            for event in self.events
            if is_number(event.get("supervised_tokens_seen"))
        }
        if len(counts) == 1:
            return step
        known = sorted(counts)
        after = next((each for each in known if each >= step), known[-1])
        before = max((each for each in known if each < after), default=0)
        share = (step - before) / (after - before) if after > before else 0.0
        return counts[before] + share * (counts[after] - counts[before])


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a record is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def best_evaluation(evaluations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The (first) evaluation with the lowest loss; None if none has a finite loss."""
    return min((each for each in evaluations if is_number(each["eval_loss"])), key=_loss, default=None)


def _loss(evaluation: Mapping[str, Any]) -> float:
    return evaluation["eval_loss"]


def read_answers(path: str | Path) -> tuple[AnsweredPrompt, ...]:
    """The prompts of `samples.jsonl` in the order of first appearance; empty without the file.

    An incomplete line of a killed process is skipped. Of two answers to a prompt at one step, which a resumed run may
    write, the later one counts.
    """
    path = Path(path)
    if not path.is_file():
        return ()
    answers: dict[str, dict[int, StepAnswer]] = {}
    references: dict[str, str | None] = {}
    for line in read_json_lines(path, SAMPLES_SHAPE)[0]:
        prompt, step = line["prompt"], line["step"]
        references[prompt] = line.get("reference")
        answers.setdefault(prompt, {})[step] = StepAnswer(step=step, text=line["answer"], ended=line.get("ended"))
    return tuple(
        AnsweredPrompt(prompt=prompt, reference=references[prompt], answers=tuple(v for _, v in sorted(found.items())))
        for prompt, found in answers.items()
    )


def answers_of(samples: Sequence[SampleAnswer], last_step: int) -> tuple[AnsweredPrompt, ...]:
    """The answers of a training result, for runs without `samples.jsonl`."""
    return tuple(
        AnsweredPrompt(
            prompt=sample.prompt,
            reference=sample.reference,
            answers=(StepAnswer(step=0, text=sample.before), StepAnswer(step=last_step, text=sample.after)),
        )
        for sample in samples
    )
