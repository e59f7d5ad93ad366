"""Data files as streams of bytes or of text lines, decompressed on the way: memory is flat in their size."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from sft.common.errors import DataError
from sft.data.sources.json_rows import short_line

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_ZSTANDARD_INPUT_BYTES = 1 << 13
"""Compressed bytes at once. Few, since a well compressed text grows a thousandfold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file that is being read."""

    path: Path
    stream: BinaryIO
    """Its bytes, decompressed; cannot be sought in."""
    raw: BinaryIO
    num_bytes: int

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def share_read(self) -> float:
        """Share of its bytes, as they lie on disk, that is read."""
        return min(self.raw.tell() / self.num_bytes, 1.0) if self.num_bytes else 1.0

    def lines(self) -> Iterator[bytes]:
        """Its lines with their ends, the first one without a byte-order mark. Only a line feed ends a line.

        Raises:
            DataError: if it is UTF-16.
        """
        first = self.stream.readline()
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{self.path}:1: UTF-16 text. Save the file as UTF-8.")
        return chain([first.removeprefix(BYTE_ORDER_MARK)], self.stream)

    def text_lines(self) -> Iterator[str]:
        """Likewise, as text. (A line feed is never a part of another character in UTF-8: each line decodes alone.)

        Raises:
            DataError: with the line of the first byte that is not UTF-8.
        """
        for number, line in enumerate(self.lines(), start=1):
            yield decode(self.path, line, first_line=number)


@contextmanager
def open_data_file(path: Path) -> Iterator[DataFile]:
    """Opens a data file for reading; what goes wrong with it inside the block becomes one line.

    Raises:
        DataError: if it is not there or cannot be read.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as raw:
            num_bytes = path.stat().st_size
            yield DataFile(path=path, stream=_decompressed(path, raw), raw=raw, num_bytes=num_bytes)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {short_line(error)}.") from None


def decode(path: Path, data: bytes, first_line: int = 1) -> str:
    """Bytes of a file as text.

    Raises:
        DataError: with the line of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}). Save the file as UTF-8."
        ) from None


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    ending = path.suffix.lower()
    if ending == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES)
    if ending in (".zst", ".zstd"):
        return io.BufferedReader(_ZstandardReader(path, raw), _BUFFER_BYTES)
    return raw


class _ZstandardReader(io.RawIOBase):
    """Decompresses frame by frame.

    The package's own `stream_reader` ends in silence where a frame was cut off; a decompressor of one frame knows
    whether it has seen the end.
    """

    def __init__(self, path: Path, raw: BinaryIO):
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: .zst needs the package zstandard: pip install zstandard.") from None
        self._path, self._raw = path, raw
        self._decompressor, self._error = zstandard.ZstdDecompressor(), zstandard.ZstdError
        self._frame = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready:
            if not self._read_more():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _read_more(self) -> bool:
        """Decompresses the next stretch of input, which may come to nothing yet; False at the end of the file."""
        data = self._raw.read(_ZSTANDARD_INPUT_BYTES)
        if not data and self._frame is not None:
            raise DataError(f"{self._path}: cannot be read: the compressed file ends too early.")
        parts = []
        try:
            while data:
                self._frame = self._frame or self._decompressor.decompressobj()
                parts.append(self._frame.decompress(data))
                data = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
        except self._error as error:
            raise DataError(f"{self._path}: cannot be read: {short_line(error)}.") from None
        self._ready = memoryview(b"".join(parts))
        return bool(parts)
