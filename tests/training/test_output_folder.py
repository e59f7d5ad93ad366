"""The output folder of a run that is lost in mid-run, and what then cannot be written: one line on all processes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from dataclasses import replace

import pytest

from sft.checkpointing.output_lock import LOCK_FILE, OutputLock
from sft.common.errors import CheckpointError


def no_more_bytes(folder):
    """The folder is gone, and the configuration does not fit on the disk."""
    shutil.rmtree(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def no_more_files(folder):
    shutil.rmtree(folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def foreign_lock(folder):
    (folder / LOCK_FILE).unlink()
    (folder / LOCK_FILE).write_text("notes of someone\n")


def linked_lock(folder):
    (folder / LOCK_FILE).unlink()
    (folder / LOCK_FILE).symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("happens", "found"),
    [
        (no_more_bytes, os.strerror(errno.EFBIG).lower()),
        (no_more_files, os.strerror(errno.EMFILE).lower()),
        (foreign_lock, "is not the lock file of a run"),
        (linked_lock, "link"),
    ],
)
def test_an_output_folder_that_cannot_be_confirmed_is_one_line(prepare, tmp_path, happens, found):
    trainer = prepare(output_dir=str(tmp_path / "out"))[0].trainer
    (tmp_path / "out").mkdir(exist_ok=True)
    limits = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)}
    with OutputLock() as lock:
        lock.take(tmp_path / "out")
        trainer.setup = replace(trainer.setup, lock=lock)
        usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            happens(tmp_path / "out")
            with pytest.raises(CheckpointError) as caught:
                trainer.confirm_output()
        finally:
            for kind, limit in limits.items():
                resource.setrlimit(kind, limit)
            signal.signal(signal.SIGXFSZ, usual)
    (line,) = caught.value.problems
    assert str(tmp_path / "out") in line
    assert found in line.lower()
    assert "\n" not in line
