"""Counts of prepared rows: what a person may ask about a split, from columns that are a few bytes a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sft.common.data_records import DataReport, LengthReport, RowSource, SourceReport, SplitReport
from sft.data.rows import NOTE_FLAGS, Refusals
from sft.data.store import LOST_END, LOST_PROMPT, TRAINED_END, PreparedRows, RowColumns, StoredRows

EXAMPLES = 5
"""Duplicates and leaks that are named; all are counted."""
BINS = 24
"""Of the histogram of lengths, at most."""
FAR_LONGER = 8
"""Times the median: from there on the bins of the histogram grow by a factor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSource:
    """A source whose rows are on disk, and what became of the rows that are not."""

    name: str
    files: tuple[str, ...]
    weight: float
    format_name: str
    rows: StoredRows
    rows_read: int
    refusals: Refusals
    unused_columns: tuple[str, ...]

    def place(self, file: int, line: int) -> RowSource:
        return RowSource(file=self.files[file], line=int(line))


def split_report(
    sources: Sequence[PreparedSource], rows: PreparedRows, epoch_rows: PreparedRows | None = None, *, all_read: bool
) -> SplitReport:
    """The counts of a split.

    Args:
        sources: all that its rows are from.
        rows: its rows, each once.
        epoch_rows: its rows as often as an epoch takes them; None for once each.
        all_read: whether the rows that were dropped count here. They do not where the split is a part that was set
            aside from others: dropped rows stay with those.
    """
    epoch_rows = rows if epoch_rows is None else epoch_rows
    columns = rows.columns()
    parts = Refusals()
    for source in sources if all_read else ():
        parts.update(source.refusals)
    dropped_lengths = np.repeat(*np.asarray([*parts.full_lengths.items()], dtype=np.int64).reshape(-1, 2).T)
    full_lengths = np.concatenate([columns.full_length, dropped_lengths])
    lost_end, lost_prompt = _count(columns, LOST_END), _count(columns, LOST_PROMPT)
    lost_answer = parts.too_long["answer"]
    duplicates = _duplicates(columns.digest)
    lengths = rows.lengths
    return SplitReport(
        sources=_source_reports(sources, rows, epoch_rows, all_read=all_read),
        rows_read=len(rows) + parts.counts.total(),
        rows_used=len(rows),
        rows_dropped=dict(parts.counts),
        dropped_examples=tuple(parts.examples),
        lengths=_length_report(full_lengths),
        rows_too_long=lost_answer + lost_end + lost_prompt + parts.too_long["end"] + parts.too_long["prompt"],
        rows_that_lose_the_answer=lost_answer,
        rows_that_lose_the_end=lost_end + parts.too_long["end"],
        rows_that_lose_only_prompt=lost_prompt + parts.too_long["prompt"],
        rows_with_trained_end=_count(columns, TRAINED_END),
        notes={note: count for note, flag in NOTE_FLAGS.items() if (count := _count(columns, flag))},
        tokens=int(lengths.sum()),
        supervised_tokens=int(columns.num_supervised.sum(dtype=np.int64)),
        longest_row=int(lengths.max(initial=0)),
        tokens_an_epoch=int(epoch_rows.lengths.sum()),
        supervised_tokens_an_epoch=int(epoch_rows.columns().num_supervised.sum(dtype=np.int64)),
        duplicates=len(duplicates),
        duplicate_examples=tuple(
            (_place(sources, rows, columns, later), _place(sources, rows, columns, first))
            for later, first in duplicates[:EXAMPLES].tolist()
        ),
    )


