"""Files at an address, such as `s3://bucket/rows.jsonl`: found and read by the file systems of fsspec, which take their
credentials from where their libraries look for them; `http(s)` is read without a further package.

A file system is opened anew for each use: those that run an event loop do not survive the fork of a worker.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from sft.common.did_you_mean import did_you_mean
from sft.common.errors import DataError
from sft.common.optional_packages import missing_package
from sft.common.outside_files import outside_file, reason
from sft.common.secrets import hide_addresses

_HTTP = ("http", "https")
_HTTP_SECONDS = 60
"""After this time without an answer a server counts as unreachable."""
_IDENTITIES = ("etag", "md5hash", "contentmd5", "checksum", "blobid", "lfs", "versionid", "crc32c", "sha256")
"""Fields of a file's description, in small letters and digits, that another content changes. Times do not suffice."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address. Its text has no passwords and tokens, and names it in messages."""

    address: str

    def __str__(self) -> str:
        return hide_addresses(self.address)

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        return self._path.suffixes

    @property
    def is_glob(self) -> bool:
        """Whether it stands for several files; `?` begins the query of a web address."""
        return any(character in self.address for character in ("*[" if self._is_http else "*?["))

    @property
    def _is_http(self) -> bool:
        return _scheme(self.address) in _HTTP

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(unquote(urlsplit(self.address).path) if self._is_http else self.address)

    def below(self, root: "RemoteFile") -> str:
        """The part of the address after that of a folder above it; else its name."""
        folder = root.address.rstrip("/") + "/"
        return self.address[len(folder) :] if self.address.startswith(folder) else self.name

    def joined(self, path: str) -> "RemoteFile":
        """A file in this folder."""
        return RemoteFile(f"{self.address.rstrip('/')}/{path}")

    def num_bytes(self) -> int | None:
        """Its size; None if it is not known in advance."""
        return _num_bytes(self)

    def open(self) -> tuple[io.BufferedReader, int | None]:
        """The file for reading, and its size if it is known.

        Raises:
            DataError: In one line, here and while it is read.
        """
        with _outside(self):
            if self._is_http:
                file = _http_response(self.address)
                size = _content_length(file)
            else:
                system, path = _file_system(self.address)
                size = system.info(path).get("size")
                file = system.open(path, "rb")
        return io.BufferedReader(_Reader(self, file, size), 1 << 20), size

    def digest(self) -> str:
        """Hex digest of its content, or of what the file system says that another content would change.

        Raises:
            DataError: If it cannot be read.
        """
        with _outside(self):
            if self._is_http:
                with _http_response(self.address) as response:
                    found = dict(response.headers)
            else:
                found = _info(self.address)
        known = {re.sub(r"[^a-z0-9]", "", name.lower()): value for name, value in found.items()}
        told = {name: known[name] for name in _IDENTITIES if known.get(name)}
        if told:
            told["size"] = known.get("contentlength", known.get("size"))
            return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
        file, _ = self.open()
        with file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


def find_remote_files(pattern: RemoteFile, is_data_file: Callable[[Any], bool]) -> list[RemoteFile]:
    """The data files that an address, a folder's address or a glob refers to, sorted.

    Args:
        pattern: The address.
        is_data_file: Whether a file is one, by its name.

    Raises:
        DataError: If there is none, or its file system cannot be used.
    """
    if pattern._is_http:
        if pattern.is_glob or not is_data_file(pattern):
            raise DataError(f"{pattern}: files at web addresses cannot be listed. Name each file, with its suffix.")
        return [pattern]
    with _outside(pattern):
        system, path = _file_system(pattern.address)
        if pattern.is_glob:
            names = system.glob(path)
        elif is_data_file(pattern):
            system.info(path)  # raises if there is none
            return [pattern]
        else:
            names = system.find(path)
        found = [RemoteFile(system.unstrip_protocol(name)) for name in sorted(names)]
    saved = [file for file in found if file.name in ("state.json", "dataset_dict.json")]
    if saved:
        raise DataError(
            f"{pattern}: contains a dataset that `save_to_disk` wrote ({saved[0]}). Copy it to a local folder."
        )
    return [file for file in found if is_data_file(file) and not _is_hidden(file, pattern)]


class _Reader(io.RawIOBase):
    """The bytes of a file at an address. What its library raises becomes one line, and so does an early end."""

    def __init__(self, name: RemoteFile, file: Any, size: int | None):
        self._name, self._file, self._size, self._position = name, file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return hasattr(self._file, "seek") and self._file.seekable()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        with _outside(self._name):
            self._position = self._file.seek(offset, whence)
        return self._position

    def readinto(self, buffer: Any) -> int:
        with _outside(self._name):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        if not data and self._size is not None and self._position < self._size:
            raise DataError(
                f"{self._name}: cannot be read: the connection ended after {self._position:,} of {self._size:,} bytes."
            )
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _outside(file: RemoteFile) -> Iterator[None]:
    """Turn what a library raises about a file into one line."""

    def explain(error: Exception) -> str | None:
        missing = next((each.name for each in _chain(error) if isinstance(each, ModuleNotFoundError)), None)
        scheme = _scheme(file.address)
        if isinstance(error, FileNotFoundError) or (isinstance(error, HTTPError) and error.code in (404, 410)):
            return f"{file}: no such file."
        if isinstance(error, ImportError):
            package = str(known_implementations.get(scheme, {}).get("class", "")).partition(".")[0]
            name = missing or package
            return f"{file}: reading {scheme}:// {missing_package(name.partition('.')[0] or package)}."
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            return f"{file}: {scheme}:// is no known kind of address.{did_you_mean(scheme, known_implementations)}"
        if isinstance(error, URLError) and isinstance(error.reason, OSError):
            return f"{file}: cannot be read: {reason(error.reason)}."
        return None

    with outside_file(f"{file}: cannot be read", DataError, explain):
        yield


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _scheme(address: str) -> str:
    return address.partition("://")[0].lower()


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, without what it remembers of earlier listings, and the path in it."""
    system, path = url_to_fs(address)
    system.invalidate_cache()
    return system, path


def _info(address: str) -> dict[str, Any]:
    system, path = _file_system(address)
    return system.info(path)


@cache
def _num_bytes(file: RemoteFile) -> int | None:
    with _outside(file):
        if not file._is_http:
            return _info(file.address).get("size")
        with _http_response(file.address) as response:
            return _content_length(response)


def _content_length(response: Any) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else int(length)


def _http_response(address: str) -> Any:
    """The answer of a web server; its body is read later."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "sft-pipeline"}
    if at:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
    return urllib.request.urlopen(request, timeout=_HTTP_SECONDS)


def _is_hidden(file: RemoteFile, root: RemoteFile) -> bool:
    return not root.is_glob and any(part.startswith((".", "_")) for part in file.below(root).split("/"))
