"""The preflight report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.common.data_records import DataReport, RowPreview, RowSource, SourceReport, SplitReport
from sft.common.machine_records import Environment, MemoryAdvice, MemoryEstimate
from sft.common.run_records import BatchPlan
from sft.common.text import WIDTH, counted, first_of, note_text, percent, printable, size, wrapped
from sft.reporting.log_lines import batch_text, weights_text
from sft.reporting.preflight.memory_text import advice_lines, memory_lines, memory_rows
from sft.reporting.preflight.row_text import row_lines
from sft.reporting.remarks import split_remark_lines

if TYPE_CHECKING:
    from sft.processes.live_line import LiveLine

SHOWN_ROWS = 3
SHOWN_COLUMNS = 8
_BOLD, _GOOD, _BAD, _PLAIN = "\x1b[1m", "\x1b[32;1m", "\x1b[31;1m", "\x1b[0m"
_LABEL = 14
"""Columns of the labels on the left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """Everything that is known before the first step."""

    report: DataReport
    previews: Sequence[RowPreview]
    plan: BatchPlan | None
    """None without any row to train on; likewise the next two."""
    memory: MemoryEstimate | None
    environment: Environment | None
    problems: Sequence[str]
    notes: Sequence[str] = ()
    """What is odd, but possible."""
    max_seq_length: int
    last_step_rows: int | None = None
    """Rows (packs) of the last step of an epoch; None where it is not known, or full."""
    memory_budget_bytes: int | None = None
    """Memory that may be used per device; None if unknown."""
    advice: Sequence[MemoryAdvice] = ()
    """What to change if the prediction exceeds it."""


def preflight_lines(preflight: Preflight, *, colour: bool, terminal: "LiveLine | None" = None) -> list[str]:
    """The report in lines of about 100 columns. Nothing from the data or a path acts on the terminal.

    Args:
        preflight: the facts.
        colour: mark supervised text by colour (for a terminal) instead of the brackets `⟦` and `⟧`.
        terminal: draws the plan and the memory as tables; None: plain lines.
    """
    report = preflight.report
    sections: list[tuple[str, Iterator[str]]] = [
        ("Rows", _rows(report)),
        ("Lengths", _lengths(report.train, preflight.max_seq_length)),
        ("Supervised", _supervised(report)),
        ("First rows, as the model sees them", _previews(preflight.previews, colour)),
        ("Plan", _plan(preflight, terminal)),
        ("Environment", _environment(preflight.environment)),
        ("Notes", _notes(preflight.notes)),
    ]
    lines: list[str] = []
    for title, body in sections:
        shown = list(body)
        if shown:
            lines += ["", _painted(title, _BOLD, colour), *shown]
    return [*lines, "", *_verdict(preflight.problems, colour)]


def _labelled(label: str, text: str, *, depth: int = 1) -> list[str]:
    """`label   text`, with the text wrapped to the right of its label."""
    return wrapped(text, first=f"{'  ' * depth + label:<{_LABEL}} ", rest=" " * (_LABEL + 1))


def _rows(report: DataReport) -> Iterator[str]:
    if not report.is_complete:
        yield from _labelled("streamed", "these counts cover only the first training rows")
    for name, split in report.splits.items():
        yield from _labelled(
            name, f"{split.rows_read:,} read = {split.rows_used:,} used + {split.num_dropped:,} dropped"
        )
        for reason, count in split.rows_dropped.items():
            rows = [row for row in split.dropped_examples if row.problem.reason == reason]
            examples = first_of([str(row.source) for row in rows[:SHOWN_ROWS]], count)
            yield from _labelled("dropped", f"{count:,} {reason}: {examples}", depth=2)
            first_with = {row.problem.message: row for row in reversed(rows)}
            for row in sorted(first_with.values(), key=rows.index):
                yield from _labelled("", f"{row.source}: {row.problem.message}")
        if len(split.sources) > 1 or any(source.unused_columns for source in split.sources):
            for source in split.sources:
                yield from _labelled("source", _source_text(source), depth=2)
        for label, text in split_remark_lines(split):
            yield from _labelled(label, text, depth=2)
        yield from _labelled("duplicates", _pairs(split.duplicates, split.duplicate_examples, "repeats"), depth=2)
    if report.validation is not None:
        text = _pairs(report.leakage, report.leakage_examples, "is")
        where = "in the training data" if report.is_complete else "in the first training rows"
        is_shown = report.leakage or not report.is_complete
        yield from _labelled("leakage", f"{text} {where}" if is_shown else text, depth=2)
    for one in report.sets:
        leaks = _pairs(one.leakage, one.leakage_examples, "is")
        if one.kind == "validation":
            size = f"{one.name}: {counted(one.split.rows_used, 'row')}, {counted(one.split.tokens, 'token')}"
            yield from _labelled("set", f"{size}; in the training data: {leaks}", depth=2)
        else:
            yield from _labelled("leakage", f"{one.title}: {leaks}", depth=2)


