"""Sources to prepared, counted rows: alike from any number of processes, found again, and judged by their counts."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import Thread

import datasets
import numpy as np
import pyarrow
import pytest
from tokenizers import AddedToken

from data_handler import prepare_data
from sft.common.data_records import DroppedRow, LengthReport, RowProblem, RowSource
from sft.common.errors import DataError
from sft.configuration.schema import RECORD_FORMATS, DataConfig, DatasetSource
from sft.data.checks import bad_row_lines, find_problems
from sft.data.counts import BINS, _length_report
from sft.data.dropped import DroppedRows
from sft.data.preparation import SourcePreparation
from sft.data.rows import NOTE_FLAGS
from sft.data.sources.chunks import MAX_ROWS
from sft.data.sources.load import open_sources
from sft.data.workers import CHUNKS_WITHOUT_WORKERS
from sft.prompting.formats import FORMATS, format_named
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import RowTooLong
from sft.prompting.turns import NOTES
from tests.support.parts import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def write(path, rows):
    """A file of JSON Lines; a text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    return str(path)


def pairs(count, first=0):
    return [{"question": f"q {i}", "answer": f"a {i}"} for i in range(first, first + count)]


def texts(path, lengths):
    """Texts of that many tokens with their end; digits are a token each, and no two texts are alike."""
    path.write_text("".join(f"{i:04}".ljust(length - 1, "7") + "\n" for i, length in enumerate(lengths)))
    return str(path)


def prepare(config, tokenizer, **options):
    return prepare_data(config, tokenizer, seed=0, **options)


def answers(tokenizer, rows):
    return [tokenizer.decode(row["labels"][row["labels"] != -100]).removesuffix("<|im_end|>") for row in rows]


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else []


# In one process and in several


def mixed_rows(count):
    """Good rows of several lengths and every few rows a bad one of several kinds."""
    rows = []
    for i in range(count):
        rows.append({"question": f"What comes after {i}?" * (1 + i % 5), "answer": f"{i + 1}", "id": i})
        if i % 97 == 0:
            rows[-1] = '{"question": "torn'
        elif i % 61 == 0:
            rows[-1] = {"question": "q", "answer": ""}
        elif i % 53 == 0:
            rows[-1] = {"question": "long " * 300, "answer": f"{i}"}
        elif i % 41 == 0:
            rows[-1] = {"question": "q", "answer": f"{i} " * 200, "remark": None}
    return rows


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


def test_row_preparer_travels_to_a_process_that_is_not_forked(tmp_path, tokenizer):
    (source,) = open_sources(DataConfig(train_file=write(tmp_path / "a.jsonl", mixed_rows(100)))).train
    preparer = SourcePreparation(DataConfig(), tokenizer).preparer(source, format_named("question_answer"))
    (chunk,) = source.chunks()
    here, there = preparer(chunk), pickle.loads(pickle.dumps(preparer))(pickle.loads(pickle.dumps(chunk)))
    assert here.input_ids.tolist() == there.input_ids.tolist()
    assert here.labels.tolist() == there.labels.tolist()
    assert (here.dropped, here.rows_read, here.seen_columns) == (there.dropped, there.rows_read, there.seen_columns)


PREPARE = """
import sys
from tests.support.parts import build_tokenizer
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
    """Threads do not survive a fork: a worker that waited for them would wait for ever."""
    file = write(tmp_path / "a.jsonl", pairs(7 * MAX_ROWS))
    script = """
