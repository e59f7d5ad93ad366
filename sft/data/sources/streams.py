"""Data files as streams of bytes or of text lines, decompressed while reading: memory does not grow with their size."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sft.common.errors import DataError
from sft.common.files import refuse_special_files
from sft.common.optional_packages import missing_package
from sft.data.sources.json_rows import short_line
from sft.data.sources.remote import RemoteFile

try:
    from compression import zstd  # Python 3.14
except ImportError:
    try:
        from backports import zstd
    except ImportError:
        zstd = None

DataPath = Path | RemoteFile
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 1 << 12
_BROKEN_ARCHIVE = (zlib.error,) if zstd is None else (zlib.error, zstd.ZstdError)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file being read."""

    path: DataPath
    stream: BinaryIO
    """Its bytes, decompressed. Not seekable."""
    raw: BinaryIO
    num_bytes: int | None
    """None if it is not known before the end."""

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def share_read(self) -> float:
        """Share of its stored bytes read so far; 0 if their number is not known."""
        if self.num_bytes is None:
            return 0.0
        return min(self.raw.tell() / self.num_bytes, 1.0) if self.num_bytes else 1.0

    def head(self, size: int) -> bytes:
        """Its first bytes, at most `size`, without a byte-order mark.

        Raises:
            DataError: If the file is UTF-16.
        """
        first = self.stream.read(size)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{self.path}:1: UTF-16 text. Save the file as UTF-8.")
        return first.removeprefix(BYTE_ORDER_MARK)

    def blocks(self) -> Iterator[bytes]:
        """The bytes that were not read yet, in blocks of a moderate size."""
        return iter(lambda: self.stream.read(_BUFFER_BYTES), b"")

    def lines_after(self, head: bytes) -> Iterator[bytes]:
        """The lines of `head`, which was read before, and those after it, with their line ends."""
        *complete, rest = head.split(b"\n")
        yield from (line + b"\n" for line in complete)
        if last := rest + self.stream.readline():
            yield last
        yield from self.stream

    def lines(self) -> Iterator[bytes]:
        """Its lines with their line ends, without a byte-order mark. Only a line feed ends a line.

        Raises:
            DataError: If the file is UTF-16.
        """
        return self.lines_after(self.head(_HEAD_BYTES))

    def text_lines(self) -> Iterator[str]:
        """Its lines as text. In UTF-8 a line feed is never part of another character, so each line decodes alone.

        Raises:
            DataError: With the line of the first byte that is not UTF-8.
        """
        for number, line in enumerate(self.lines(), start=1):
            yield decode(self.path, line, first_line=number)


@contextmanager
def open_data_file(path: DataPath) -> Iterator[DataFile]:
    """Open a data file for reading. Errors of reading inside the block become one line.

    Raises:
        DataError: If the file does not exist, is a special file (a FIFO, a device), or cannot be read.
    """
    if isinstance(path, Path):
        refuse_special_files(DataError, path)
    try:
        raw, num_bytes = path.open() if isinstance(path, RemoteFile) else _open_local(path)
        with raw:
            stream = raw if num_bytes == 0 else _decompress(path, raw)
            yield DataFile(path=path, stream=stream, raw=raw, num_bytes=num_bytes)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except EOFError:
        raise DataError(f"{path}: cannot be read: the compressed file is truncated.") from None
    except (OSError, *_BROKEN_ARCHIVE) as error:
        raise DataError(f"{path}: cannot be read: {short_line(error)}.") from None


def _open_local(path: Path) -> tuple[BinaryIO, int | None]:
    return path.open("rb", buffering=_BUFFER_BYTES), path.stat().st_size


def decode(path: DataPath, data: bytes, first_line: int = 1) -> str:
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


def _decompress(path: DataPath, raw: BinaryIO) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES)
    if suffix in (".zst", ".zstd"):
        if zstd is None:
            raise DataError(f"{path}: reading {suffix} {missing_package('backports.zstd')}.")
        return io.BufferedReader(zstd.ZstdFile(raw), _BUFFER_BYTES)
    return raw