def data_report(
    train: tuple[Sequence[PreparedSource], PreparedRows],
    train_report: SplitReport,
    validation: tuple[Sequence[PreparedSource], PreparedRows] | None,
    validation_report: SplitReport | None,
) -> DataReport:
    """The counts of all data, and the validation rows that are training rows too."""
    if validation is None or validation_report is None:
        return DataReport(train=train_report)
    (sources, rows), (val_sources, val_rows) = train, validation
    columns, val_columns = rows.columns(), val_rows.columns()
    leaked = np.flatnonzero(np.isin(val_columns.digest, columns.digest))
    examples = []
    for row in leaked[:EXAMPLES].tolist():
        same = int(np.flatnonzero(columns.digest == val_columns.digest[row])[0])
        examples.append((_place(val_sources, val_rows, val_columns, row), _place(sources, rows, columns, same)))
    return DataReport(
        train=train_report,
        validation=validation_report,
        leakage=len(leaked),
        leakage_examples=tuple(examples),
    )


def _source_reports(
    sources: Sequence[PreparedSource], rows: PreparedRows, epoch_rows: PreparedRows, *, all_read: bool
) -> tuple[SourceReport, ...]:
    used = np.bincount(rows.part_of_rows(), minlength=len(sources))
    in_epoch = np.bincount(epoch_rows.part_of_rows(), minlength=len(sources))
    reports = []
    for number, source in enumerate(sources):
        dropped: Mapping[str, int] = dict(source.refusals.counts) if all_read else {}
        reports.append(
            SourceReport(
                name=source.name,
                format_name=source.format_name,
                files=source.files,
                rows_read=int(used[number]) + Counter(dropped).total(),
                rows_used=int(used[number]),
                rows_dropped=dropped,
                weight=source.weight,
                rows_an_epoch=int(in_epoch[number]),
                unused_columns=source.unused_columns,
            )
        )
    return tuple(reports)


def _count(columns: RowColumns, flag: int) -> int:
    return int(np.count_nonzero(columns.flags & flag))


def _length_report(full_lengths: np.ndarray) -> LengthReport | None:
    """Percentiles as lengths of rows: the shortest `max_seq_length` that keeps so many of them whole."""
    if not len(full_lengths):
        return None
    found = np.percentile(full_lengths, [50, 90, 95, 99, 100], method="inverted_cdf")
    median, p90, p95, p99, longest = (int(length) for length in found)
    edges = _bin_edges(int(full_lengths.min()), median, longest)
    counts, _ = np.histogram(full_lengths, bins=edges)
    return LengthReport(
        median=median, p90=p90, p95=p95, p99=p99, longest=longest,
        bin_edges=tuple(edges.tolist()), bin_counts=tuple(counts.tolist()),
    )  # fmt: skip


def _bin_edges(shortest: int, median: int, longest: int) -> np.ndarray:
    """Whole numbers from the shortest length to one above the longest: evenly spaced, or by equal factors.

    Equal factors where a few rows are far longer than the rest, which would else all stand in the first bin.
    """
    if longest + 1 - shortest <= BINS:
        return np.arange(shortest, longest + 2)
    spaced = np.geomspace if longest > FAR_LONGER * median else np.linspace
    edges = np.unique(np.round(spaced(max(shortest, 1), longest + 1, BINS + 1)).astype(np.int64))
    edges[0] = shortest
    return edges


def _duplicates(digests: np.ndarray) -> np.ndarray:
    """Rows that repeat an earlier one, each with the first that it repeats: int64 `[D, 2]`, in the order of rows."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    is_repeat = np.zeros(len(order), dtype=bool)
    is_repeat[1:] = ordered[1:] == ordered[:-1]
    # The first of each run of equal digests is the earliest row: the sort is stable.
    first_of_run = np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(order))))
    pairs = np.stack([order[is_repeat], order[first_of_run[is_repeat]]], axis=1)
    return pairs[np.argsort(pairs[:, 0])]


def _place(sources: Sequence[PreparedSource], rows: PreparedRows, columns: RowColumns, row: int) -> RowSource:
    source = sources[int(rows.select(np.asarray([row])).part_of_rows()[0])]
    return source.place(int(columns.file[row]), int(columns.line[row]))
