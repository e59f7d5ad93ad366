"""A Hub on this machine: what the libraries ask the Hugging Face Hub for, answered from a folder on loopback.

Repositories are folders `models/OWNER/NAME` and `datasets/OWNER/NAME`, with `@v2` for their other revision. What is
asked is written down.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]
"""Of the revision `v2`."""


class LocalHub(ThreadingHTTPServer):
    """Serves a folder; can misbehave on request."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.asked: list[str] = []
        """Method and path of each request."""
        self.token: str | None = None
        """Where set, repositories are private: only who brings it may read."""
        self.gated = False
        """Where set, the answer without a token is that of a gated repository."""
        self.silent_seconds = 0.0
        """How long an answer takes."""
        self.cut_downloads = 0
        """So many downloads end after half of the bytes."""
        self.pushed: dict[str, bytes] = {}
        """`OWNER/NAME/file` -> content, of what was sent here."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def local_hub(root: Path) -> Iterator[LocalHub]:
    """A Hub that answers while this lasts."""
    hub = LocalHub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def handle_one_request(self) -> None:
        """A client that no longer waits for a late answer is none of the tests' business."""
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Keeps the terminal of the tests clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if self.server.silent_seconds:
            time.sleep(self.server.silent_seconds)
        if self.server.token is not None and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            code = "GatedRepo" if self.server.gated else "RepoNotFound"
            self._send(401, b"{}", {"X-Error-Code": code, "X-Error-Message": "Access is restricted."})
        elif path.startswith("/api/"):
            self._api(path.removeprefix("/api/").split("/"), body)
        else:
            self._file(path)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts == ["whoami-v2"]:
            return self._json({"name": "tester", "type": "user", "auth": {"type": "access_token"}})
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            return self._json({"url": f"{self.server.url}/{name}", "name": name, "id": "1"})
        if parts == ["validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if len(parts) < 3:
            return self._send(404, b"{}", {})
        kind, owner, name, *rest = parts
        repository = f"{owner}/{name}"
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            return self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if rest[:1] == ["commit"]:
            return self._commit(repository, body)
        folder = self.server.root / kind / repository
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        revision = rest[1] if rest[:1] in (["revision"], ["tree"], ["paths-info"]) else "main"
        folder, commit = _at_revision(folder, revision)
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            found = [self._entry(folder, p) for p in files if p.relative_to(folder).as_posix().startswith(below)]
            return self._json(found) if found else self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if rest[:1] == ["paths-info"]:
            asked = json.loads(body)["paths"]
            return self._json([self._entry(folder, folder / p) for p in asked if (folder / p).is_file()])
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return self._json(
            {
                "id": repository,
                "sha": commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
                "lastModified": "2026-01-01T00:00:00.000Z",
            }
        )

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        return {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": _digest(path.read_bytes()),
        }

    def _commit(self, repository: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.pushed[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
        url = f"{self.server.url}/{repository}/commit/{COMMIT}"
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _file(self, path: str) -> None:
        parts = path.strip("/").split("/")
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        owner, name, word, revision, *inside = parts
        folder, commit = _at_revision(self.server.root / kind / owner / name, revision)
        file = folder / "/".join(inside)
        if word != "resolve" or not (self.server.root / kind / owner / name).is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if not file.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206 if first else 200, content[first:], headers, may_be_cut=True)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, may_be_cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if may_be_cut and self.server.cut_downloads and len(content) > 10000:
            self.server.cut_downloads -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)


def _at_revision(folder: Path, revision: str) -> tuple[Path, str]:
    """The files of a revision, which may not exist, and its commit."""
    if revision in ("main", COMMIT):
        return folder, COMMIT
    return folder.with_name(f"{folder.name}@{'v2' if revision == OTHER_COMMIT else revision}"), OTHER_COMMIT


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
