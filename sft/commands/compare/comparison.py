"""Compares runs: settings and data that differ, results, and results that cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sft.checkpointing.same_run import IGNORED_KEYS
from sft.commands.compare.runs import ComparedRun
from sft.common.text import share_text, size
from sft.reporting.report.records import best_evaluation, is_number

NOT_RECORDED = "not recorded"
UNFINISHED = "unfinished"
IGNORED_SETTINGS = {*IGNORED_KEYS, "logging_dir"}
"""Settings that differ between any two runs."""
_MAX_DROPPED_LINES = 3
"""Lines of a damaged log that are named for each run."""
_DIGEST_LENGTH = 12
"""Characters of a digest that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRow:
    """A row of a comparison: its name, a text for each run, and the runs with the best value (if one is best)."""

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """Indices of runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The comparison of several runs."""

    names: tuple[str, ...]
    settings: tuple[ComparedRow, ...]
    """Keys, and versions of libraries, that differ."""
    data: tuple[ComparedRow, ...]
    """Counts and digests that differ."""
    results: tuple[ComparedRow, ...]
    warnings: tuple[str, ...]


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    """Compare runs; they keep their order."""
    return Comparison(
        names=tuple(run.name for run in runs),
        settings=(*_settings(runs), *_versions(runs)),
        data=tuple(row for row in _data(runs) if len(set(row.cells)) > 1),
        results=tuple(row for row in _results(runs) if any(cell != "" for cell in row.cells)),
        warnings=tuple(_warnings(runs)),
    )


def _settings(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in IGNORED_SETTINGS)
    rows = [ComparedRow(name=key, cells=tuple(_setting(run, key) for run in runs)) for key in keys]
    return [row for row in rows if len(set(row.cells)) > 1]


def _setting(run: ComparedRun, key: str) -> str:
    if not run.settings:
        return NOT_RECORDED
    return _yaml_text(run.settings[key]) if key in run.settings else ""


