"""Remarks on used rows (`RowRemarks`) as lines and for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sft.common.data_records import NamedRows, RowRemarks, SplitReport
from sft.common.text import counted, first_of

SHOWN_NAMES = 8


def remark_lines(remarks: RowRemarks, *, include_validation: bool = False) -> Iterator[tuple[str, str]]:
    """For each kind of remark a label, and its names with their first rows, without a full stop."""
    rows = " (counted with the rows held out for validation)" if include_validation else ""
    if remarks.unread_keys:
        yield "keys", f"keys of messages that are not used{rows}: {_named(remarks.unread_keys)}"
    if remarks.control_tokens:
        names = _named(remarks.control_tokens)
        yield "control", f"control tokens in the data, which the model receives as tokens, not as text{rows}: {names}"
    if remarks.split_tokens:
        names = _named(remarks.split_tokens)
        yield (
            "edges",
            f"tokens across the edge of the supervised text, trained as boundary_tokens says{rows}: {names}",
        )
    if remarks.template_kwargs:
        yield "rendered", f"rows by arguments of the chat template{rows}: {_named(remarks.template_kwargs)}"
    if remarks.changes:
        yield "changed", f"changed rows{rows}: {_named(remarks.changes)}"


def split_remark_lines(split: SplitReport) -> Iterator[tuple[str, str]]:
    """As `remark_lines`, for the rows of a split, after what `row_function` made of them, and their pieces."""
    if split.rows_made:
        raw = counted(split.rows_read - split.rows_made, "row")
        yield "made", f"row_function made {split.rows_read:,} rows of {raw} in the data"
    if split.rows_split:
        more = f"; {counted(split.untrained_pieces, 'piece')} without supervised tokens left out"
        found = f"{counted(split.rows_split, 'row')} trained in {counted(split.pieces, 'piece')}"
        yield "pieces", found + (more if split.untrained_pieces else "")
    yield from remark_lines(split.remarks, include_validation=split.remarks_include_validation)


def remark_counts(remarks: RowRemarks) -> dict[str, dict[str, Any]]:
    """All remarks, ready for JSON."""
    kinds = {
        "unread_message_keys": remarks.unread_keys,
        "control_tokens": remarks.control_tokens,
        "split_tokens": remarks.split_tokens,
        "changed_rows": remarks.changes,
        "chat_template_kwargs": remarks.template_kwargs,
    }
    return {
        kind: {rows.name: {"rows": rows.rows, "examples": list(map(str, rows.examples))} for rows in named}
        for kind, named in kinds.items()
    }


def _named(named: Sequence[NamedRows]) -> str:
    shown = (
        f"{rows.name} ({counted(rows.rows, 'row')}: {first_of(map(str, rows.examples), rows.rows)})"
        for rows in named[:SHOWN_NAMES]
    )
    return first_of(shown, len(named))
