"""The preflight report as lines for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reporting.console import counted_lines, note_lines, plan_line
from sft_types import BatchPlan, DataReport, Environment, MemoryEstimate, RowPreview, SplitReport

LONGEST_UNTRAINED = 240
"""Characters of a stretch that is not trained; of longer ones the middle is left out."""
LONGEST_TRAINED = 600
_GREEN, _DIM, _BOLD, _PLAIN = "\x1b[32;1m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """All that is known before the first step."""

    report: DataReport
    previews: Sequence[RowPreview]
    plan: BatchPlan | None
    """None where no row is left to plan with; and so are the next two."""
    memory: MemoryEstimate | None
    environment: Environment | None
    problems: Sequence[str]
    max_seq_length: int


def preflight_lines(preflight: Preflight, *, colour: bool) -> list[str]:
    """What a person reads.

    Args:
        preflight: what there is to say.
        colour: mark what is trained by colour (for a terminal); else by the brackets `⟦` and `⟧`.
    """
    report = preflight.report
    sections: list[tuple[str, Iterator[str]]] = [
        ("Rows", _row_lines(report)),
        ("Lengths", _length_lines(report.train, preflight.max_seq_length)),
        ("Trained", _trained_lines(report.train)),
        ("Rows as the model sees them", _preview_lines(preflight.previews, colour)),
        ("Plan", _plan_lines(preflight)),
    ]
    lines = []
    for title, body in sections:
        lines += ["", f"{_BOLD}{title}{_PLAIN}" if colour else title, *(f"  {line}" for line in body)]
    return [*lines, "", *_verdict(preflight.problems)]


def _row_lines(report: DataReport) -> Iterator[str]:
    if not report.is_complete:
        yield "The data is streamed: these are its first rows alone."
    for name, split in zip(("train", "validation"), report.splits, strict=False):
        yield from counted_lines(name, split)
        if len(split.sources) > 1:
            for source in split.sources:
                dropped = sum(source.rows_dropped.values())
                yield (
                    f"  {source.name} ({source.format_name}): {source.rows_read:,} read, {source.rows_used:,} used, "
                    f"{dropped:,} dropped; weight {source.weight:g}, {source.rows_an_epoch:,} rows an epoch"
                )
        first = [f"{row} is {original}" for row, original in split.duplicate_examples[:3]]
        yield f"  duplicates: {split.duplicates:,}" + (f" ({'; '.join(first)})" if first else "")
    if report.validation is not None:
        first = [f"{row} is {original}" for row, original in report.leakage_examples[:3]]
        yield f"validation rows that are training rows too: {report.leakage:,}" + (
            f" ({'; '.join(first)})" if first else ""
        )


def _length_lines(train: SplitReport, max_seq_length: int) -> Iterator[str]:
    lengths = train.lengths
    if lengths is None:
        yield "no row could be tokenized"
        return
    yield (
        f"tokens of whole rows: median {lengths.median:,}, 90 % {lengths.p90:,}, 95 % {lengths.p95:,}, "
        f"99 % {lengths.p99:,}, longest {lengths.longest:,}"
    )
    if not train.rows_too_long:
        yield f"max_seq_length {max_seq_length:,} keeps all rows whole"
        return
    yield (
        f"longer than max_seq_length {max_seq_length:,}: {train.rows_too_long:,} rows. "
        f"{train.rows_that_lose_the_answer:,} lose all of the answer, {train.rows_that_lose_the_end:,} its end, "
        f"{train.rows_that_lose_only_prompt:,} only prompt"
    )
    yield f"to keep 95 % whole: {lengths.p95:,}; 99 %: {lengths.p99:,}; 100 %: {lengths.longest:,}"


def _trained_lines(train: SplitReport) -> Iterator[str]:
    yield f"{train.supervised_tokens:,} of {train.tokens:,} tokens ({train.supervised_share:.1%})"
    yield f"an end token is trained in {train.rows_with_trained_end:,} of {train.rows_used:,} rows"
    yield from note_lines(train)


def _preview_lines(previews: Sequence[RowPreview], colour: bool) -> Iterator[str]:
    legend = f"{_GREEN}green{_PLAIN}" if colour else "between ⟦ and ⟧"
    yield f"trained is what stands {'in ' if colour else ''}{legend}"
    for preview in previews:
        yield ""
        head = f"row {preview.number}, {preview.source}: "
        if preview.problem is not None:
            yield f"{head}dropped, {visible(preview.problem.message)} ({preview.problem.reason})"
            continue
        cut = ", cut to max_seq_length" if preview.was_truncated else ""
        yield f"{head}{preview.num_tokens:,} tokens, {preview.num_supervised:,} trained{cut}"
        yield from _segment_lines(preview, colour)


def _segment_lines(preview: RowPreview, colour: bool) -> Iterator[str]:
    """The row's text, line by line; colour begins anew on each line."""
    opening, closing = (_GREEN, _PLAIN) if colour else ("⟦", "⟧")
    line = ""
    for segment in preview.segments:
        text = _shortened(segment.text, LONGEST_TRAINED if segment.trained else LONGEST_UNTRAINED)
        for number, part in enumerate(text.split("\n")):
            if number:
                yield f"| {line}"
                line = ""
            shown = visible(part)
            if segment.trained and shown:
                line += f"{opening}{shown}{closing}"
            elif shown:
                line += f"{_DIM}{shown}{_PLAIN}" if colour else shown
    if line:
        yield f"| {line}"


