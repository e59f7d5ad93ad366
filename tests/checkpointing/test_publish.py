"""A checkpoint gets its name by one rename, old ones are deleted, and failures of the disk are recognized."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft.checkpointing.checkpoints import (
    list_checkpoints,
    resolve_checkpoint,
)
from sft.checkpointing.manifest import find_damage, read_manifest
from sft.checkpointing.publish import (
    UNFINISHED,
    clear_unfinished,
    describe_disk_error,
    describe_full_disk,
    publish,
    rotate,
)
from tests.support import messages
from tests.support.checkpoints import COMPLETE, make_checkpoint
from tests.support.paths import REPOSITORY


def write_staged(folder: Path, step: int) -> tuple[Path, Path]:
    staging = folder / UNFINISHED / f"checkpoint-{step}"
    staging.mkdir(parents=True)
    for name in COMPLETE:
        (staging / name).write_text(name)
    return staging, folder / f"checkpoint-{step}"


def test_publish_gives_a_complete_checkpoint_its_name(tmp_path):
    publish(*write_staged(tmp_path, 4), {"step": 4})
    assert find_damage(tmp_path / "checkpoint-4") == []
    assert read_manifest(tmp_path / "checkpoint-4")["step"] == 4
    rotate(tmp_path, limit=2, best_step=None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", ["fsync", "rename", "open"])
def test_a_failed_publish_leaves_no_checkpoint_and_keeps_the_previous_one(tmp_path, monkeypatch, step, reason):
    before = make_checkpoint(tmp_path, 2)
    staging, target = write_staged(tmp_path, 4)

    def fail(*_, **__):
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patched:
        patched.setattr(*((Path, "write_text") if step == "open" else (os, step)), fail)
        with pytest.raises(OSError, match=os.strerror(reason)) as caught:
            publish(staging, target, {})
    assert os.strerror(reason) in describe_disk_error(caught.value, tmp_path)
    assert not target.exists()
    assert find_damage(before) == []
    assert resolve_checkpoint("auto", str(tmp_path)).path == before
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]


@pytest.mark.parametrize("killed_in", ["fsync", "rename", "write_text"])
def test_a_killed_publish_keeps_the_previous_checkpoint(tmp_path, killed_in):
    before = make_checkpoint(tmp_path, 2)
    staging, target = write_staged(tmp_path, 4)
    code = (
        "import os, pathlib, signal, sys\n"
        "from sft.checkpointing.publish import publish\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"setattr({'pathlib.Path' if killed_in == 'write_text' else 'os'}, {killed_in!r}, die)\n"
        "publish(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(staging), str(target)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert resolve_checkpoint("auto", str(tmp_path)).path == before


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (1, None, [40]),
        (2, None, [30, 40]),
        (1, 10, [10, 40]),
        (2, 10, [10, 40]),
        (3, 10, [10, 30, 40]),
        (2, 40, [30, 40]),
        (None, 10, [10, 20, 30, 40]),
        (9, None, [10, 20, 30, 40]),
    ],
)
def test_rotate_keeps_the_best_and_the_newest(tmp_path, limit, best, left):
    for step in (10, 20, 30, 40):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, limit=limit, best_step=best)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert not list(tmp_path.glob(f"{UNFINISHED}/*"))


def test_disk_errors_are_distinguished_from_bugs(tmp_path):
    assert describe_disk_error(ValueError("a bug"), tmp_path) is None
    assert describe_disk_error(RuntimeError("shapes differ"), tmp_path) is None
    assert messages.FREE_SPACE in describe_disk_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    for torch_message in (
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "basic_ios::clear: iostream error",
    ):
        assert describe_disk_error(RuntimeError(torch_message), tmp_path).startswith(messages.FILE_NOT_WRITTEN)
    assert describe_full_disk(FileNotFoundError(errno.ENOENT, "gone")) is None
    assert describe_full_disk(OSError(errno.EROFS, "Read-only file system", "here")).startswith(
        f"here {messages.CANNOT_BE_WRITTEN}"
    )
    safetensors_message = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert (
        describe_full_disk(RuntimeError(safetensors_message))
        == f"a file {messages.CANNOT_BE_WRITTEN}: No space left on device"
    )
