"""The cache of prepared rows: each entry is made once and appears complete."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sft.common.errors import ConfigError, DataError
from sft.data.cache import UNUSED_DAYS, content_key, find_or_make
from tests.support import messages
from tests.support.paths import REPOSITORY

KEY = content_key({"a": 1})


def fill(text="whole"):
    def make(folder):
        (folder / "content").write_text(text)

    return make


def content_of(entry):
    return (entry / "content").read_text()


def test_content_key_depends_on_every_ingredient():
    keys = [
        content_key(ingredients)
        for ingredients in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": None}, {"a": [1]}, {"a": "\ud800"}, {})
    ]
    assert len(set(keys)) == 8
    assert content_key({"b": 2, "a": 1}) == content_key({"a": 1, "b": 2})
    assert keys[0] == "sft-f9d86028c6e0d64e225186f96acb6933"


def test_find_or_make_makes_once(tmp_path):
    entry, was_there = find_or_make(tmp_path / "new" / "cache", KEY, fill("first"))
    assert (entry, was_there, content_of(entry)) == (tmp_path / "new" / "cache" / KEY, False, "first")
    again, was_there = find_or_make(tmp_path / "new" / "cache", KEY, fill("second"))
    assert (again, was_there, content_of(again)) == (entry, True, "first")


@pytest.mark.parametrize("suffix", [".lock", ".unfinished"])
@pytest.mark.parametrize("target", ["precious.txt", "precious", "nowhere"])
def test_the_cache_writes_through_no_link(tmp_path, suffix, target):
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "precious").mkdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{KEY}{suffix}").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match=messages.LINK):
        find_or_make(cache, KEY, fill())
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert not list((tmp_path / "precious").iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_a_cache_that_is_a_link_is_the_folder_that_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").symlink_to("real")
    find_or_make(tmp_path / "cache", KEY, fill())
    assert content_of(tmp_path / "real" / KEY) == "whole"


MAKER = """
import logging, os, sys, time
from pathlib import Path
from sft.data.cache import find_or_make
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder, key, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def make(unfinished):
    (folder / f"maker-{os.getpid()}").touch()
    (unfinished / "content").write_text("half")
    time.sleep(seconds)
    (unfinished / "content").write_text("whole")
