"""A digest of rows as a run trains on them, by which a run that goes on sees whether they are the same."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from sft.data.store import PreparedRows

SAMPLED_ROWS = 256
"""Rows whose every token goes into the digest."""


def rows_digest(rows: PreparedRows) -> str:
    """A digest of which rows there are, in which order, and what is trained of them; where they lie does not matter.

    Of every row: the digest of its conversation (letter case and white space aside), its tokens before and after the
    cut, the trained ones among them, its flags. Of some rows, evenly spread: every token and label, which shows another
    tokenizer or template without reading all of a large data set.
    """
    digest = hashlib.sha256(str(len(rows)).encode())
    columns = rows.columns()
    for field in dataclasses.fields(columns):
        if field.name not in ("number", "file", "line"):
            digest.update(np.ascontiguousarray(getattr(columns, field.name)).tobytes())
    digest.update(np.ascontiguousarray(rows.lengths).tobytes())
    for row in np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(int)) if len(rows) else ():
        for values in rows[int(row)].values():
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
