"""What the report of a run is made of: everything that the run knows of itself at some moment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.common.data_records import DataReport
from sft.common.run_records import BatchPlan, ModelFootprint, SampleAnswer, TrainingResult

RUNNING, COMPLETED, INTERRUPTED, FAILED = "running", "completed", "interrupted", "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepAnswer:
    """What the model said to a prompt after a step (0: before training)."""

    step: int
    text: str
    ended: bool | None = None
    """Whether it ended by itself, by an end token; None where nobody looked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredPrompt:
    """A sample prompt with its answers, by step."""

    prompt: str
    reference: str | None
    """The answer that the data gives; None where it gives none."""
    answers: tuple[StepAnswer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where the run takes place, as its first process sees it."""

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
    """A run as it stands: while it trains, at its end, or where it was stopped."""

    name: str
    status: str
    """`running`, `completed`, `interrupted` or `failed`."""
    step: int
    """Optimizer steps trained so far."""
    plan: BatchPlan
    data: DataReport
    settings: Mapping[str, Any]
    """Every key of the configuration with its value in force, without secrets."""
    settings_yaml: str
    given: Mapping[str, str] = field(default_factory=dict)
    """Key -> where it was given, for those that were."""
    config_sha256: str = ""
    data_digests: Mapping[str, Any] = field(default_factory=dict)
    footprint: ModelFootprint | None = None
    model_class: str = ""
    machine: Machine
    is_chat: bool = True
    """Whether there are conversations among the training rows; else all of them are plain texts."""
    events: Sequence[Mapping[str, Any]] = ()
    """The lines of `metrics.jsonl`."""
    prompts: tuple[AnsweredPrompt, ...] = ()
    command: str
    """What was typed, without a word on resuming."""
    result: TrainingResult | None = None
    """None as long as it runs, and where it failed."""
    bad_steps: int = 0
    failure: str | None = None
    """What ended a run that failed, on one line."""
    ended_by: str | None = None
    """The signal that stopped it, as people write it."""
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
        """(step, loss) of each logged step; None where it was no finite number."""
        return [(event["step"], event["loss"]) for event in self.events if "loss" in event]

    def mean_of(self, name: str) -> float | None:
        """Mean of a logged figure over the log events of training; None where none has it."""
        values = [event[name] for event in self.events if "loss" in event and is_number(event.get(name))]
        return sum(values) / len(values) if values else None

    def last_of(self, name: str) -> float | None:
        """A figure as it was logged last; None where it never was."""
        return next((event[name] for event in reversed(self.events) if is_number(event.get(name))), None)


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def best_evaluation(evaluations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The evaluation with the lowest loss; the first of several; None where none has a loss."""
    return min((each for each in evaluations if is_number(each["eval_loss"])), key=_loss, default=None)


def _loss(evaluation: Mapping[str, Any]) -> float:
    return evaluation["eval_loss"]


def read_answers(path: str | Path) -> tuple[AnsweredPrompt, ...]:
    """The prompts of `samples.jsonl` in the order in which they first stand there; none where there is no such file.

    A line that a killed process left unfinished is passed over; of two answers to a prompt at a step (a run that goes
    on from a checkpoint may give them again) the later holds.
    """
    path = Path(path)
    if not path.is_file():
        return ()
    answers: dict[str, dict[int, StepAnswer]] = {}
    references: dict[str, str | None] = {}
    for line in _lines(path):
        prompt, step = str(line["prompt"]), int(line["step"])
        references[prompt] = line.get("reference")
        answers.setdefault(prompt, {})[step] = StepAnswer(step=step, text=str(line["answer"]), ended=line.get("ended"))
    return tuple(
        AnsweredPrompt(prompt=prompt, reference=references[prompt], answers=tuple(v for _, v in sorted(found.items())))
        for prompt, found in answers.items()
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and {"prompt", "step", "answer"} <= line.keys():
            yield line


def answers_of(samples: Sequence[SampleAnswer], last_step: int) -> tuple[AnsweredPrompt, ...]:
    """The answers of a training result, where no file has kept them."""
    return tuple(
        AnsweredPrompt(
            prompt=sample.prompt,
            reference=sample.reference,
            answers=(StepAnswer(step=0, text=sample.before), StepAnswer(step=last_step, text=sample.after)),
        )
        for sample in samples
    )
