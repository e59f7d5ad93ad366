"""Counts of prepared rows, computed from columns of a few bytes a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sft.common.data_records import DataReport, LengthReport, RowSource, SetReport, SourceReport, SplitReport
from sft.common.weight_records import WeightReport
from sft.data.dropped import DroppedRows
from sft.data.prepared import Split
from sft.data.remarks import CountedRemarks
from sft.data.rows import NOTE_FLAGS
from sft.data.store import LOST_END, LOST_PROMPT, SHORTENED, TRAINED_END, PreparedRows, RowColumns

EXAMPLES = 5
"""Duplicates and leaked rows that are named. All are counted."""
BINS = 24
"""Maximum number of bins in the histogram of lengths."""
FAR_LONGER = 8
"""If the longest row is more than this many times as long as the median, bins grow by a factor."""


def count_data(
    train: Split,
    epoch_rows: PreparedRows,
    validation: Split | None,
    sets: Mapping[tuple[str, str], Split] | None = None,
) -> DataReport:
    """The counts of all data, and the rows to evaluate that are training rows too.

    Args:
        train: The training rows, each once.
        epoch_rows: The training rows as often as an epoch takes them.
        validation: The validation rows, if there are any. Where they were held out of the training rows, the dropped
            rows, and remarks on rows, count as training rows (`Split.num_own`).
        sets: Kind and name of each evaluation set -> its rows.
    """
    digests = train.rows.columns().digest
    counted = []
    for (kind, name), split in (sets or {}).items():
        leaked, examples = _leakage(split, train, digests)
        report = _count_split(split, split.rows)
        counted.append(SetReport(kind=kind, name=name, split=report, leakage=leaked, leakage_examples=examples))
    train_report = _count_split(train, epoch_rows)
    if validation is None:
        return DataReport(train=train_report, sets=tuple(counted))
    held_out = len(validation.own) < len(validation.prepared)
    leaked, examples = _leakage(validation, train, digests)
    return DataReport(
        train=replace(train_report, remarks_include_validation=held_out),
        validation=_count_split(validation, validation.rows),
        leakage=leaked,
        leakage_examples=examples,
        sets=tuple(counted),
    )


def _leakage(split: Split, train: Split, digests: np.ndarray) -> tuple[int, tuple[tuple[RowSource, RowSource], ...]]:
    """How many rows are training rows too, and the first of them, each with that row.

    Args:
        split: The rows.
        train: The training rows, each once.
        digests: Of the training rows.
    """
    columns = split.rows.columns()
    leaked = np.flatnonzero(np.isin(columns.digest, digests) & (columns.piece <= 1))
    examples = []
    for row in leaked[:EXAMPLES].tolist():
        original = int(np.flatnonzero(digests == columns.digest[row])[0])
        examples.append((split.location(split.rows, row), train.location(train.rows, original)))
    return len(leaked), tuple(examples)


def locate_row(train: Split, epoch_rows: PreparedRows, row: int) -> str:
    """File and line of a row of an epoch, as `file:line`."""
    return str(train.location(epoch_rows, row))


def _count_split(split: Split, epoch_rows: PreparedRows) -> SplitReport:
    # Rows are counted by their first piece.
    rows = split.rows.select(np.flatnonzero(split.rows.columns().piece <= 1))
    columns, pieces = rows.columns(), int(np.count_nonzero(split.rows.columns().piece))
    dropped, remarks = DroppedRows(), CountedRemarks()
    for source in split.own:
        dropped.update(source.dropped)
        remarks.update(source.remarks)
    dropped_lengths = np.repeat(*np.asarray([*dropped.full_lengths.items()], dtype=np.int64).reshape(-1, 2).T)
    lost_end, lost_prompt = _count(columns, LOST_END), _count(columns, LOST_PROMPT)
    lost_answer = dropped.too_long["answer"]
    duplicates = _duplicates(columns.digest)
    lengths = split.rows.lengths
    sources = _source_reports(split, epoch_rows)
    return SplitReport(
        sources=sources,
        rows_read=len(rows) + dropped.counts.total(),
        rows_made=sum(source.rows_made for source in sources),
        rows_used=len(rows),
        rows_dropped=dict(dropped.counts),
        dropped_examples=tuple(dropped.examples),
        lengths=_length_report(np.concatenate([columns.full_length, dropped_lengths])),
        rows_too_long=lost_answer + lost_end + lost_prompt + dropped.too_long["end"] + dropped.too_long["prompt"],
        rows_that_lose_the_answer=lost_answer,
        rows_that_lose_the_end=lost_end + dropped.too_long["end"],
        rows_that_lose_only_prompt=lost_prompt + dropped.too_long["prompt"],
        rows_split=int(np.count_nonzero(columns.piece)),
        pieces=pieces,
        untrained_pieces=sum(source.untrained_pieces for source in split.own),
        rows_shortened=_count(columns, SHORTENED),
        rows_with_trained_end=_count(columns, TRAINED_END),
        notes={note: count for note, flag in NOTE_FLAGS.items() if (count := _count(columns, flag))},
        remarks=remarks.records(),
        tokens=int(lengths.sum()),
        supervised_tokens=int(split.rows.columns().num_supervised.sum(dtype=np.int64)),
        longest_row=int(lengths.max(initial=0)),
        tokens_an_epoch=int(epoch_rows.lengths.sum()),
        supervised_tokens_an_epoch=int(epoch_rows.columns().num_supervised.sum(dtype=np.int64)),
        duplicates=len(duplicates),
        duplicate_examples=tuple(
            (split.location(rows, later), split.location(rows, first))
            for later, first in duplicates[:EXAMPLES].tolist()
        ),
        weights=_weight_report(rows),
    )


def _weight_report(rows: PreparedRows) -> WeightReport | None:
    """The weights of the rows; None where every supervised token counts once, and no other."""
    found = rows.weights()
    if found is None or not (found.num_weighted.any() or found.num_prompt.any()):
        return None
    return WeightReport(
        rows=int(np.count_nonzero(found.num_weighted)),
        tokens=int(found.num_weighted.sum(dtype=np.int64)),
        lowest=float(found.lowest.min()),
        highest=float(found.highest.max()),
        prompt_tokens=int(found.num_prompt.sum(dtype=np.int64)),
    )


def _source_reports(split: Split, epoch_rows: PreparedRows) -> tuple[SourceReport, ...]:
    piece, source_of_row = split.rows.columns().piece, split.rows.source_indices()
    used = np.bincount(source_of_row[piece <= 1], minlength=len(split.prepared))
    pieces = np.bincount(source_of_row[piece > 0], minlength=len(split.prepared))
    in_epoch = np.bincount(epoch_rows.source_indices(), minlength=len(split.prepared))
    reports = []
    for number, source in enumerate(split.prepared):
        is_own = number < len(split.own)
        dropped: Mapping[str, int] = dict(source.dropped.counts) if is_own else {}
        num_rows = int(np.count_nonzero(source.rows.columns.piece <= 1)) + source.dropped.counts.total()
        reports.append(
            SourceReport(
                name=source.name,
                format_name=source.record_format.name,
                files=source.files,
                rows_read=int(used[number]) + Counter(dropped).total(),
                rows_used=int(used[number]),
                rows_dropped=dropped,
                pieces=int(pieces[number]),
                weight=source.weight,
                probability=source.probability,
                rows_an_epoch=int(in_epoch[number]),
                rows_made=num_rows - source.rows_read if is_own else 0,
                unused_columns=source.unused_columns,
            )
        )
    return tuple(reports)


def _count(columns: RowColumns, flag: int) -> int:
    return int(np.count_nonzero(columns.flags & flag))


def _length_report(full_lengths: np.ndarray) -> LengthReport | None:
    """Percentiles that are lengths of rows: the smallest `max_seq_length` that keeps this share of rows complete."""
    if not len(full_lengths):
        return None
    found = np.percentile(full_lengths, [50, 90, 95, 99, 100], method="inverted_cdf")
    median, p90, p95, p99, longest = (int(length) for length in found)
    edges = _bin_edges(int(full_lengths.min()), median, longest)
    counts, _ = np.histogram(full_lengths, bins=edges)
    return LengthReport(
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        longest=longest,
        bin_edges=tuple(edges.tolist()),
        bin_counts=tuple(counts.tolist()),
    )


def _bin_edges(shortest: int, median: int, longest: int) -> np.ndarray:
    """Integers from the shortest length to one above the longest, evenly spaced or by equal factors.

    Equal factors are used if a few rows are far longer than the rest: with even spacing, all others would share the
    first bin.
    """
    if longest + 1 - shortest <= BINS:
        return np.arange(shortest, longest + 2)
    spaced = np.geomspace if longest > FAR_LONGER * median else np.linspace
    edges = np.unique(np.round(spaced(max(shortest, 1), longest + 1, BINS + 1)).astype(np.int64))
    edges[0] = shortest
    return edges


def _duplicates(digests: np.ndarray) -> np.ndarray:
    """Rows that repeat an earlier row, each with the first one that it repeats: int64 `[D, 2]`, in row order."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    is_repeat = np.zeros(len(order), dtype=bool)
    is_repeat[1:] = ordered[1:] == ordered[:-1]
    # The sort is stable, so the first of each run of equal digests is the earliest row.
    first_of_run = np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(order))))
    pairs = np.stack([order[is_repeat], order[first_of_run[is_repeat]]], axis=1)
    return pairs[np.argsort(pairs[:, 0])]