def _plan_lines(preflight: Preflight) -> Iterator[str]:
    plan, memory, environment = preflight.plan, preflight.memory, preflight.environment
    if plan is None or memory is None or environment is None:
        yield "none: no row is left to train on"
        return
    train = preflight.report.train
    yield plan_line(plan, environment.device).removeprefix("Plan: ")
    if preflight.report.is_complete:
        yield (
            f"{train.tokens_an_epoch:,} tokens an epoch, {train.supervised_tokens_an_epoch:,} of them trained; "
            f"about {train.tokens_an_epoch // plan.steps_per_epoch:,} tokens a step"
        )
    known = environment.device_memory_bytes
    yield (
        f"memory, roughly: {gib(memory.total_bytes)}"
        + (f" of {gib(known)}" if known else "")
        + f" (weights {gib(memory.weights_bytes)}, gradients {gib(memory.gradients_bytes)}, optimizer "
        f"{gib(memory.optimizer_bytes)}, activations {gib(memory.activations_bytes)}, logits "
        f"{gib(memory.logits_bytes)})"
    )
    if known and memory.total_bytes > known:
        yield "  more than there is: smaller per_device_train_batch_size or max_seq_length, or gradient_checkpointing"
    kept = "all" if environment.checkpoints_kept is None else environment.checkpoints_kept
    yield (
        f"disk: {gib(environment.needed_disk_bytes)} needed at most ({environment.num_checkpoints:,} checkpoints of "
        f"{gib(environment.checkpoint_bytes)}, {kept} kept), {gib(environment.free_disk_bytes)} free"
    )
    if environment.needed_disk_bytes > environment.free_disk_bytes:
        yield "  more than there is: make room, or lower save_total_limit"
    versions = ", ".join(f"{name} {number}" for name, number in environment.versions.items())
    yield f"{environment.device_name}, {environment.cpu_count} cores, {environment.num_processes} processes"
    yield versions


def _verdict(problems: Sequence[str]) -> list[str]:
    if not problems:
        return ["Sound: a run would start."]
    return ["Not sound. A run would not start:", *(f"  {n}. {problem}" for n, problem in enumerate(problems, start=1))]


def visible(text: str) -> str:
    """Text that a terminal shows as it is: control and formatting characters become their escapes."""
    return "".join(
        character
        if not unicodedata.category(character).startswith("C") or character in "\u200d"
        else _escape(character)
        for character in text
    )


def gib(num_bytes: int) -> str:
    """A size in the unit that suits it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size / 10:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 2**10:,.1f} KiB"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
