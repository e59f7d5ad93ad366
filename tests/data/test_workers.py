"""Worker processes: the same rows for any number of them, and no process remains."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import Thread

import datasets
import numpy as np
import pyarrow
import pytest

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig
from sft.data.preparation import SourcePreparation
from sft.data.sources.chunks import MAX_ROWS
from sft.data.sources.load import open_sources
from sft.data.workers import CHUNKS_WITHOUT_WORKERS
from sft.prompting.formats import format_named
from tests.support.data_files import entries, mixed_rows, pairs, prepare, write
from tests.support.small_models import build_tokenizer


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_prepare_gives_the_same_file_from_one_process_and_from_several(tmp_path, tokenizer, kind):
    rows = mixed_rows(9 * MAX_ROWS + 100)
    assert len(rows) / MAX_ROWS > CHUNKS_WITHOUT_WORKERS + 2
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(file, rows)
    else:
        file.write_text(json.dumps([row for row in rows if not isinstance(row, str)]))
    found = []
    for workers in (1, 2, 3):
        cache = tmp_path / str(workers)
        config = DataConfig(
            train_file=str(file),
            on_bad_rows="skip",
            max_seq_length=200,
            preprocessing_num_workers=workers,
            data_cache_dir=str(cache),
        )
        data = prepare(config, tokenizer)
        (entry,) = entries(cache)
        found.append((data.report, (entry / "rows.arrow").read_bytes(), (entry / "report.json").read_bytes()))
    assert found[0] == found[1] == found[2]
    report = found[0][0].train
    assert set(report.rows_dropped) == {"invalid_json", "empty_answer", "nothing_left_after_truncation"} - (
        {"invalid_json"} if kind == "json" else set()
    )
    assert min(report.rows_dropped.values()) > 40
    assert report.rows_that_lose_the_end > 40
    numbers = pyarrow.ipc.open_file(pyarrow.memory_map(str(entry / "rows.arrow"))).read_all()["number"].to_numpy()
    assert (np.diff(numbers) > 0).all()
    assert numbers[-1] == report.rows_read


def test_prepare_of_a_dataset_gives_the_same_from_several_processes(tmp_path, tokenizer):
    datasets.Dataset.from_list(pairs(6 * MAX_ROWS)).save_to_disk(tmp_path / "set")
    found = []
    for workers in (1, 2):
        config = DataConfig(
            dataset_name=str(tmp_path / "set"),
            preprocessing_num_workers=workers,
            data_cache_dir=str(tmp_path / str(workers)),
        )
        data = prepare(config, tokenizer)
        (entry,) = entries(tmp_path / str(workers))
        found.append((data.report, (entry / "rows.arrow").read_bytes()))
    assert found[0] == found[1]
    assert found[0][0].rows_used == 6 * MAX_ROWS


def test_row_preparer_can_be_pickled(tmp_path, tokenizer):
    (source,) = open_sources(DataConfig(train_file=write(tmp_path / "a.jsonl", mixed_rows(100)))).train
    preparer = SourcePreparation(DataConfig(), tokenizer).preparer(source, format_named("question_answer"))
    (chunk,) = source.chunks()
    here, there = preparer(chunk), pickle.loads(pickle.dumps(preparer))(pickle.loads(pickle.dumps(chunk)))
    assert here.input_ids.tolist() == there.input_ids.tolist()
    assert here.labels.tolist() == there.labels.tolist()
    assert (here.dropped, here.rows_read, here.seen_columns) == (there.dropped, there.rows_read, there.seen_columns)


PREPARE = """
import sys
from tests.support.small_models import build_tokenizer
from sft.configuration.schema import DataConfig
from data_handler import prepare_data
tokenizer = build_tokenizer()
"""


def run_script(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", PREPARE + script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_prepare_forks_after_the_tokenizer_used_threads(tmp_path):
    """Threads do not survive a fork: a worker that waited for them would wait forever."""
    file = write(tmp_path / "a.jsonl", pairs(7 * MAX_ROWS))
    script = """
tokenizer(["some text"] * 1000)
config = DataConfig(train_file=sys.argv[1], preprocessing_num_workers=2, data_cache_dir=sys.argv[2])
print(prepare_data(config, tokenizer, seed=0).report.rows_used)
"""
    done = run_script(script, file, tmp_path / "cache", TOKENIZERS_PARALLELISM="true")
    assert (done.stdout, done.stderr) == (f"{7 * MAX_ROWS}\n", "")


def slow_tokenizer():
    """A slow template: some milliseconds per row."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for i in range(20000) %}{% endfor %}" + tokenizer.chat_template
    return tokenizer


