"""Runs side by side: what differed in settings and data, what came of each, and which figures cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.common.errors import ConfigError
from sft.common.text import share_text, size
from sft.reporting.metrics_log import read_metrics
from sft.reporting.report.records import best_evaluation, is_number
from sft.reporting.run_record import read_run_record

UNKNOWN = "not recorded"
UNFINISHED = "unfinished"
NOT_COMPARED = {"output_dir", "logging_dir"}
"""Where a run writes says nothing of it."""
_DIGEST = 12
"""Characters of a digest that are shown: enough to tell two apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """A run as its folder tells it; empty where an earlier version, or a run that was killed, left nothing."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()

    def find(self, *path: str) -> Any:
        """A value of the summary by its keys; None where one of them is not there."""
        value: Any = self.summary
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        return [event for event in self.events if is_number(event.get("eval_loss"))]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRow:
    """A line of a comparison: what it is of, its text for each run, and which of them are the best (if any is)."""

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that there is to say of several runs."""

    names: tuple[str, ...]
    settings: tuple[ComparedRow, ...]
    """Only keys, and versions of libraries, that differ."""
    data: tuple[ComparedRow, ...]
    """Only counts and digests that differ."""
    figures: tuple[ComparedRow, ...]
    warnings: tuple[str, ...]


def read_run(folder: str | Path, name: str | None = None) -> ComparedRun:
    """The records of a run.

    Args:
        folder: its `output_dir`.
        name: what to call it; by itself as the folder was given.

    Raises:
        ConfigError: if there is no run in it, or its records cannot be read.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ConfigError(f"command line: there is no folder '{folder}'. Name the output_dir of a run.")
    record, metrics = read_run_record(place), place / "metrics.jsonl"
    if not record.summary and not metrics.is_file():
        raise ConfigError(
            f"command line: '{folder}' holds no run: neither run_summary.json nor metrics.jsonl is there. Name the "
            "output_dir of a run."
        )
    try:
        events = [event for event in read_metrics(metrics) if "step" in event] if metrics.is_file() else []
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{metrics}: cannot be read: {error}. Mend it, or move it away.") from None
    return ComparedRun(name=name or str(folder), settings=_flat(record.settings), summary=record.summary, events=events)


def short_names(folders: Sequence[str]) -> list[str]:
    """Folders by their last part; where two have the same, by as many as tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    longest = max(map(len, parts))

    def name(own: tuple[str, ...]) -> str:
        tails = ((own[-length:], [each[-length:] for each in parts]) for length in range(1, longest + 1))
        return str(Path(*next((tail for tail, others in tails if others.count(tail) == 1), own)))

    return [name(own) for own in parts]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys by their path: `lora_config.r`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    """The runs side by side, in the order in which they are given."""
    return Comparison(
        names=tuple(run.name for run in runs),
        settings=(*_settings(runs), *_versions(runs)),
        data=tuple(row for row in _data(runs) if len(set(row.cells)) > 1),
        figures=tuple(row for row in _figures(runs) if any(cell != "" for cell in row.cells)),
        warnings=tuple(_warnings(runs)),
    )


def _settings(runs: Sequence[ComparedRun]) -> tuple[ComparedRow, ...]:
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NOT_COMPARED)
    rows = []
    for key in keys:
        cells = tuple(
            UNKNOWN if not run.settings else _shown(run.settings[key]) if key in run.settings else "" for run in runs
        )
        if len(set(cells)) > 1:
            rows.append(ComparedRow(name=key, cells=cells))
    return tuple(rows)


