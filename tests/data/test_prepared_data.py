"""Rows on disk and the cache that holds them: the same rows again, made once, whole or not at all."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from sft.common.errors import DataError
from sft.data.cache import UNUSED_DAYS, content_key, find_or_make
from sft.data.store import PreparedRows, RowColumns, RowWriter, StoredRows
from tests.support.parts import REPOSITORY

KEY = content_key({"a": 1})


def columns_of(count, first=0):
    numbers = np.arange(first, first + count)
    return RowColumns(
        num_supervised=(numbers % 7).astype(np.int32),
        full_length=(numbers + 2).astype(np.int32),
        flags=(numbers % 32).astype(np.uint8),
        digest=numbers.astype(np.uint64) + np.uint64(2**63),
        number=(numbers + 1).astype(np.int64),
        file=np.full(count, 3, dtype=np.int32),
        line=(numbers + 2**33).astype(np.int64),
    )


def write_rows(path, batches):
    """A file with a batch of rows for each list of lists of tokens; labels are the tokens and 1000."""
    with RowWriter(path) as writer:
        first = 0
        for rows in batches:
            tokens = np.asarray([token for row in rows for token in row], dtype=np.int32)
            lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
            writer.write(tokens, tokens + 1000, lengths, columns_of(len(rows), first))
            first += len(rows)
    return path


BATCHES = [[[1, 2, 3], [4]], [[5, 6]], [[], [7, 8, 9, 10], [11]]]
ROWS = [row for batch in BATCHES for row in batch]


def tokens_of(rows):
    return [row["input_ids"].tolist() for row in rows]


# Rows


def test_stored_rows_are_those_that_were_written(tmp_path):
    rows = StoredRows(write_rows(tmp_path / "rows.arrow", BATCHES))
    assert len(rows) == 6
    assert [rows[i]["input_ids"].tolist() for i in range(6)] == ROWS
    assert [rows[i]["labels"].tolist() for i in range(6)] == [[token + 1000 for token in row] for row in ROWS]
    assert rows.lengths.tolist() == [3, 1, 2, 0, 4, 1]
    written, read = columns_of(6), rows.columns
    for name in RowColumns.__slots__:
        assert getattr(read, name).tolist() == getattr(written, name).tolist(), name
        assert getattr(read, name).dtype == getattr(written, name).dtype, name
    assert rows[0]["input_ids"].dtype == rows[0]["labels"].dtype == np.int32


def test_stored_rows_of_an_empty_file(tmp_path):
    rows = StoredRows(write_rows(tmp_path / "rows.arrow", []))
    assert (len(rows), rows.lengths.tolist(), rows.columns.digest.tolist()) == (0, [], [])
    assert (rows.lengths.dtype, rows.columns.digest.dtype) == (np.int64, np.uint64)
    chosen = PreparedRows([rows])
    assert (len(chosen), chosen.lengths.tolist(), chosen.source_indices().tolist(), list(chosen)) == (0, [], [], [])
    assert len(chosen.columns().line) == 0


def test_prepared_rows_count_through_several_files(tmp_path):
    first = StoredRows(write_rows(tmp_path / "a.arrow", BATCHES[:1]))
    empty = StoredRows(write_rows(tmp_path / "b.arrow", []))
    last = StoredRows(write_rows(tmp_path / "c.arrow", BATCHES[1:]))
    rows = PreparedRows([first, empty, last])
    assert tokens_of(rows) == ROWS
    assert rows.source_indices().tolist() == [0, 0, 2, 2, 2, 2]
    assert rows.lengths.tolist() == [3, 1, 2, 0, 4, 1]
    assert rows.columns().number.tolist() == [1, 2, 1, 2, 3, 4]


def test_prepared_rows_select_by_their_own_places(tmp_path):
    rows = PreparedRows([StoredRows(write_rows(tmp_path / "rows.arrow", BATCHES))])
    twice = rows.select(np.asarray([5, 0, 0, 2]))
    assert tokens_of(twice) == [[11], [1, 2, 3], [1, 2, 3], [5, 6]]
    assert twice.lengths.tolist() == [1, 3, 3, 2]
    assert twice.columns().number.tolist() == [6, 1, 1, 3]
    assert tokens_of(twice.select(np.asarray([3, 1]))) == [[5, 6], [1, 2, 3]]
    assert tokens_of(rows.select(np.asarray([], dtype=np.int64))) == []
    with pytest.raises(IndexError):
        twice[4]


def test_prepared_rows_travel_as_the_path_of_their_file(tmp_path):
    path = write_rows(tmp_path / "rows.arrow", [[[7] * 100_000]])
    rows = PreparedRows([StoredRows(path)]).select(np.asarray([0, 0]))
    assert rows.lengths.tolist() == [100_000, 100_000]
    data = pickle.dumps(rows)
    assert len(data) < 2_000
    assert tokens_of(pickle.loads(data)) == [[7] * 100_000] * 2


def test_stored_rows_are_mapped_and_not_loaded(tmp_path):
    path = write_rows(tmp_path / "rows.arrow", [np.zeros((50, 20_000), dtype=np.int32)] * 10)
    before = pyarrow.total_allocated_bytes()
    rows = StoredRows(path)
    held = [rows[i] for i in range(len(rows))]
    assert pyarrow.total_allocated_bytes() - before < 100_000
    first, again = rows[3]["input_ids"], rows[3]["input_ids"]
    assert np.shares_memory(first, again)
    assert not first.flags.writeable
    address = held[-1]["labels"].__array_interface__["data"][0]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("rows.arrow")]
    edges = [[int(edge, 16) for edge in fields[0].split("-")] for fields in maps]
    assert any(start <= address < end for start, end in edges)


def test_stored_rows_of_a_deleted_file_stay_readable(tmp_path):
    path = write_rows(tmp_path / "rows.arrow", BATCHES)
    rows = StoredRows(path)
    path.unlink()
    assert tokens_of(PreparedRows([rows])) == ROWS


# The cache


def fill(text="whole"):
    def make(folder):
        (folder / "content").write_text(text)

    return make


def content_of(entry):
    return (entry / "content").read_text()


def test_content_key_tells_every_ingredient_apart():
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


def test_find_or_make_of_eight_processes_makes_once(tmp_path):
    processes = [start_maker(tmp_path, seconds=0.5) for _ in range(8)]
    said = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert said == ["found whole\n"] * 7 + ["made whole\n"]
    assert makers_in(tmp_path) == 1


def test_find_or_make_after_a_killed_maker_makes_anew(tmp_path):
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


def test_find_or_make_tells_that_it_waits(tmp_path):
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


def test_find_or_make_in_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        find_or_make(tmp_path / "file" / "cache", KEY, fill())
    assert caught.value.problems == (
        f"data_cache_dir: cannot write to {tmp_path}/file/cache: Not a directory. Free disk space or set another "
        "folder.",
    )


def test_find_or_make_without_room_is_one_line(tmp_path):
    def make(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r": No space left on device\. Free disk space or set another"):
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
    """A lock file of an entry that was made long ago: whoever makes it again now must not lose it to a clean-up."""
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
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("True whole\n", "")