def in_a_session_of_its_own(config, tokenizer, output):
    """Prepares; what is written goes to a file."""
    os.setsid()
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        prepare(config, tokenizer)
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def slow_preparation(tmp_path, cache):
    """A process that prepares for minutes with two workers, which have started."""
    file = write(tmp_path / "a.jsonl", pairs(4 * 16 + 3000))
    # Long lines, so that a chunk has few rows and the other processes begin soon.
    lines = Path(file).read_text().splitlines()
    padded = [line.replace('"q ', '"' + "q" * 70_000 + " ") for line in lines[:64]]
    Path(file).write_text("\n".join([*padded, *lines[64:]]))
    config = DataConfig(train_file=file, preprocessing_num_workers=2, data_cache_dir=str(cache), max_seq_length=99_999)
    process = get_context("fork").Process(
        target=in_a_session_of_its_own, args=(config, slow_tokenizer(), str(tmp_path / "output"))
    )
    process.start()
    workers = wait_until(lambda: len(found := children_of(process.pid)) == 2 and found)
    yield process, workers
    for pid in (process.pid, *workers):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.join()


def test_prepare_stops_at_once_when_interrupted(tmp_path, cache, slow_preparation):
    process, workers = slow_preparation
    time.sleep(0.3)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process gets it
    process.join(10)
    assert process.exitcode == 130
    assert time.monotonic() - began < 4
    assert not any(map(is_alive, workers))
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []
    assert (tmp_path / "output").read_text() == ""


def test_prepare_leaves_no_process_and_no_lock_when_it_is_killed(tmp_path, cache, slow_preparation):
    process, workers = slow_preparation
    time.sleep(0.3)
    process.kill()
    process.join()
    wait_until(lambda: not any(map(is_alive, workers)), seconds=5)
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".unfinished"]
    file = tmp_path / "a.jsonl"
    file.write_text(file.read_text().splitlines()[-1])
    config = DataConfig(train_file=str(file), data_cache_dir=str(cache))
    assert prepare(config, slow_tokenizer()).report.rows_used == 1


def test_prepare_with_a_killed_worker_fails_in_one_line(tmp_path, cache, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(40 * MAX_ROWS))
    before = set(active_children())

    def kill_one():
        wait_until(lambda: set(active_children()) - before).pop().kill()

    killer = Thread(target=kill_one)
    killer.start()
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(train_file=file, preprocessing_num_workers=2, data_cache_dir=str(cache)), tokenizer)
    killer.join()
    assert caught.value.problems == (
        "preprocessing_num_workers: one of 2 worker processes was killed while it prepared rows (out of memory?). Set "
        "a smaller number or free memory.",
    )
    assert set(active_children()) == before
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_prepare_needs_no_more_memory_for_more_rows(tmp_path):
    row = {"question": "What is the number of the row? " * 4, "answer": "It is 1234567890. " * 4}
    for name, count in (("few", 5_000), ("many", 40_000)):
        write(tmp_path / f"{name}.jsonl", ({**row, "question": f"{i} {row['question']}"} for i in range(count)))
    script = """
import resource
for name in ("few", "many"):
    config = DataConfig(train_file=f"{sys.argv[1]}/{name}.jsonl", data_cache_dir=f"{sys.argv[1]}/cache")
    data = prepare_data(config, tokenizer, seed=0)
    print(len(data.train), data.report.train.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = run_script(script, tmp_path)
    (few, _, before), (many, tokens, after) = [map(int, line.split()) for line in done.stdout.splitlines()]
    assert (few, many) == (5_000, 40_000)
    assert 8 * tokens > 39 * 2**20, "held in memory, these rows would show"
    assert (after - before) / 2**10 < 25  # MiB


def test_a_long_row_takes_a_few_times_its_size(tmp_path):
    """A tokenizer needs over a hundred bytes for a character; marks may make two bytes of each, and are objects."""
    words = " ".join(f"word{number % 977} is said," for number in range(40_000))
    answer = {"role": "assistant", "content": words}
    write(tmp_path / "small.jsonl", [{"messages": [{"role": "user", "content": "a"}, {**answer, "content": "b"}]}])
    write(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": words}, answer]}])
    write(tmp_path / "text.jsonl", [{"text": words}])
    short = [
        {"role": ("user", "assistant")[number % 2], "content": f"{number} is said in a message of about sixty letters"}
        for number in range(6000)
    ]
    write(tmp_path / "short.jsonl", [{"messages": short}])
    script = """
import resource
for name in ("small", "text", "chat", "short"):
    config = DataConfig(
        train_file=f"{sys.argv[1]}/{name}.jsonl", data_cache_dir=f"{sys.argv[1]}/cache", max_seq_length=10**8,
        preprocessing_num_workers=1,
    )
    prepare_data(config, tokenizer, seed=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = run_script(script, tmp_path)
    small, *peaks = map(int, done.stdout.split())
    for name, peak in zip(("text", "chat", "short"), peaks, strict=True):
        size = (tmp_path / f"{name}.jsonl").stat().st_size
        assert peak - small < 10 * size + 16 * 2**20, name