def _source_text(source: SourceReport) -> str:
    text = (
        f"{source.name} ({source.format_name}): {source.rows_read:,} read = {source.rows_used:,} used + "
        f"{sum(source.rows_dropped.values()):,} dropped; {source.share}, "
        f"{counted(source.rows_an_epoch, 'row')} per epoch"
    )
    if source.unused_columns:
        text += f"; unused columns: {first_of(source.unused_columns[:SHOWN_COLUMNS], len(source.unused_columns))}"
    return text


def _pairs(count: int, examples: Sequence[tuple[RowSource, RowSource]], word: str) -> str:
    if not count:
        return "none"
    pairs = [f"{row} {word} {original}" for row, original in examples[:SHOWN_ROWS]]
    return f"{count:,}: {first_of(pairs, count)}"


def _lengths(train: SplitReport, max_seq_length: int) -> Iterator[str]:
    lengths = train.lengths
    if lengths is None:
        yield from _labelled("tokens", "no row could be tokenized")
        return
    yield from _labelled(
        "tokens",
        f"before truncation: median {lengths.median:,}, 90% up to {lengths.p90:,}, 95% up to {lengths.p95:,}, "
        f"99% up to {lengths.p99:,}, longest {lengths.longest:,}",
    )
    if train.rows_split or train.rows_shortened:
        yield from _labelled(
            "too long",
            f"{counted(train.rows_split, 'row')} split into {counted(train.pieces, 'piece')}, "
            f"{counted(train.rows_shortened, 'row')} shortened to the latest turns; "
            f"{counted(train.rows_too_long, 'row')} dropped (max_seq_length {max_seq_length:,})",
        )
        return
    if not train.rows_too_long:
        yield from _labelled("too long", f"none: every row fits into max_seq_length {max_seq_length:,}")
        return
    yield from _labelled(
        "too long",
        f"{counted(train.rows_too_long, 'row')} ({percent(train.rows_too_long, train.rows_read)}) longer than "
        f"max_seq_length {max_seq_length:,}. Truncation removes all supervised tokens of "
        f"{train.rows_that_lose_the_answer:,}, the last ones of {train.rows_that_lose_the_end:,}, only prompt tokens "
        f"of {train.rows_that_lose_only_prompt:,}",
    )
    yield from _labelled(
        "to keep",
        f"95% of the rows in full: max_seq_length {lengths.p95:,}; 99%: {lengths.p99:,}; all: {lengths.longest:,}",
    )


def _supervised(report: DataReport) -> Iterator[str]:
    train = report.train
    share = f"{train.supervised_tokens:,} of {train.tokens:,} ({percent(train.supervised_tokens, train.tokens)})"
    yield from _labelled("tokens", share)
    for name, split in report.splits.items():
        if split.weights is not None:
            yield from _labelled("weights" if name == "train" else name, weights_text(split.weights, split.rows_used))
    without = train.rows_used - train.rows_with_trained_end
    missing = f"; the other {without:,} do not teach the model when to stop" if without else ""
    yield from _labelled(
        "end tokens",
        f"trained in {train.rows_with_trained_end:,} of {counted(train.rows_used, 'row')}{missing}",
    )
    for name, split in report.splits.items():
        for note, count in split.notes.items():
            yield from _labelled("note" if name == "train" else name, note_text(note, count))


def _previews(previews: Sequence[RowPreview], colour: bool) -> Iterator[str]:
    if not previews:
        return
    sign = "green" if colour else "between ⟦ and ⟧"
    yield f"  Supervised text is {sign}; ⏎ is a line break; escapes such as \\x1b are invisible characters."
    for preview in previews:
        yield ""
        head = f"  row {preview.number:,}  {preview.source}  "
        if preview.problem is not None:
            yield from wrapped(
                f"dropped, {preview.problem.reason}: {preview.problem.message}", first=printable(head), rest=" " * 8
            )
            continue
        cut = "".join(f", {change}" for change in preview.changes)
        if preview.was_truncated:
            cut += ", truncated to max_seq_length"
        yield printable(f"{head}{counted(preview.num_tokens, 'token')}, {preview.num_supervised:,} supervised{cut}")
        yield from (f"    {line}" for line in row_lines(preview.segments, width=WIDTH - 4, colour=colour))


