"""An output folder or lock file that is deleted, renamed or replaced while a run holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from sft.checkpointing.output_lock import LOCK_FILE, OutputLock
from sft.common.errors import CheckpointError, ConfigError
from tests.support import messages
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import REPOSITORY

IS_FREE = """\
import sys
from sft.checkpointing.output_lock import OutputLock
from sft.common.errors import ConfigError
with OutputLock() as lock:
    try:
        lock.take(sys.argv[1])
    except ConfigError:
        sys.exit(1)
"""


def is_free(folder):
    """Whether another process could take the lock."""
    return subprocess.run([sys.executable, "-c", IS_FREE, folder], cwd=REPOSITORY, check=False).returncode == 0


@pytest.fixture
def held(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with OutputLock() as lock:
        lock.take(folder)
        yield lock, folder


def delete_lock(folder):
    (folder / LOCK_FILE).unlink()


def replace_lock(folder):
    delete_lock(folder)
    (folder / LOCK_FILE).touch()


def rename(folder):
    folder.rename(folder.with_name("renamed"))


def remove(folder):
    shutil.rmtree(folder)


def empty_again(folder):
    remove(folder)
    folder.mkdir()


def renamed_and_empty(folder):
    rename(folder)
    folder.mkdir()


def relink(folder):
    rename(folder)
    folder.with_name("target").mkdir()
    folder.symlink_to("target")


@pytest.mark.parametrize(
    ("change", "is_new", "found"),
    [
        (None, False, None),
        (delete_lock, False, ".lock was deleted or replaced"),
        (replace_lock, False, ".lock was deleted or replaced"),
        (rename, True, "out was renamed to "),
        (remove, True, "out was removed during the run"),
        (empty_again, True, "out was removed during the run"),
        (renamed_and_empty, True, "out was renamed to "),
        (relink, True, "out was renamed to "),
    ],
)
def test_what_was_deleted_is_created_again_in_one_line(held, change, is_new, found, caplog):
    lock, folder = held
    make_checkpoint(folder, 2)
    if change is not None:
        change(folder)
    with caplog.at_level("INFO", "sft.train"):
        assert lock.confirm() is is_new
        assert lock.confirm() is False
        assert lock.whereabouts() == ""
    assert len(caplog.messages) == (found is not None)
    if found is not None:
        assert found in caplog.text
        assert not is_free(folder)
    if found == "out was renamed to ":
        assert messages.RENAMED_TO.format(path=folder.with_name("renamed")) in caplog.text
        assert str(folder.with_name("renamed") / "checkpoint-2") in caplog.text


@pytest.mark.parametrize("instead", ["folder", "file", "link", "no parent"])
def test_nothing_is_saved_where_something_else_is_now(held, instead):
    lock, folder = held
    make_checkpoint(folder, 2)
    parent = folder.parent
    if instead == "no parent":
        parent.rename(parent.with_name("moved"))
    else:
        rename(folder)
        other = folder.with_name("other") if instead == "link" else folder
        if instead == "file":
            folder.write_text("precious")
        else:
            other.mkdir()
            (other / "notes.txt").write_text("precious")
        if instead == "link":
            folder.symlink_to(other)
    with pytest.raises(CheckpointError, match="checkpoint-2") as refused:
        lock.confirm()
    (line,) = refused.value.problems
    assert messages.RENAMED_TO.format(path="") in line
    assert "\n" not in line
    if instead == "no parent":
        parent.with_name("moved").rename(parent)
    elif instead != "file":
        assert os.listdir(folder) == ["notes.txt"]


@pytest.mark.parametrize("change", [delete_lock, empty_again])
def test_a_run_that_another_one_replaced_ends(held, change):
    lock, folder = held
    change(folder)
    code = (
        "import sys, time\nfrom sft.checkpointing.output_lock import OutputLock\n"
        "lock = OutputLock()\nlock.take(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError) as refused:
            lock.confirm()
        assert len(refused.value.problems) == 1
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("kind", ["link", "link to nowhere", "hard link", "file", "fifo"])
def test_a_lock_file_that_is_not_one_is_neither_followed_nor_overwritten(tmp_path, kind):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious\n")
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / LOCK_FILE
    if kind.startswith("link"):
        path.symlink_to(precious if kind == "link" else tmp_path / "none")
    elif kind == "hard link":
        path.hardlink_to(precious)
    elif kind == "file":
        shutil.copy(precious, path)
    else:
        os.mkfifo(path)
    with OutputLock() as lock, pytest.raises(ConfigError) as refused:
        lock.take(folder)
    assert len(refused.value.problems) == 1
    assert ".lock" in refused.value.problems[0]
    assert precious.read_text() == "precious\n"
    assert not (tmp_path / "none").exists()
    assert messages.LINK in refused.value.problems[0] or not kind.startswith("link")


@pytest.mark.parametrize("content", ["", "process 1 on host\n", "process 12345 on a.b-c"])
def test_a_lock_file_of_an_earlier_run_is_taken(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with OutputLock() as lock:
        lock.take(tmp_path)
        assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
