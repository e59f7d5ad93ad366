"""Writes a byte-level BPE vocabulary as a SentencePiece file (`tokenizer.model`), which llama.cpp reads.

llama.cpp's converter knows byte-level tokenizers by a list of published ones. A SentencePiece file of the same tokens,
in the same order, needs no such list: pieces are merged by their scores, and bytes without a piece have tokens of their
own.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
"""Types of pieces in SentencePiece's format."""
_VARINT, _BYTES, _FLOAT = 0, 2, 5
"""Wire types of protocol buffers."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def write_sentencepiece_file(path: Path, vocabulary: Mapping[str, int], special: Collection[str]) -> None:
    """Write the file.

    Args:
        path: of the file.
        vocabulary: token, in the letters that stand for bytes, -> id; without gaps, in the order of the merges.
        special: special tokens of the vocabulary; the first token has to be one of them.

    Raises:
        ValueError: if a token of several bytes is not text.
    """
    pieces = []
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        if token in special:
            pieces.append((token, _CONTROL if number else _UNKNOWN))  # the format requires one unknown piece
        else:
            pieces.append(_piece(bytes(_BYTE_OF[letter] for letter in token)))
    pieces.append(("<0x20>", _BYTE))  # beyond the vocabulary: the format requires all bytes, and a space is a piece
    data = b""
    for number, (piece, kind) in enumerate(pieces):
        entry = _field(1, _BYTES, piece.encode("utf-8")) + _field(2, _FLOAT, -float(number)) + _field(3, _VARINT, kind)
        data += _field(1, _BYTES, entry)
    trainer = _field(3, _VARINT, 2) + _field(4, _VARINT, len(pieces)) + _field(35, _VARINT, 1)  # BPE, byte fallback
    text_as_it_is = _field(3, _VARINT, 0) + _field(4, _VARINT, 0) + _field(5, _VARINT, 1)  # but "▁" for a space
    path.write_bytes(data + _field(2, _BYTES, trainer) + _field(3, _BYTES, text_as_it_is))


def _piece(token: bytes) -> tuple[str, int]:
    """The piece of a token, and its type."""
    if len(token) == 1 and token != b" ":
        return f"<0x{token[0]:02X}>", _BYTE
    return token.decode("utf-8").replace(" ", _SPACE), _NORMAL


def _letters() -> Iterator[tuple[str, int]]:
    """The letters that stand for bytes in GPT-2's vocabularies: those that are visible for themselves."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    yield from ((chr(byte), byte) for byte in visible)
    yield from ((chr(0x100 + index), byte) for index, byte in enumerate(others))


_BYTE_OF = dict(_letters())


def _field(number: int, wire_type: int, value: bytes | float) -> bytes:
    """A field of a protocol buffer."""
    key = _varint(number << 3 | wire_type)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    return key + (struct.pack("<f", value) if wire_type == _FLOAT else _varint(int(value)))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