def _yaml_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _versions(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    packages = dict.fromkeys(package for run in runs for package in run.find("versions") or ())
    rows = [
        ComparedRow(
            name=f"version of {package}", cells=tuple(run.find("versions", package) or NOT_RECORDED for run in runs)
        )
        for package in packages
    ]
    return [row for row in rows if len(set(row.cells)) > 1]


def _data(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    counts = (("rows used", "rows_used"), ("tokens", "tokens"), ("supervised tokens", "supervised_tokens"))
    rows = []
    for split in ("train", "validation"):
        rows += [
            ComparedRow(name=f"{split} {name}", cells=tuple(_count(run, split, key) for run in runs))
            for name, key in counts
        ]
        rows.append(ComparedRow(name=f"{split} rows sha256", cells=tuple(_digest(run, split) for run in runs)))
    return rows


def _has_no_split(run: ComparedRun, split: str) -> bool:
    """Return whether the run recorded that it had no rows of a split."""
    data = run.find("data")
    return data is not None and data.get(split, "") is None


def _count(run: ComparedRun, split: str, key: str) -> str:
    value = run.find("data", split, key)
    return f"{value:,}" if is_number(value) else "none" if _has_no_split(run, split) else NOT_RECORDED


def _digest(run: ComparedRun, split: str) -> str:
    digest = run.find("data", "digests", split)
    return str(digest)[:_DIGEST_LENGTH] if digest else "none" if _has_no_split(run, split) else NOT_RECORDED


def _results(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    losses_compare = _validation_problem(runs) is None
    speeds_compare = _machine_problem(runs) is None

    def row(
        name: str, value: Callable[[ComparedRun], Any], form: Callable[[Any], str], best: Any = None
    ) -> ComparedRow:
        values = [value(run) for run in runs]
        numbers = [each for each in values if is_number(each)]
        indices: frozenset[int] = frozenset()
        if best is not None and len(set(numbers)) > 1:
            indices = frozenset(index for index, each in enumerate(values) if each == best(numbers))
        cells = tuple(form(each) if each is not None else "" for each in values)
        return ComparedRow(name=name, cells=cells, best=indices)

    def evaluated(key: str, which: str) -> Callable[[ComparedRun], Any]:
        return lambda run: _evaluated(run, key, which)

    def found(*keys: str) -> Callable[[ComparedRun], Any]:
        return lambda run: run.find(*keys)

    lowest, highest = (min if losses_compare else None), (max if losses_compare else None)
    fastest, smallest = (max if speeds_compare else None), (min if speeds_compare else None)
    integer, loss = "{:,}".format, "{:.4f}".format
    return [
        row("status", lambda run: run.find("status") or UNFINISHED, str),
        row("device", found("device"), str),
        row("processes", found("batch_plan", "world_size"), str),
        row("rows per step", found("batch_plan", "global_batch_size"), str),
        row("steps", _steps, integer),
        row("validation loss before", evaluated("eval_loss", "first"), loss),
        row("validation loss, best", evaluated("eval_loss", "best"), loss, lowest),
        row("  at step", evaluated("step", "best"), integer),
        row("validation loss, last", _last_loss, loss, lowest),
        row("token accuracy, last", evaluated("eval_token_accuracy", "last"), share_text, highest),
        row("sequence accuracy, last", evaluated("eval_sequence_accuracy", "last"), share_text, highest),
        row("training loss, last", _last_training_loss, loss),
        row("seconds", found("train", "seconds"), "{:,.0f}".format),
        row("examples/s", found("train", "examples_per_second"), "{:,.1f}".format, fastest),
        row("tokens/s", found("train", "tokens_per_second"), "{:,.0f}".format, fastest),
        row("peak memory", found("train", "peak_memory_bytes"), lambda num_bytes: size(round(num_bytes)), smallest),
        row("steps skipped", found("bad_steps"), integer),
    ]


def _steps(run: ComparedRun) -> int | None:
    steps = run.find("train", "steps")
    return steps if steps is not None else max((event["step"] for event in run.events), default=None)


def _evaluated(run: ComparedRun, key: str, which: str) -> Any:
    """Return a value of the `first` evaluation (before training), the `best` or the `last` one."""
    evaluations = run.evaluations
    if not evaluations:
        return None
    if which == "first":
        return evaluations[0].get(key) if evaluations[0]["step"] == 0 else None
    chosen = best_evaluation(evaluations) if which == "best" else evaluations[-1]
    return chosen.get(key) if chosen is not None else None


def _last_loss(run: ComparedRun) -> float | None:
    """Return the validation loss of the saved model, or the last one if the run did not finish."""
    after = run.find("eval_after", "loss")
    return after if is_number(after) else _evaluated(run, "eval_loss", "last")


def _last_training_loss(run: ComparedRun) -> float | None:
    return next((event["loss"] for event in reversed(run.events) if is_number(event.get("loss"))), None)


def _warnings(runs: Sequence[ComparedRun]) -> list[str]:
    warnings = [problem for problem in (_validation_problem(runs), _machine_problem(runs)) if problem]
    warnings += [sentence for run in runs for sentence in run.dropped_lines[:_MAX_DROPPED_LINES]]
    without_summary = [run.name for run in runs if not run.summary]
    if without_summary:
        warnings.append(f"{', '.join(without_summary)}: no run_summary.json: still running, or killed.")
    return warnings


def _validation_problem(runs: Sequence[ComparedRun]) -> str | None:
    """Return why validation results cannot be compared; None if they can."""
    evaluated = [run for run in runs if run.evaluations or run.find("eval_after") is not None]
    if len(evaluated) < 2:
        return None
    digests = {run.name: run.find("data", "digests", "validation") for run in evaluated}
    unknown = [name for name, digest in digests.items() if digest is None]
    known = {digest for digest in digests.values() if digest is not None}
    if len(known) > 1:
        return (
            "Validation results cannot be compared: the runs were evaluated on different rows, or on the same rows "
            "with a different tokenizer, template or max_seq_length."
        )
    if unknown:
        return (
            f"Validation results may not be comparable: {', '.join(unknown)} did not record the digest of its "
            "validation rows."
        )
    return None


def _machine_problem(runs: Sequence[ComparedRun]) -> str | None:
    """Return why speed and memory cannot be compared; None if they can."""
    machines = {
        (run.find("device"), run.find("batch_plan", "world_size")) for run in runs if run.find("device") is not None
    }
    if len(machines) > 1:
        return "Speed and memory cannot be compared: the runs used different devices, or different numbers of them."
    return None
