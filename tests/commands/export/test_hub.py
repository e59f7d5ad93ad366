"""Uploads to the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.support import messages
from tests.support.paths import REPOSITORY


class SmallHub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files asks for; one repository is not the caller's."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body, self.headers["Authorization"]))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            status = 403 if name == "denied" else 200
            answer = {"url": f"http://{self.headers['Host']}/me/{name}"}
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            status, answer = 200, {"files": files}
        elif self.path == "/api/validate-yaml":
            status, answer = 200, {"errors": [], "warnings": []}
        else:
            status, answer = (
                200,
                {"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/1", "commitOid": "1", "success": True},
            )
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


def upload_in_a_process(folder: Path, endpoint: str, *repositories: str) -> list[str]:
    """Results of uploads: addresses, or messages."""
    code = (
        "import sys, pathlib; from sft.commands.export.hub import upload; from sft.common.errors import ModelError\n"
        "for name in sys.argv[2:]:\n"
        "    try: print(upload(pathlib.Path(sys.argv[1]), name, private=True))\n"
        "    except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *repositories],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_folder_is_uploaded_or_the_reason_is_reported(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: unknown\n---\n# Mine\n")
    (tmp_path / "config.json").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        uploaded, denied = upload_in_a_process(tmp_path, endpoint, "me/mine", "me/denied")
    finally:
        server.shutdown()
        server.server_close()
    assert "me/mine" in uploaded
    assert denied.startswith(f"{messages.NOT_UPLOADED.format(path=tmp_path, name='me/denied')}: {messages.HUB_DENIED}")
    assert messages.SET_TOKEN in denied
    made = next(json.loads(body) for path, body, _ in server.asked if path == "/api/repos/create")
    assert made.get("visibility") == "private" or made.get("private") is True  # newer and older versions
    (commit,) = [body.decode() for path, body, _ in server.asked if "/commit/main" in path]
    assert {"README.md", "config.json"} <= {
        line["value"].get("path") for line in map(json.loads, commit.splitlines()) if line["key"] == "file"
    }
    (unreachable,) = upload_in_a_process(tmp_path, endpoint, "me/mine")
    assert f"{messages.NOT_UPLOADED.format(path=tmp_path, name='me/mine')}: {messages.HUB_UNREACHABLE}" in unreachable


def test_an_upload_that_fails_leaves_the_folder(export, model_folder):
    """Nothing may look for a hub in this process: that it is offline is what fails."""
    status, _, err, output = export(model_folder("llama"), "--push_to_hub", "me/mine")
    assert status == 2
    assert err.startswith(messages.NOT_UPLOADED.format(path=output, name="me/mine"))
    assert err.count("\n") == 1
    assert (output / "README.md").is_file()