tokenizer(["some text"] * 1000)
config = DataConfig(train_file=sys.argv[1], preprocessing_num_workers=2, data_cache_dir=sys.argv[2])
print(prepare_data(config, tokenizer, seed=0).report.rows_used)
"""
    done = run_script(script, file, tmp_path / "cache", TOKENIZERS_PARALLELISM="true")
    assert (done.stdout, done.stderr) == (f"{7 * MAX_ROWS}\n", "")


# Processes that end too soon


def slow_tokenizer():
    """A template that takes its time: some milliseconds a row."""
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
    """A process that prepares for minutes with two others, which have begun."""
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


def test_prepare_ends_at_once_when_interrupted(tmp_path, cache, slow_preparation):
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


def test_prepare_with_a_killed_worker_is_one_line(tmp_path, cache, tokenizer):
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


def test_prepare_of_a_file_that_breaks_late_leaves_nothing(tmp_path, cache, tokenizer):
    rows = json.dumps(pairs(8 * MAX_ROWS))
    (tmp_path / "a.json").write_text(rows[:-20])
    config = DataConfig(
        train_file=str(tmp_path / "a.json"), preprocessing_num_workers=2, data_cache_dir=str(cache), on_bad_rows="skip"
    )
    with pytest.raises(DataError, match=r"a\.json"):
        prepare(config, tokenizer)
    assert entries(cache) == []
    assert active_children() == []


def test_prepare_refuses_a_file_that_changes_while_it_is_read(tmp_path, cache):
    """Rows of the new content under the name of the old one would be found again later."""
    file = Path(write(tmp_path / "a.jsonl", pairs(3)))
    preparation = SourcePreparation(DataConfig(data_cache_dir=str(cache)), build_tokenizer(None))
    (source,) = open_sources(DataConfig(train_file=str(file))).train

    class Writes(logging.Handler):
        """Adds a row when the log says that a template is chosen: after the file was digested."""

        def emit(self, record):
            write(file, pairs(4))

    handler, logger = Writes(), logging.getLogger("sft.data")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(DataError) as caught:
            preparation.prepare("train", source)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert caught.value.problems == (f"{file}: changed while it was being read. Start again when it is complete.",)
    assert entries(cache) == []


# Memory


@pytest.mark.slow
def test_prepare_takes_no_more_memory_for_more_rows(tmp_path):
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


def test_refusals_do_not_grow_with_the_rows():
    total = DroppedRows()
    for part in range(300):
        one = DroppedRows()
        for line in range(512):
            source = RowSource(file="a.jsonl", line=512 * part + line + 1)
            one.add(source, RowTooLong("too_long", "it has", 1000 + line % 3, "end"))
            one.add(source, RowRefused(f"reason {part % 2}", "no"))
        total.update(one)
    assert total.counts == {"too_long": 153_600, "reason 0": 76_800, "reason 1": 76_800}
    assert total.full_lengths == {1000: 51_300, 1001: 51_300, 1002: 51_000}
    assert total.too_long == {"end": 153_600}
    named = {
        reason: [row.source.line for row in total.examples if row.problem.reason == reason] for reason in total.counts
    }
    assert named == {
        "too_long": list(range(1, 11)),
        "reason 0": list(range(1, 11)),
        "reason 1": list(range(513, 523)),
    }


# Found again


def test_prepare_finds_what_was_prepared_before(tmp_path, cache, tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="sft.data")
    rows = [*mixed_rows(300), {"question": "What comes after 1?", "answer": "2", "more": 1}]
    file = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(
        train_file=file, data_cache_dir=str(cache), on_bad_rows="skip", validation_split=0.1, max_seq_length=200
    )
    first = prepare(config, tokenizer, show_rows=(1, 3))
    said = caplog.messages
    caplog.clear()
    second = prepare(config, tokenizer, show_rows=(1, 3))
    assert said == [f"Train: {file}, read as question + answer.", "Train: unused columns: id, more, remark."]
    assert caplog.messages == [
        f"Train: {file}, read as question + answer (prepared before).",
        "Train: unused columns: id, more, remark.",
    ]
    assert first.report == second.report
    assert (first.previews, first.sample_prompts) == (second.previews, second.sample_prompts)
    for ours, theirs in ((first.train, second.train), (first.validation, second.validation)):
        assert [row["input_ids"].tolist() for row in ours] == [row["input_ids"].tolist() for row in theirs]
        assert [row["labels"].tolist() for row in ours] == [row["labels"].tolist() for row in theirs]


def test_prepare_notices_a_byte(tmp_path, cache, tokenizer):
    file = Path(write(tmp_path / "a.jsonl", pairs(20)))
    config = DataConfig(train_file=str(file), data_cache_dir=str(cache))
    before, stat = prepare(config, tokenizer), file.stat()
    file.write_bytes(file.read_bytes().replace(b'"a 7"', b'"a 8"'))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = prepare(config, tokenizer)
    assert file.stat().st_size == stat.st_size
    assert answers(tokenizer, before.train)[6:9] == ["a 6", "a 7", "a 8"]
    assert answers(tokenizer, after.train)[6:9] == ["a 6", "a 8", "a 8"]


TWO_TURNS = {
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
}


def set_template(tokenizer):
    tokenizer.chat_template += "{# another #}"


def set_token(tokenizer):
    tokenizer.add_tokens([AddedToken("three")])


def set_special(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_length": 30},
        {"on_too_long": "drop"},
        {"train_on": "last"},
        {"add_end_token": True},
        {"dataset_columns": {"messages": "conversations"}},
        set_template,
        set_token,
        set_special,
    ],
    ids=lambda change: getattr(change, "__name__", str(change)),
)
def test_prepare_notices_what_changes_the_rows(tmp_path, cache, change):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [TWO_TURNS]), data_cache_dir=str(cache))
    tokenizer = build_tokenizer()
    prepare(config, tokenizer)
    if callable(change):
        change(tokenizer)
        prepare(config, tokenizer)
    else:
        prepare(replace(config, **change), tokenizer)
    assert len(entries(cache)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"on_bad_rows": "skip"},
        {"preprocessing_num_workers": 1},
        {"max_bad_row_share": 0.5},
        {"validation_split": 0.5},
        {"max_leakage_share": 1.0},
    ],
    ids=str,
)
def test_prepare_finds_rows_again_whatever_is_done_with_them(tmp_path, cache, tokenizer, change):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", pairs(4)), data_cache_dir=str(cache))
    prepare(config, tokenizer)
    prepare(replace(config, **change), tokenizer)
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("change", [{"weight": 2.0}, {}], ids=str)
def test_prepare_finds_the_rows_of_a_source_again_whatever_its_weight(tmp_path, cache, tokenizer, change):
    file = write(tmp_path / "a.jsonl", pairs(4))
    for source in (DatasetSource(path=file), DatasetSource(path=file, **change)):
        prepare(DataConfig(datasets=[source], data_cache_dir=str(cache)), tokenizer)
    assert len(entries(cache)) == 1


def test_prepare_finds_rows_again_with_a_tokenizer_that_was_saved_with_cuts_and_without_a_template(tmp_path, cache):
    """Use changes a tokenizer: the second source must not look different from one run to the next."""
    files = [write(tmp_path / f"{name}.jsonl", pairs(3, first)) for name, first in (("a", 0), ("b", 10))]
    config = DataConfig(datasets=[DatasetSource(path=file) for file in files], data_cache_dir=str(cache))
    for _ in range(2):
        tokenizer = build_tokenizer(None)
        tokenizer.backend_tokenizer.enable_truncation(16)
        tokenizer.backend_tokenizer.enable_padding(length=16)
        prepare(config, tokenizer)
    assert len(entries(cache)) == 2


def test_prepare_of_odd_names_and_values(tmp_path, cache, tokenizer):
    folder = tmp_path / os.fsdecode(b"caf\xe9\xff")
    folder.mkdir()
    rows = ['{"question": "q", "answer": "\\ud800"}', '{"question": {"\\u2028\\n": 1}, "answer": "a"}', *pairs(2)]
    file = write(folder / "line\nend \u2028.jsonl", rows)
    config = DataConfig(train_file=file, data_cache_dir=str(folder / "cache"))
    first, second = prepare(config, tokenizer), prepare(config, tokenizer)
    assert first.report == second.report
    assert first.report.train.rows_dropped == {"not_unicode": 1, "wrong_type": 1}
    assert answers(tokenizer, second.train) == ["a 0", "a 1"]
    assert bad_row_lines(first.report, config)[0] == (
        f"{file}:1: 'answer' contains an unpaired surrogate, which is not a character (not_unicode)."
    )


# Counts


def test_prepare_counts_duplicates_whatever_their_case_and_space(tmp_path, tokenizer):
    rows = [
        {"question": "What is it?", "answer": "Caf\u00e9"},
        {"question": "other", "answer": "Caf\u00e9"},
        {"question": " what  IS\nit? ", "answer": "CAFE\u0301"},
        {"question": "What is it?", "answer": ""},
        {"question": "What is it?", "answer": "Caf\u00e9."},
        {"question": "OTHER", "answer": "caf\u00e9"},
        {"question": "What is it?", "answer": "Caf\u00e9"},
        {"question": "Caf\u00e9", "answer": "other"},
        {"question": "What is", "answer": "it? Caf\u00e9"},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert report.duplicates == 3
    assert [(str(later), str(first)) for later, first in report.duplicate_examples] == [
        (f"{file}:3", f"{file}:1"),
        (f"{file}:6", f"{file}:2"),
        (f"{file}:7", f"{file}:1"),
    ]


def test_prepare_does_not_take_other_roles_or_tools_for_duplicates(tmp_path, tokenizer):
    def chat(role, tools=None):
        messages = [{"role": role, "content": "hi"}, {"role": "user", "content": "x"}]
        return {"messages": [*messages, {"role": "assistant", "content": "yes"}], "tools": tools}

    tools = [[{"type": "function", "function": {"name": name}}] for name in "fg"]
    rows = [chat("system"), chat("user"), chat("system", tools[0]), chat("system", tools[1]), chat("system", tools[0])]
    file = write(tmp_path / "a.jsonl", rows)
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert [(later.line, first.line) for later, first in report.duplicate_examples] == [(5, 3)]


def test_prepare_names_five_duplicates_and_counts_all(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(3) * 400)
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert (report.rows_used, report.duplicates) == (1200, 1197)
    assert [(later.line, first.line) for later, first in report.duplicate_examples] == [
        (4, 1), (5, 2), (6, 3), (7, 1), (8, 2)
    ]  # fmt: skip


@pytest.fixture
def leaking(tmp_path):
    """Ten validation rows, of which the third and the ninth stand in the training data."""
    train = [write(tmp_path / "a.jsonl", pairs(5, 100)), write(tmp_path / "b.jsonl", pairs(5, 200))]
    rows = pairs(10)
    rows[2] = {"question": "Q 201", "answer": " a  201"}
    rows[8] = pairs(1, 104)[0]
    return DataConfig(
        datasets=[DatasetSource(path=path) for path in train],
        validation_file=write(tmp_path / "v.jsonl", rows),
    )


def test_prepare_finds_validation_rows_in_the_training_rows(tmp_path, tokenizer, leaking):
    report = prepare(leaking, tokenizer).report
    assert report.leakage == 2
    assert [(str(leak), str(original)) for leak, original in report.leakage_examples] == [
        (f"{tmp_path}/v.jsonl:3", f"{tmp_path}/b.jsonl:2"),
        (f"{tmp_path}/v.jsonl:9", f"{tmp_path}/a.jsonl:5"),
    ]
    assert (report.train.duplicates, report.validation.duplicates) == (0, 0)


@pytest.mark.parametrize(("share", "is_sound"), [(0.0, False), (0.19, False), (0.2, True), (1.0, True)])
def test_find_problems_of_leakage_up_to_a_share(tmp_path, tokenizer, leaking, share, is_sound):
    config = replace(leaking, max_leakage_share=share)
    line = (
        f"2 of 10 validation rows are also in the training data ({tmp_path}/v.jsonl:3 is {tmp_path}/b.jsonl:2; "
        f"{tmp_path}/v.jsonl:9 is {tmp_path}/a.jsonl:5): more than max_leakage_share {share:g} allows. Remove them "
        "or raise max_leakage_share."
    )
    assert find_problems(prepare(config, tokenizer).report, config) == ([] if is_sound else [line])


def without_bins(lengths):
    return replace(lengths, bin_edges=(), bin_counts=())


@pytest.mark.parametrize(
    "lengths",
    [
        [7],
        [7] * 50,
        [0, 3],
        list(range(24)),
        list(range(25)),
        [1, 2, 3] * 40 + [100_000],
        list(range(1, 3000, 7)) + [2**20],
    ],
)
def test_histogram_of_lengths_adds_up_to_the_rows(lengths):
    found = _length_report(np.asarray(lengths))
    assert sum(found.bin_counts) == len(lengths)
    assert len(found.bin_edges) == len(found.bin_counts) + 1 <= BINS + 1
    assert list(found.bin_edges) == sorted(set(found.bin_edges))
    assert (found.bin_edges[0], found.bin_edges[-1]) == (min(lengths), max(lengths) + 1)
    for low, high, count in zip(found.bin_edges, found.bin_edges[1:], found.bin_counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)


def test_histogram_of_lengths_grows_its_bins_where_few_rows_are_far_longer():
    found = _length_report(np.asarray(list(range(20, 120)) * 10 + [50_000]))
    assert found.bin_counts[0] < 500
    even = _length_report(np.asarray(range(100)))
    widths = np.diff(even.bin_edges)
    assert widths.max() - widths.min() <= 1


def test_prepare_tells_the_lengths_of_rows(tmp_path, tokenizer):
    """Lengths 11 to 110: so many percent of the rows have at most so many tokens and ten."""
    file = texts(tmp_path / "a.txt", np.random.default_rng(0).permutation(100) + 11)
    report = prepare(DataConfig(train_file=file, max_seq_length=200), tokenizer).report.train
    assert without_bins(report.lengths) == LengthReport(median=60, p90=100, p95=105, p99=109, longest=110)
    assert sum(report.lengths.bin_counts) == 100
    assert (report.tokens, report.longest_row, report.rows_too_long) == (6050, 110, 0)
    assert report.supervised_tokens == 5950  # all but the first of each row, which nothing predicts


@pytest.mark.parametrize("on_too_long", ["truncate", "drop", "error"])
def test_prepare_tells_the_lengths_of_whole_rows_whatever_becomes_of_them(tmp_path, tokenizer, on_too_long):
    file = texts(tmp_path / "a.txt", np.arange(100) + 11)
    config = DataConfig(train_file=file, max_seq_length=60, on_too_long=on_too_long)
    report = prepare(config, tokenizer).report.train
    assert without_bins(report.lengths) == LengthReport(median=60, p90=100, p95=105, p99=109, longest=110)
    assert sum(report.lengths.bin_counts) == 100
    assert (report.rows_too_long, report.rows_that_lose_the_end) == (50, 50)
    assert report.longest_row == 60
    assert (report.rows_used, report.rows_dropped) == (
        (100, {}) if on_too_long == "truncate" else (50, {"too_long": 50})
    )


def test_prepare_tells_no_lengths_where_nothing_was_tokenized(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}])
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert (report.lengths, report.longest_row, report.supervised_share) == (None, 0, 0.0)


def long_rows(tokenizer):
    """Rows that a limit of 60 tokens leaves whole, cuts in the answer, cuts behind it, and leaves without any of it."""

    def chat(*contents):
        roles = ["user", "assistant"] * 2
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}

    return [
        chat("12", "34"),
        chat("12", "3" * 80),
        chat("1" * 80, "34"),
        chat("12", "34", "5" * 80),
        chat("12", "3" * 90),
    ]


@pytest.mark.parametrize(
    ("on_too_long", "used", "dropped"),
    [
        ("truncate", 4, {"nothing_left_after_truncation": 1}),
        ("drop", 1, {"too_long": 4}),
        ("error", 1, {"too_long": 4}),
    ],
)
def test_prepare_counts_what_too_long_rows_lose(tmp_path, tokenizer, on_too_long, used, dropped):
    file = write(tmp_path / "a.jsonl", long_rows(tokenizer))
    config = DataConfig(train_file=file, max_seq_length=60, on_too_long=on_too_long, on_bad_rows="skip")
    report = prepare(config, tokenizer).report.train
    assert (report.rows_read, report.rows_used, report.rows_dropped) == (5, used, dropped)
    assert report.rows_too_long == 4
    lost = (report.rows_that_lose_the_answer, report.rows_that_lose_the_end, report.rows_that_lose_only_prompt)
    assert lost == (1, 2, 1)
    assert report.rows_with_trained_end == (2 if on_too_long == "truncate" else 1)


def test_find_problems_of_too_long_rows(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", long_rows(tokenizer))
    config = DataConfig(train_file=file, max_seq_length=60, on_too_long="error")
    report = prepare(config, tokenizer).report
    longest = report.train.lengths.longest
    assert find_problems(report, config) == [
        "4 of 5 train rows are longer than max_seq_length 60, and on_too_long is error. The longest has "
        f"{longest} tokens: raise max_seq_length, or set on_too_long to truncate or drop."
    ]
    lines = bad_row_lines(report, config)
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4", "5"]
    assert lines[-1] == f"{file}:5: it has {longest} tokens, more than max_seq_length 60 (too_long)."
    # Dropped on demand, they are no bad rows, however many they are.
    drop = replace(config, on_too_long="drop", max_bad_row_share=0.0)
    assert find_problems(prepare(drop, tokenizer).report, drop) == []


def test_prepare_trains_all_turns_or_the_last(tmp_path, tokenizer):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [TWO_TURNS]))
    trained = {
        train_on: answers(tokenizer, prepare(replace(config, train_on=train_on), tokenizer).train)
        for train_on in ("all", "last")
    }
    assert trained == {"all": ["two<|im_end|>four"], "last": ["four"]}


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"weight": 0.0}], ids=str)
def test_prepare_leaves_out_turns_that_say_so(tmp_path, tokenizer, mark):
    def marked(*indices):
        return {
            "messages": [{**m, **mark} if i in indices else m for i, m in enumerate(TWO_TURNS["messages"])]
        }  # fmt: skip

    file = write(tmp_path / "a.jsonl", [marked(), marked(1), marked(3), marked(1, 3)])
    config = DataConfig(train_file=file, on_bad_rows="skip")
    data = prepare(config, tokenizer)
    assert answers(tokenizer, data.train) == ["two<|im_end|>four", "four", "two"]
    assert data.report.train.rows_dropped == {"no_answer": 1}
    last = prepare(replace(config, train_on="last"), tokenizer)
    assert answers(tokenizer, last.train) == ["four", "four"]
    assert last.report.train.rows_dropped == {"no_answer": 2}


def test_prepare_counts_what_the_template_leaves_out(tmp_path, tokenizer):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}

    def chat(thought=None, tools=None):
        answer = {"role": "assistant", "content": "yes"} | ({"reasoning_content": thought} if thought else {})
        return {"messages": [{"role": "user", "content": "hi"}, answer], "tools": tools}

    rows = [chat(), chat("hm"), chat(tools=[tool]), chat("hm", [tool])]
    report = prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", rows)), tokenizer).report.train
    assert (report.rows_used, report.notes) == (4, {"thoughts_left_out": 2, "tools_left_out": 2})


def test_note_flags_are_bits_of_their_own_for_every_note():
    assert list(NOTE_FLAGS) == list(NOTES)
    assert sorted(NOTE_FLAGS.values()) == [8, 16, 32, 64]


def test_record_formats_of_the_settings_are_those_that_there_are():
    assert tuple(known.name for known in FORMATS) == RECORD_FORMATS


# Whether it is sound


@pytest.mark.parametrize(
    ("bad", "rows", "share", "is_sound"),
    [
        (1, 10, 0.1, True),
        (2, 19, 0.1, False),
        (29, 100, 0.29, True),
        (30, 100, 0.29, False),
        (1, 10, 0.0, False),
        (0, 10, 0.0, True),
        (9, 10, 1.0, True),
    ],
)
def test_find_problems_of_bad_rows_up_to_a_share(tmp_path, tokenizer, bad, rows, share, is_sound):
    file = write(tmp_path / "a.jsonl", [*pairs(rows - bad), *[{"question": "q", "answer": ""}] * bad])
    config = DataConfig(train_file=file, on_bad_rows="skip", max_bad_row_share=share)
    report = prepare(config, tokenizer).report
    line = (
        f"{bad} of {rows} train rows ({bad / rows:.1%}) are dropped ({bad} empty_answer): more than max_bad_row_share "
        f"{share:g} allows. Fix the data or raise max_bad_row_share."
    )
    assert find_problems(report, config) == ([] if is_sound else [line])
    assert bad_row_lines(report, config) == []


def test_find_problems_of_both_splits(tmp_path, tokenizer):
    config = DataConfig(
        train_file=write(tmp_path / "a.jsonl", [*pairs(3), "[]"]),
        validation_file=write(tmp_path / "b.jsonl", [*pairs(2, 50), "[]", "{}"]),
    )
    report = prepare(config, tokenizer).report
    ending = "Fix them, or set on_bad_rows to skip, which drops and counts them."
    assert find_problems(report, config) == [
        f"1 of 4 train rows cannot be used (1 not_an_object). {ending}",
        f"2 of 4 validation rows cannot be used (1 not_an_object, 1 missing_field). {ending}",
    ]
    assert [line.split(":")[0] for line in bad_row_lines(report, config)] == [
        config.train_file, config.validation_file, config.validation_file
    ]  # fmt: skip
    assert (report.rows_read, report.rows_used) == (8, 5)
    assert report.rows_dropped == {"not_an_object": 2, "missing_field": 1}


def test_find_problems_of_an_end_that_is_always_cut_off(tmp_path, tokenizer):
    file = texts(tmp_path / "a.txt", [50, 60, 70])
    config = DataConfig(train_file=file, max_seq_length=20)
    assert find_problems(prepare(config, tokenizer).report, config) == [
        "the end token is never trained: max_seq_length truncates it in all 3 train rows, so the model would not "
        "learn to stop. Raise max_seq_length; 70 truncates no row."
    ]
    enough = replace(config, max_seq_length=50)
    assert find_problems(prepare(enough, tokenizer).report, enough) == []


def test_find_problems_of_a_template_without_end_blames_the_template(tmp_path):
    """Also where some rows are too long besides."""
    tokenizer = build_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    file = write(tmp_path / "a.jsonl", [*pairs(2), {"question": "q", "answer": "7" * 100}])
    for on_too_long in ("truncate", "drop"):
        config = DataConfig(train_file=file, max_seq_length=60, on_too_long=on_too_long)
        (problem,) = find_problems(prepare(config, tokenizer).report, config)
        assert problem.startswith("the end token is never trained: the chat template writes no known end token")
    mended = replace(config, add_end_token=True)
    assert find_problems(prepare(mended, tokenizer).report, mended) == []


# Several sources


def test_prepare_mixes_sources_by_weight(tmp_path, tokenizer):
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in (
        ("a", pairs(4)), ("b", [*pairs(10, 100), "[]"]), ("c", pairs(3, 200))
    )]  # fmt: skip
    weights = (2.0, 0.5, 1.0)
    sources = [DatasetSource(path=path, weight=weight) for path, weight in zip(files, weights, strict=True)]
    config = DataConfig(datasets=sources, on_bad_rows="skip")
    data = prepare(config, tokenizer)
    got = answers(tokenizer, data.train)
    assert sorted(got[:8]) == sorted(f"a {i}" for i in [0, 1, 2, 3] * 2)
    half = [int(answer[2:]) for answer in got[8:13]]
    assert (len(set(half)), half) == (5, sorted(half))
    assert set(half) < set(range(100, 110))
    assert got[13:] == ["a 200", "a 201", "a 202"]
    report = data.report.train
    assert [(source.name, source.rows_read, source.rows_used, source.rows_dropped, source.weight, source.rows_an_epoch)
            for source in report.sources] == [
        (files[0], 4, 4, {}, 2.0, 8),
        (files[1], 11, 10, {"not_an_object": 1}, 0.5, 5),
        (files[2], 3, 3, {}, 1.0, 3),
    ]  # fmt: skip
    assert (report.rows_read, report.rows_used, report.duplicates) == (18, 17, 0)
    assert report.files == tuple(files)
    again = prepare_data(config, tokenizer, seed=0)
    assert answers(tokenizer, again.train) == got
    others = {tuple(answers(tokenizer, prepare_data(config, tokenizer, seed=seed).train)) for seed in range(6)}
    assert len(others) > 1


def test_find_problems_of_weights_that_leave_no_row(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(4))
    config = DataConfig(datasets=[DatasetSource(path=file, weight=0.1)])
    data = prepare(config, tokenizer)
    assert (len(data.train), data.report.train.rows_used, data.report.train.sources[0].rows_an_epoch) == (0, 4, 0)
    assert find_problems(data.report, config) == [
        f"datasets[0].weight: with 0.1, an epoch takes none of the 4 rows of {file}. Raise the weight or remove "
        "the source."
    ]


def test_prepare_reads_each_source_by_its_own_settings(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("some text\n")
    first = DatasetSource(
        path=write(tmp_path / "a.jsonl", [{"ask": f"q{i}", "reply": f"r{i}", "x": 1} for i in range(9)]),
        columns={"ask": "question", "reply": "answer"},
        max_rows=3,
    )
    second = DatasetSource(
        path=write(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "c", "text": "t"}]), format="text"
    )
    config = DataConfig(datasets=[first, second, DatasetSource(path=str(tmp_path / "c.txt"))])
    data = prepare(config, tokenizer)
    assert answers(tokenizer, data.train) == ["r0", "r1", "r2", "t", "some text"]
    assert [(s.format_name, s.rows_read, s.unused_columns) for s in data.report.train.sources] == [
        ("question_answer", 3, ("x",)),
        ("text", 1, ("completion", "prompt")),
        ("text", 1, ()),
    ]


def test_prepare_refuses_a_format_whose_columns_are_not_there(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(1))
    config = DataConfig(datasets=[DatasetSource(path=file, format="alpaca")])
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer)
    assert caught.value.problems == (
        f"{file}: format alpaca needs the columns instruction, output. Found: answer, question. Rename yours with "
        "columns: {their_name: our_name}.",
    )


# A part set aside


def test_prepare_keeps_duplicates_on_one_side(tmp_path, tokenizer):
    rows = [row for i in range(40) for row in pairs(1, i) * (1 + i % 3)]
    order = np.random.default_rng(1).permutation(len(rows))
    file = write(tmp_path / "a.jsonl", [*(rows[i] for i in order), "[]", "[]"])
    for seed in range(5):
        config = DataConfig(train_file=file, validation_split=0.25, on_bad_rows="skip")
        data = prepare_data(config, tokenizer, seed=seed)
        train, held = set(answers(tokenizer, data.train)), set(answers(tokenizer, data.validation))
        assert not train & held
        assert len(train | held) == 40
        assert data.report.leakage == 0
        assert find_problems(data.report, config) == []
        report = data.report
        assert (report.validation.rows_read, report.validation.rows_used, report.validation.rows_dropped) == (
            20,
            20,
            {},
        )
        assert (report.train.rows_read, report.train.rows_used) == (61, 59)
        assert report.rows_read == 81
        assert report.train.duplicates + report.validation.duplicates == 79 - 40


def test_prepare_sets_rows_aside_before_weights_repeat_them(tmp_path, tokenizer):
    sources = [
        DatasetSource(path=write(tmp_path / "a.jsonl", pairs(10)), weight=3.0),
        DatasetSource(path=write(tmp_path / "b.jsonl", pairs(10, 100))),
    ]
    data = prepare(DataConfig(datasets=sources, validation_split=0.5), tokenizer)
    held = answers(tokenizer, data.validation)
    assert (len(held), len(set(held))) == (10, 10)
    trained = answers(tokenizer, data.train)
    assert not set(trained) & set(held)
    first = data.report.train.sources[0]
    assert first.rows_an_epoch == 3 * first.rows_used
    assert [source.rows_used for source in data.report.validation.sources] == [10 - first.rows_used, first.rows_used]


def test_prepare_of_a_held_part_asks_its_first_rows(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", ["[]", *pairs(20)])
    data = prepare(DataConfig(train_file=file, validation_split=0.2, on_bad_rows="skip"), tokenizer)
    assert [prompt.reference for prompt in data.sample_prompts] == answers(tokenizer, data.validation)[:3]


# Rows to look at


def test_previews_are_found_by_number_through_all_sources(tmp_path, tokenizer):
    first = write(tmp_path / "a.jsonl", ["", *pairs(2), "", '{"question": "q"}', *pairs(1, 5)])
    second = write(tmp_path / "b.jsonl", pairs(MAX_ROWS + 10, 1000))
    config = DataConfig(datasets=[DatasetSource(path=first), DatasetSource(path=second)], on_bad_rows="skip")
    for _ in range(2):
        data = prepare(config, tokenizer, show_rows=(4, 3, 5, 4 + MAX_ROWS + 2, 10_000, 1))
        shown = {preview.number: preview for preview in data.previews}
        assert list(shown) == [1, 3, 4, 5, 518]
        assert [str(preview.source) for preview in shown.values()] == [
            f"{first}:2", f"{first}:5", f"{first}:6", f"{second}:1", f"{second}:514"
        ]  # fmt: skip
        assert shown[3].problem == RowProblem(reason="missing_field", message="no field 'answer'; fields: question")
        assert shown[3].segments == ()
        texts_of = {
            number: [piece.text for piece in preview.segments if piece.trained] for number, preview in shown.items()
        }
        assert texts_of == {
            1: ["a 0<|im_end|>"], 3: [], 4: ["a 5<|im_end|>"], 5: ["a 1000<|im_end|>"], 518: ["a 1513<|im_end|>"]
        }  # fmt: skip
        row = data.train[3]  # the first of the second file
        assert tokenizer.decode(row["input_ids"]) == "".join(piece.text for piece in shown[5].segments)
        assert (shown[5].num_tokens, shown[5].num_supervised) == (len(row["input_ids"]), (row["labels"] != -100).sum())


def test_previews_tell_a_cut(tmp_path, tokenizer):
    file = texts(tmp_path / "a.txt", [10, 50])
    data = prepare(DataConfig(train_file=file, max_seq_length=20), tokenizer, show_rows=(1, 2))
    assert [(p.num_tokens, p.num_supervised, p.was_truncated) for p in data.previews] == [
        (10, 9, False),
        (20, 19, True),
    ]
    assert ["".join(piece.text for piece in p.segments) for p in data.previews] == [
        "000077777<|im_end|>",
        "0001" + "7" * 16,
    ]


def test_dropped_rows_come_back_from_the_cache_as_they_were(tmp_path, cache, tokenizer):
    file = write(tmp_path / "a.jsonl", [*pairs(1), "[]"])
    config = DataConfig(train_file=file, data_cache_dir=str(cache))
    expected = DroppedRow(
        source=RowSource(file=file, line=2),
        problem=RowProblem(reason="not_an_object", message="expected an object with named fields, found a list"),
    )
    for _ in range(2):
        assert prepare(config, tokenizer).report.train.dropped_examples == (expected,)
