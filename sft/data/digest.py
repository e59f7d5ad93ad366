"""Digests: of a conversation, by which duplicates are found, and of all rows, by which a resumed run is checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sft.common.data_records import Conversation
from sft.data.store import PreparedRows

_BLOCK = 1 << 16
"""Least number of characters that are folded at once, in a long conversation."""
_SPACE = re.compile(r"\s")
SAMPLED_ROWS = 256
"""Rows of which every token is part of the digest of all rows."""


def conversation_digest(conversation: Conversation) -> int:
    """64 bits of a conversation, ignoring case and white space."""
    if conversation.tokens is not None:
        given = hashlib.blake2b(conversation.tokens.input_ids.tobytes(), digest_size=8)
        return int.from_bytes(given.digest(), "little")
    if conversation.text is not None:
        parts = [conversation.text]
    else:
        parts = []
        for message in conversation.messages:
            parts.append(message["role"])
            parts.append(message["content"])
            if len(message) > 2:
                rest = {key: value for key, value in message.items() if key not in ("role", "content")}
                parts.append(json.dumps(rest, sort_keys=True, default=str))
    for arguments in (conversation.tools, conversation.template_kwargs):
        if arguments:
            parts.append(json.dumps(arguments, sort_keys=True, default=str))
    folded: Iterable[str]
    if sum(map(len, parts)) <= _BLOCK:
        folded = ["\x1f".join(" ".join(part.casefold().split()) for part in parts)]
    else:
        folded = _in_blocks(parts)
    digest = hashlib.blake2b(digest_size=8)
    for text in folded:
        digest.update((text if text.isascii() else unicodedata.normalize("NFC", text)).encode())
    return int.from_bytes(digest.digest(), "little")


def _in_blocks(parts: Sequence[str]) -> Iterator[str]:
    """The same text in blocks that can be normalized alone: a list of all words would take ten times its memory."""
    for number, part in enumerate(parts):
        separator = "\x1f" if number else ""
        start = 0
        while start < len(part) or separator == "\x1f":
            space = _SPACE.search(part, start + _BLOCK)
            stop = space.start() if space else len(part)
            words = " ".join(part[start:stop].casefold().split())
            if words or separator == "\x1f":
                yield separator + words
                # Words of the same part follow a space, if there were any.
                separator = " " if words else ""
            start = stop


def rows_digest(rows: PreparedRows) -> str:
    """Hex digest of the rows, their order and what is trained of them. The location of the files does not matter.

    It covers, for every row: the digest of its conversation, its length before and after truncation, the number of
    supervised tokens, its flags, and the bounds of its weights, if any row has some. For an evenly spaced sample of
    rows it covers every token, label and weight, which detects another tokenizer or template without reading all of a
    large dataset.
    """
    digest = hashlib.sha256(str(len(rows)).encode())
    columns = rows.columns()
    for field in dataclasses.fields(columns):
        if field.name not in ("number", "file", "line", "part", "piece"):
            digest.update(np.ascontiguousarray(getattr(columns, field.name)).tobytes())
    digest.update(np.ascontiguousarray(rows.lengths).tobytes())
    weights = rows.weights()
    for field in dataclasses.fields(weights) if weights is not None else ():
        digest.update(np.ascontiguousarray(getattr(weights, field.name)).tobytes())
    for row in np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(int)) if len(rows) else ():
        for values in rows[int(row)].values():
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
