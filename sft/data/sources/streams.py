"""Data files as streams of bytes or of text lines, decompressed while reading: memory does not grow with their size."""

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
from sft.common.files import refuse_special_files
from sft.common.optional_packages import missing_package
from sft.data.sources.json_rows import short_line

try:
    from compression import zstd  # Python 3.14
except ImportError:
    try:
        from backports import zstd
    except ImportError:
        zstd = None

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_BROKEN_ARCHIVE = (zlib.error,) if zstd is None else (zlib.error, zstd.ZstdError)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file being read."""

    path: Path
    stream: BinaryIO
    """Its bytes, decompressed. Not seekable."""
    raw: BinaryIO
    num_bytes: int

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def share_read(self) -> float:
        """Share of its bytes on disk read so far."""
        return min(self.raw.tell() / self.num_bytes, 1.0) if self.num_bytes else 1.0

    def lines(self) -> Iterator[bytes]:
        """Its lines with their line ends, without a byte-order mark. Only a line feed ends a line.

        Raises:
            DataError: If the file is UTF-16.
        """
        first = self.stream.readline()
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{self.path}:1: UTF-16 text. Save the file as UTF-8.")
        return chain([first.removeprefix(BYTE_ORDER_MARK)], self.stream)

    def text_lines(self) -> Iterator[str]:
        """Its lines as text. In UTF-8 a line feed is never part of another character, so each line decodes alone.

        Raises:
            DataError: With the line of the first byte that is not UTF-8.
        """
        for number, line in enumerate(self.lines(), start=1):
            yield decode(self.path, line, first_line=number)


@contextmanager
def open_data_file(path: Path) -> Iterator[DataFile]:
    """Open a data file for reading. Errors of reading inside the block become one line.

    Raises:
        DataError: If the file does not exist, is a special file (a FIFO, a device), or cannot be read.
    """
    refuse_special_files(DataError, path)
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as raw:
            num_bytes = path.stat().st_size
            stream = _decompress(path, raw) if num_bytes else raw
            yield DataFile(path=path, stream=stream, raw=raw, num_bytes=num_bytes)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except EOFError:
        raise DataError(f"{path}: cannot be read: the compressed file is truncated.") from None
    except (OSError, *_BROKEN_ARCHIVE) as error:
        raise DataError(f"{path}: cannot be read: {short_line(error)}.") from None


def decode(path: Path, data: bytes, first_line: int = 1) -> str:
    """Bytes of a file as text.

    Raises:
        DataError: With the line of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}). Save the file as UTF-8."
        ) from None


def _decompress(path: Path, raw: BinaryIO) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES)
    if suffix in (".zst", ".zstd"):
        if zstd is None:
            raise DataError(f"{path}: reading {suffix} {missing_package('backports.zstd')}.")
        return io.BufferedReader(zstd.ZstdFile(raw), _BUFFER_BYTES)
    return raw