def _versions(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    packages = dict.fromkeys(package for run in runs for package in run.find("versions") or ())
    rows = [
        ComparedRow(name=f"version of {package}", cells=tuple(run.find("versions", package) or UNKNOWN for run in runs))
        for package in packages
    ]
    return [row for row in rows if len(set(row.cells)) > 1]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _data(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    rows = []
    for split in ("train", "validation"):
        counts = (("rows used", "rows_used"), ("tokens", "tokens"), ("trained tokens", "supervised_tokens"))
        rows += [
            ComparedRow(name=f"{split} {name}", cells=tuple(_count(run, split, key) for run in runs))
            for name, key in counts
        ]
        rows.append(ComparedRow(name=f"{split} rows sha256", cells=tuple(_digest(run, split) for run in runs)))
    return rows


def _has_none(run: ComparedRun, split: str) -> bool:
    """Whether the run is known to have had no such rows."""
    data = run.find("data")
    return data is not None and data.get(split, "") is None


def _count(run: ComparedRun, split: str, key: str) -> str:
    value = run.find("data", split, key)
    return f"{value:,}" if is_number(value) else "none" if _has_none(run, split) else UNKNOWN


def _digest(run: ComparedRun, split: str) -> str:
    digest = run.find("data", "digests", split)
    return str(digest)[:_DIGEST] if digest else "none" if _has_none(run, split) else UNKNOWN


def _figures(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    losses_compare = _validation_problem(runs) is None
    speeds_compare = _machine_problem(runs) is None

    def row(
        name: str, value: Callable[[ComparedRun], Any], form: Callable[[Any], str], best: Any = None
    ) -> ComparedRow:
        values = [value(run) for run in runs]
        known = [each for each in values if is_number(each)]
        winners: frozenset[int] = frozenset()
        if best is not None and len(set(known)) > 1:
            winners = frozenset(place for place, each in enumerate(values) if each == best(known))
        return ComparedRow(
            name=name, cells=tuple(form(each) if each is not None else "" for each in values), best=winners
        )

    lowest, highest = (min if losses_compare else None), (max if losses_compare else None)
    fastest, smallest = (max if speeds_compare else None), (min if speeds_compare else None)
    return [
        row("status", lambda run: run.find("status") or UNFINISHED, str),
        row("device", lambda run: run.find("device"), str),
        row("processes", lambda run: run.find("batch_plan", "world_size"), str),
        row("rows a step", lambda run: run.find("batch_plan", "global_batch_size"), str),
        row("steps", _steps, "{:,}".format),
        row("validation loss before", lambda run: _evaluated(run, "eval_loss", "first"), "{:.4f}".format),
        row("validation loss, best", lambda run: _evaluated(run, "eval_loss", "best"), "{:.4f}".format, lowest),
        row("  at step", lambda run: _evaluated(run, "step", "best"), "{:,}".format),
        row("validation loss, last", _last_loss, "{:.4f}".format, lowest),
        row("token accuracy, last", lambda run: _evaluated(run, "eval_token_accuracy", "last"), share_text, highest),
        row(
            "sequence accuracy, last", lambda run: _evaluated(run, "eval_sequence_accuracy", "last"), share_text,
            highest,
        ),
        row("training loss, last", _last_training_loss, "{:.4f}".format),
        row("seconds", lambda run: run.find("train", "seconds"), "{:,.0f}".format),
        row("examples/s", lambda run: run.find("train", "examples_per_second"), "{:,.1f}".format, fastest),
        row("tokens/s", lambda run: run.find("train", "tokens_per_second"), "{:,.0f}".format, fastest),
        row("memory at most", lambda run: run.find("train", "peak_memory_bytes"), _memory, smallest),
        row("steps left out", lambda run: run.find("bad_steps"), "{:,}".format),
    ]  # fmt: skip


def _memory(num_bytes: float) -> str:
    return size(round(num_bytes))


def _steps(run: ComparedRun) -> int | None:
    trained = run.find("train", "steps")
    return trained if trained is not None else max((event["step"] for event in run.events), default=None)


def _evaluated(run: ComparedRun, field_name: str, which: str) -> Any:
    evaluations = run.evaluations
    if not evaluations:
        return None
    if which == "first":
        return evaluations[0].get(field_name) if evaluations[0]["step"] == 0 else None
    chosen = best_evaluation(evaluations) if which == "best" else evaluations[-1]
    return chosen.get(field_name) if chosen is not None else None


def _last_loss(run: ComparedRun) -> float | None:
    """Of the model that was saved, where the run came to its end."""
    after = run.find("eval_after", "loss")
    return after if is_number(after) else _evaluated(run, "eval_loss", "last")


def _last_training_loss(run: ComparedRun) -> float | None:
    return next((event["loss"] for event in reversed(run.events) if is_number(event.get("loss"))), None)


def _warnings(runs: Sequence[ComparedRun]) -> list[str]:
    found = [problem for problem in (_validation_problem(runs), _machine_problem(runs)) if problem]
    without = [run.name for run in runs if not run.summary]
    if without:
        found.append(f"{', '.join(without)}: no run_summary.json; the run goes on, or was killed.")
    return found


def _validation_problem(runs: Sequence[ComparedRun]) -> str | None:
    """Why validation figures cannot be compared; None where they can."""
    with_figures = [run for run in runs if run.evaluations or run.find("eval_after") is not None]
    if len(with_figures) < 2:
        return None
    digests = {run.name: run.find("data", "digests", "validation") for run in with_figures}
    unknown = [name for name, digest in digests.items() if digest is None]
    known = {digest for digest in digests.values() if digest is not None}
    if len(known) > 1:
        return (
            "Validation figures cannot be compared: the runs were evaluated on other rows, or on the same rows by "
            "another tokenizer, template or max_seq_length."
        )
    if unknown:
        return (
            f"Whether validation figures can be compared is not known: {', '.join(unknown)} did not record the digest "
            "of its validation rows."
        )
    return None


def _machine_problem(runs: Sequence[ComparedRun]) -> str | None:
    """Why speed and memory cannot be compared; None where they can."""
    machines = {
        (run.find("device"), run.find("batch_plan", "world_size")) for run in runs if run.find("device") is not None
    }
    if len(machines) > 1:
        return "Speed and memory cannot be compared: the runs had other devices, or another number of them."
    return None