entry, was_there = find_or_make(folder, key, make)
print("found" if was_there else "made", (entry / "content").read_text(), flush=True)
"""


def start_maker(folder, seconds=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(folder), KEY, str(seconds)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def makers_in(folder):
    return len(list(folder.glob("maker-*")))


def wait_for_makers(folder, count):
    deadline = time.monotonic() + 30
    while makers_in(folder) < count:
        assert time.monotonic() < deadline, "no maker began"
        time.sleep(0.02)


def test_find_or_make_in_eight_processes_makes_once(tmp_path):
    processes = [start_maker(tmp_path, seconds=0.5) for _ in range(8)]
    said = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert said == ["found whole\n"] * 7 + ["made whole\n"]
    assert makers_in(tmp_path) == 1


def test_find_or_make_starts_again_after_a_killed_process(tmp_path):
    killed = start_maker(tmp_path, seconds=60)
    wait_for_makers(tmp_path, 1)
    waiting = start_maker(tmp_path)
    time.sleep(0.3)
    assert not (tmp_path / KEY).exists()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert waiting.communicate(timeout=30)[0] == "made whole\n"
    assert makers_in(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [KEY]


def test_find_or_make_logs_that_it_waits(tmp_path):
    first = start_maker(tmp_path, seconds=4)
    wait_for_makers(tmp_path, 1)
    second = start_maker(tmp_path)
    assert second.communicate(timeout=30)[0] == (
        "Another process is preparing the same data; waiting for it.\nfound whole\n"
    )
    assert first.communicate(timeout=30)[0] == "made whole\n"


@pytest.mark.parametrize("error", [DataError("a row is bad"), KeyboardInterrupt(), ValueError("a bug")])
def test_find_or_make_leaves_nothing_of_a_maker_that_fails(tmp_path, error):
    def make(folder):
        fill("half")(folder)
        raise error

    with pytest.raises(type(error)):
        find_or_make(tmp_path, KEY, make)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    entry, was_there = find_or_make(tmp_path, KEY, fill())
    assert (was_there, content_of(entry)) == (False, "whole")


def test_find_or_make_in_an_unwritable_folder_fails_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        find_or_make(tmp_path / "file" / "cache", KEY, fill())
    assert caught.value.problems == (
        f"data_cache_dir: cannot write to {tmp_path}/file/cache: Not a directory. Free disk space or set another "
        "folder.",
    )


def test_find_or_make_on_a_full_disk_fails_in_one_line(tmp_path):
    def make(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=messages.pattern(messages.OTHER_CACHE)):
        find_or_make(tmp_path, KEY, make)


def days_ago(path, days):
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def test_find_or_make_deletes_what_no_run_used(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="sft.data")
    old, used, young = (content_key({"entry": name}) for name in ("old", "used", "young"))
    for key in (old, used, young):
        find_or_make(tmp_path, key, fill())
    (tmp_path / f"{old}.unfinished").mkdir()
    for name in (old, used, f"{old}.lock", f"{old}.unfinished"):
        days_ago(tmp_path / name, UNUSED_DAYS + 1)
    find_or_make(tmp_path, used, fill())
    find_or_make(tmp_path, KEY, fill())
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == sorted([used, young, KEY])
    assert not (tmp_path / f"{old}.lock").exists()
    assert caplog.messages == [f"Deleted 3 entries of {tmp_path} that no run used for 30 days."]


def test_find_or_make_deletes_nothing_that_is_not_its_own(tmp_path):
    names = ["notes.txt", "0123456789abcdef0123456789abcdef", "sft-notes", "sft-0123.lock", f"{KEY}.bak"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("")
        days_ago(tmp_path / name, 400)
    find_or_make(tmp_path, KEY, fill())
    assert all((tmp_path / name / "precious").is_file() for name in names)


def test_find_or_make_keeps_a_lock_that_is_in_use(tmp_path):
    """The lock file of an old entry: a process that makes the entry again must not lose it to a clean-up."""
    lock = tmp_path / f"{KEY}.lock"
    lock.touch()
    days_ago(lock, UNUSED_DAYS + 1)

    def make(folder):
        find_or_make(tmp_path, content_key({"another": 1}), fill())
        assert lock.exists()
        fill()(folder)

    assert content_of(find_or_make(tmp_path, KEY, make)[0]) == "whole"


def test_find_or_make_survives_entries_that_come_and_go(tmp_path):
    """Many entries made at once: what one process lists, another has renamed."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom sft.data.cache import content_key, find_or_make\n"
        "for number in range(150):\n"
        "    find_or_make(Path(sys.argv[1]), content_key({sys.argv[2]: number}), lambda folder: None)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(number)],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    assert [process.communicate(timeout=60)[1] for process in processes] == ["", "", ""]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 450


def test_find_or_make_reads_a_cache_that_cannot_be_touched():
    """Somebody else's cache: to read an entry, nothing has to be written."""
    script = (
        "import os, sys, filelock\nfrom pathlib import Path\nfrom sft.data.cache import find_or_make\n"
        "if os.getuid() == 0:\n    os.setgroups([])\n    os.setgid(65534)\n    os.setuid(65534)\n"
        "entry, was_there = find_or_make(Path(sys.argv[1]), sys.argv[2], None)\n"
        "print(was_there, (entry / 'content').read_text())\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        entry, _ = find_or_make(Path(folder), KEY, fill())
        Path(folder).chmod(0o755)
        entry.chmod(0o755)
        command = [sys.executable, "-c", script, folder, KEY]
        # That user may not write a coverage file either, so this child is not measured.
        unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=unmeasured, capture_output=True, text=True, timeout=30, check=False
        )
    assert (done.stdout, done.stderr) == ("True whole\n", "")
