"""What is to know of the rows of a run, from their counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sft.common.data_records import DataReport, SplitReport
from sft.common.text import counted, note_text, percent

MANY_DROPPED = 0.1
"""Share of the rows read: more than that left out is another data set than was meant."""
DATA_RULE = (
    "Sound: no row is left out, cut where something is trained, repeated, or in training and validation both, and an "
    f"end token is trained in each. Not sound: leaked rows, more than {MANY_DROPPED:.0%} left out, or no trained end "
    "at all."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about the rows that a person should know."""

    text: str
    is_serious: bool = False


def data_findings(report: DataReport, dropped_by_stream: int = 0) -> list[Finding]:
    """All findings, those that make figures wrong first.

    Args:
        report: the counts.
        dropped_by_stream: rows of a stream that were left out while it was trained on.
    """
    found = list(_findings(report, dropped_by_stream))
    return sorted(found, key=lambda finding: not finding.is_serious)


def _findings(report: DataReport, dropped_by_stream: int) -> Iterator[Finding]:
    if report.leakage:
        rows = counted(report.leakage, "validation row")
        yield Finding(text=f"{rows} among the training rows too, so validation flatters", is_serious=True)
    names = ("training", "validation")
    for name, split in zip(names, report.splits, strict=False):
        yield from _split_findings(name, split)
    if dropped_by_stream:
        yield Finding(text=f"{counted(dropped_by_stream, 'row')} of the stream left out")
    if not report.is_complete:
        yield Finding(text="the training rows are streamed, and counts are of the first ones alone")


def _split_findings(name: str, split: SplitReport) -> Iterator[Finding]:
    dropped = split.num_dropped
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in split.rows_dropped.items())
        yield Finding(
            text=f"{dropped:,} of {split.rows_read:,} {name} rows left out ({percent(dropped, split.rows_read)}): "
            f"{reasons}",
            is_serious=dropped > MANY_DROPPED * split.rows_read,
        )
    cut = split.rows_that_lose_the_end
    if cut:
        yield Finding(text=f"{counted(cut, f'{name} row')} cut in what is trained (max_seq_length)")
    without = split.rows_used - split.rows_with_trained_end
    if without and split.rows_used:
        is_all = without == split.rows_used
        rows = f"no {name} row teaches" if is_all else f"{counted(without, f'{name} row')} without a trained end token"
        yield Finding(text=f"{rows} where to stop" if is_all else rows, is_serious=is_all and name == "training")
    if split.duplicates:
        rows = counted(split.duplicates, f"{name} row")
        yield Finding(text=f"{rows} that repeat{'s' if split.duplicates == 1 else ''} an earlier one")
    for note, count in split.notes.items():
        yield Finding(text=f"{name}: {note_text(note, count)}")