def _plan(preflight: Preflight, terminal: "LiveLine | None") -> Iterator[str]:
    if preflight.plan is None:
        yield from _labelled("none", "no row is left to train on")
        return
    rows, memory, environment = list(_plan_rows(preflight, preflight.plan)), preflight.memory, preflight.environment
    disk = [("disk", _disk_text(environment))] if environment is not None else []
    device_memory = environment.device_memory_bytes if environment is not None else None
    if terminal is not None:
        yield from terminal.table("", ["", ""], [*rows, *disk], text_columns=2)
    else:
        for row in rows:
            yield from _labelled(*row)
    if memory is not None:
        if terminal is not None:
            header, *kinds = memory_rows(memory, device_memory)
            yield from ("", *terminal.table("", header, kinds))
        else:
            yield from memory_lines(memory, device_memory)
        yield from advice_lines(memory, preflight.advice, preflight.memory_budget_bytes)
    for row in disk if terminal is None else ():
        yield from _labelled(*row)


def _plan_rows(preflight: Preflight, plan: BatchPlan) -> Iterator[tuple[str, str]]:
    """Rows per step and the steps: labels and texts."""
    train = preflight.report.train
    tokens = _tokens_per_step(train.tokens, train.tokens_an_epoch, plan, train)
    supervised = _tokens_per_step(train.supervised_tokens, train.supervised_tokens_an_epoch, plan, train)
    yield "per step", f"{batch_text(plan)}, about {tokens:,} tokens ({supervised:,} supervised)"
    if plan.packs is not None:
        packs = plan.packs
        yield "packs", f"{packs.num_packs:,} packs of up to {packs.capacity:,} tokens per epoch, {packs.fill:.1%} full"
    steps = counted(plan.total_steps, "step")
    if preflight.report.is_complete:
        last = preflight.last_step_rows
        of_last = "" if last is None else f" (the last of {counted(last, plan.unit.removesuffix('s'))})"
        yield (
            "per epoch",
            f"{counted(plan.steps_per_epoch, 'step')}{of_last}, {counted(train.tokens_an_epoch, 'token')} "
            f"({train.supervised_tokens_an_epoch:,} supervised); {steps} in total",
        )
    else:
        yield "total", steps


def _tokens_per_step(tokens: int, an_epoch: int, plan: BatchPlan, train: SplitReport) -> int:
    """Tokens of a step with rows of mean length, or packs of mean fill."""
    if plan.packs is not None:
        return round(an_epoch / max(plan.packs.num_packs, 1) * plan.global_batch_size)
    return round(tokens / train.rows_used * plan.global_batch_size) if train.rows_used else 0


def _disk_text(environment: Environment) -> str:
    text = f"{size(environment.needed_disk_bytes)} needed, {size(environment.free_disk_bytes)} free: "
    if environment.num_checkpoints:
        at_once = counted(environment.checkpoints_at_once, "checkpoint")
        text += f"up to {at_once} of {size(environment.checkpoint_bytes)}, "
    text += f"final model {size(environment.final_model_bytes)}"
    if environment.needed_disk_bytes > environment.free_disk_bytes:
        text += ". DOES NOT FIT: free disk space, or lower save_total_limit"
    return text


def _environment(environment: Environment | None) -> Iterator[str]:
    if environment is None:
        return
    memory = f", {size(environment.device_memory_bytes)}" if environment.device_memory_bytes else ""
    yield from _labelled(
        "device",
        f"{environment.device} ({environment.device_name}){memory}; {counted(environment.cpu_count, 'core')}, "
        f"{counted(environment.num_processes, 'process')}",
    )
    yield from _labelled("versions", ", ".join(f"{name} {number}" for name, number in environment.versions.items()))


def _notes(notes: Sequence[str]) -> Iterator[str]:
    for number, note in enumerate(notes, start=1):
        yield from wrapped(" ".join(note.splitlines()), first=f"  {number}. ", rest="     ")


def _verdict(problems: Sequence[str], colour: bool) -> list[str]:
    if not problems:
        return [_painted("OK: training would start.", _GOOD, colour)]
    lines = [_painted("NOT OK: training would not start.", _BAD, colour)]
    for number, problem in enumerate(problems, start=1):
        lines += wrapped(" ".join(problem.splitlines()), first=f"  {number}. ", rest="     ")
    return lines


def _painted(text: str, style: str, colour: bool) -> str:
    return f"{style}{text}{_PLAIN}" if colour else text
