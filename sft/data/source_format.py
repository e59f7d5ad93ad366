"""The record format of a source, chosen by the columns of its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from sft.common.did_you_mean import did_you_mean
from sft.common.errors import DataError
from sft.data.row_functions import DELIBERATE_DROPS
from sft.data.sources.load import Chunk, Source
from sft.prompting.formats import FORMATS, RecordFormat, find_format, format_named

SAMPLED_ROWS = 1000
"""Number of rows whose columns decide the format."""
RENAMING_HINT = " Rename yours with dataset_columns: {their_name: our_name}."
"""End of the message that no format matches. `--init` replaces it."""
MAX_UNREADABLE_ROWS = 10_000
"""If none of the first rows, this many of them, can be read, no format can be chosen."""
MAX_HELD_ROWS = 20_000
"""Rows that are held while the format is chosen. If `row_filter` drops more at the beginning, they are read again."""


def find_source_format(source: Source) -> tuple[RecordFormat, Iterator[Chunk]]:
    """Choose the record format of a source.

    Returns:
        The format, and an iterator over all chunks of the source, including the ones read to choose it.

    Raises:
        DataError: If no row can be read, the columns match no known format, or the configuration names columns or a
            format that the source does not have.
    """
    chunks = iter(source.chunks())
    seen: Counter[str] = Counter()
    sampled: list[Chunk] = []
    num_rows = num_unreadable = 0
    first_problem = None
    for chunk in chunks:
        sampled.append(chunk)
        # Rows of a chunk may be objects that are prepared later: functions receive copies.
        for row in (made for read in chunk.rows() for made in source.steps(read, is_kept=True)):
            seen.update(list(row.record or ()))
            first_problem = first_problem or (row.source, row.problem)
            num_unreadable += row.problem is not None and row.problem.reason not in DELIBERATE_DROPS
        num_rows += chunk.num_rows
        if num_rows >= SAMPLED_ROWS and (seen or num_unreadable >= MAX_UNREADABLE_ROWS):
            break
        if num_rows > MAX_HELD_ROWS:
            sampled.clear()
    if not seen:
        assert first_problem is not None  # a source without rows is an error of `chunks`
        location, problem = first_problem
        message = problem.message if problem is not None else "an object without fields"
        which = "No row" if num_unreadable < MAX_UNREADABLE_ROWS else f"None of the first {num_rows:,} rows"
        raise DataError(f"{location}: {message}. {which} of this source can be used.")
    record_format = _choose_format(source, _renamed_columns(source, seen))
    return record_format, chain(sampled, chunks) if num_rows <= MAX_HELD_ROWS else source.chunks()


def list_columns(names: Iterable[str]) -> str:
    """Column names for one line of a message, shortened if need be."""
    names = [" ".join(name.split())[:40] for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _renamed_columns(source: Source, seen: Mapping[str, int]) -> set[str]:
    """The columns of a source after `dataset_columns` has renamed them.

    Raises:
        DataError: If `dataset_columns` names a column that does not exist, or gives two columns the same name.
    """
    file, names = source.files[0], source.columns
    for column in names:
        if column not in seen:
            hint = did_you_mean(column, seen)
            raise DataError(
                f"{file}: dataset_columns names the column {column!r}, which does not exist. Columns: "
                f"{list_columns(seen)}.{hint}"
            )
    renamed = Counter(names.get(name, name) for name in seen)
    ambiguous = [name for name, count in renamed.items() if count > 1]
    if ambiguous:
        theirs = [name for name in seen if names.get(name, name) == ambiguous[0]]
        raise DataError(
            f"{file}: with dataset_columns, both {' and '.join(theirs)} are named {ambiguous[0]!r}. Choose one."
        )
    return set(renamed)


def _choose_format(source: Source, columns: set[str]) -> RecordFormat:
    if source.format is not None:
        chosen = format_named(source.format)
        if not chosen.columns <= columns:
            missing = ", ".join(sorted(chosen.columns - columns))
            raise DataError(
                f"{source.files[0]}: format {chosen.name} needs the columns {missing}. Found: "
                f"{list_columns(sorted(columns))}. Rename yours with columns: {{their_name: our_name}}."
            )
        return chosen
    found = find_format(columns)
    if found is None:
        known = "; ".join(known.description for known in FORMATS)
        raise DataError(
            f"{source.files[0]}: its columns ({list_columns(sorted(columns))}) match no known format. Known formats: "
            f"{known}.{RENAMING_HINT}"
        )
    return found
