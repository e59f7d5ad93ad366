"""One run at a time in an output folder."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sft.checkpointing.output_lock import OutputLock
from sft.common.errors import ConfigError
from tests.support import messages
from tests.support.paths import REPOSITORY


def test_output_lock_refuses_a_second_process_and_is_free_when_its_holder_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom sft.checkpointing.output_lock import OutputLock\n"
        "lock = OutputLock()\nlock.take(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with (
            OutputLock() as lock,
            pytest.raises(ConfigError, match=re.escape(messages.FOLDER_IN_USE.format(process=holder.pid))),
        ):
            lock.take(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    with OutputLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)


def test_output_lock_creates_no_folder(tmp_path):
    with OutputLock() as lock:
        lock.take(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
