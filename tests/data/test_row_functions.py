"""`row_function` and `row_filter`: what a row becomes, every row accounted for, from every source, also streamed."""

import csv
import itertools
import json
import logging
import pickle
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from data_handler import prepare_data
from sft.batching.layout import PaddedCollator
from sft.batching.stream import MicroBatchStream
from sft.common.errors import ConfigError, DataError
from sft.common.run_records import DistributedContext
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.checks import bad_row_lines, find_problems
from sft.data.row_functions import UserFunction
from sft.data.workers import CHUNKS_WITHOUT_WORKERS
from sft.training.stream_drops import StreamDrops, take_dropped

RAW = [{"id": str(i), "ask": f"question {i}", "reply": f"answer {i}"} for i in range(12)]
CODE = """
def to_rows(row):
    i = int(row.pop("id"))
    if i % 4 == 1:
        return None
    made = [{"question": row["ask"] + "?" * n, "answer": row["reply"] + "." * n} for n in range(1 + i % 3)]
    return made if len(made) > 1 else made[0]


def keep(row):
    return int(row["id"]) < 10


def fails(row):
    if row["id"] == "3":
        raise KeyError("nothing")
    return {"question": row["ask"], "answer": 7 if row["id"] == "5" else row["reply"]}
"""
EXPECTED = sorted(f"answer {i}" + "." * n for i in range(10) if i % 4 != 1 for n in range(1 + i % 3))
"""Answers of the rows that `keep` and `to_rows` leave."""
COUNTS = {"row_function": 3, "row_filter": 2}


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "functions" / "my_rows.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


def write_rows(folder: Path, kind: str) -> dict[str, str]:
    """The raw rows in one kind of source, as settings."""
    path = folder / f"raw.{kind}"
    if kind == "json":
        path.write_text(json.dumps(RAW))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in RAW))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(RAW[0]))
            writer.writeheader()
            writer.writerows(RAW)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RAW), path)
    elif kind == "saved":
        datasets.Dataset.from_list(RAW).save_to_disk(str(path))
    else:  # as a dataset on the Hub: read by the library
        path = folder / "named"
        path.mkdir()
        datasets.Dataset.from_list(RAW).to_parquet(str(path / "train.parquet"))
        return {"dataset_name": str(path), "dataset_config_name": "default"}
    return {"train_file": str(path)}


def config(functions, cache, **settings):
    values = {"row_function": f"{functions}:to_rows", "row_filter": f"{functions}:keep"}
    return DataConfig(**(values | {"data_cache_dir": str(cache)} | settings))


def answers(tokenizer, rows):
    return sorted(
        tokenizer.decode([t for t in row["labels"] if t >= 0], skip_special_tokens=True)
        for row in (rows[i] for i in range(len(rows)))
    )


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "saved", "named"])
def test_rows_are_made_and_dropped_from_every_source(tmp_path, tokenizer, functions, cache, kind):
    data = prepare_data(config(functions, cache, **write_rows(tmp_path, kind)), tokenizer, seed=0)
    train = data.report.train
    assert answers(tokenizer, data.train) == EXPECTED
    assert train.rows_dropped == COUNTS
    assert train.rows_read == train.rows_used + train.num_dropped
    assert train.rows_read - train.rows_made == len(RAW)
    assert not find_problems(data.report, config(functions, cache))  # these drops are deliberate
    assert data.locate_row(1).endswith(f":{4 if kind == 'csv' else 3} (made row 1)")
    again = prepare_data(config(functions, cache, **write_again(tmp_path, kind)), tokenizer, seed=0)
    assert again.report == data.report


def write_again(folder, kind):
    """The settings of a source that `write_rows` wrote."""
    if kind == "named":
        return {"dataset_name": str(folder / "named"), "dataset_config_name": "default"}
    return {"train_file": str(folder / f"raw.{kind}")}


def streamed(data, tokenizer, count, size, *, rank=0, world_size=1, workers=0, first=0):
    """Answers and dropped lines of micro-batches, and the micro-batches."""
    stream = MicroBatchStream(
        data.stream, PaddedCollator(0), size, rank=rank, world_size=world_size, first_micro_batch=first
    )
    loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=as_it_is)
    batches = list(itertools.islice(loader, count))
    found = [
        (
            sorted(
                tokenizer.decode([t for t in row["labels"] if t >= 0], skip_special_tokens=True) for row in b["rows"]
            ),
            sorted(row.source.line for row in b["dropped"]),
        )
        for b in batches
    ]
    return found, batches


def as_it_is(batch):
    return batch


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "named"])
def test_a_stream_holds_all_that_a_row_becomes_in_its_slot(tmp_path, tokenizer, functions, cache, kind):
    settings = config(functions, cache, streaming=True, shuffle_block_rows=4, **write_rows(tmp_path, kind))
    data = prepare_data(settings, tokenizer, seed=1)
    one_pass, batches = streamed(data, tokenizer, 6, 2)
    assert sorted(a for made, _ in one_pass for a in made if a) == EXPECTED
    assert sorted(line - (kind == "csv") for _, lines in one_pass for line in lines) == [2, 6, 10, 11, 12]
    drops = StreamDrops.for_data(settings)
    assert take_dropped(batches, drops, 2, DistributedContext(), None) == sum(COUNTS.values())
    assert drops.counts == COUNTS
    assert drops._read == len(EXPECTED) + sum(COUNTS.values())


def test_a_streams_rows_are_the_same_on_any_number_of_processes_and_resumed(tmp_path, tokenizer, functions, cache):
    settings = config(functions, cache, streaming=True, shuffle_block_rows=4, **write_rows(tmp_path, "json"))
    data = prepare_data(settings, tokenizer, seed=1)
    one, _ = streamed(data, tokenizer, 15, 4)
    halves = [streamed(data, tokenizer, 15, 2, rank=rank, world_size=2)[0] for rank in (0, 1)]
    together = [(sorted(a[0] + b[0]), sorted(a[1] + b[1])) for a, b in zip(*halves, strict=True)]
    # An empty micro-batch has one token that is not trained.
    assert [([a for a in made if a], lines) for made, lines in together] == [
        ([a for a in made if a], lines) for made, lines in one
    ]
    assert streamed(data, tokenizer, 10, 4, first=5, workers=2)[0] == one[5:]


def test_many_rows_are_made_by_workers(tmp_path, tokenizer, functions, cache):
    rows = [{**row, "id": str(i)} for i, row in enumerate(RAW * 300)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(rows) > 512 * CHUNKS_WITHOUT_WORKERS
    settings = config(functions, cache, train_file=str(path), row_filter=None)
    reports = [
        prepare_data(replaced, tokenizer, seed=0).report
        for replaced in (
            DataConfig(
                **{
                    **fields(settings),
                    "preprocessing_num_workers": workers,
                    "data_cache_dir": str(cache / str(workers)),
                }
            )
            for workers in (1, 2)
        )
    ]
    assert reports[0] == reports[1]
    assert reports[0].train.rows_read - reports[0].train.rows_made == len(rows)


def fields(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_validation_rows_get_the_function_and_an_entry_its_own(tmp_path, tokenizer, functions, cache):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"ask": "plain", "reply": "yes"}) + "\n")
    functions.write_text(CODE + "\n\ndef plain(row):\n    return {'question': row['ask'], 'answer': row['reply']}\n")
    settings = config(
        functions,
        cache,
        datasets=[
            DatasetSource(path=raw),
            DatasetSource(path=str(plain), row_function=f"{functions}:plain", row_filter=f"{functions}:plain"),
        ],
        validation_file=raw,
        row_filter=None,
    )
    with pytest.raises(
        DataError, match=r"plain returned|row_filter .*:\d+ returned a dict; it must return True or False"
    ):
        prepare_data(settings, tokenizer, seed=0)
    settings = config(
        functions,
        cache,
        datasets=[DatasetSource(path=raw), DatasetSource(path=str(plain), row_function=f"{functions}:plain")],
        validation_file=raw,
        row_filter=None,
    )
    report = prepare_data(settings, tokenizer, seed=0).report
    assert [source.rows_used for source in report.train.sources] == [18, 1]
    assert report.validation.rows_used == 18
    assert report.validation.rows_dropped == {"row_function": 3}


def test_an_exception_and_a_wrong_result_are_lines_with_both_places(tmp_path, tokenizer, functions, cache):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    settings = config(functions, cache, train_file=raw, row_function=f"{functions}:fails", row_filter=None)
    report = prepare_data(settings, tokenizer, seed=0).report
    lines = bad_row_lines(report, settings)
    assert lines[0] == f"{raw}:4: row_function my_rows.py:16 raised KeyError: 'nothing' (row_function_failed)."
    assert "wrong_type" in lines[1]
    assert find_problems(report, settings)
    skipping = config(
        functions, cache, train_file=raw, row_function=f"{functions}:fails", on_bad_rows="skip", max_bad_row_share=0.2
    )
    assert not find_problems(prepare_data(skipping, tokenizer, seed=0).report, skipping)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("'text'", "returned a str; it must return a dict, a list of dicts or None"),
        ("[{'text': 'a'}, 3]", "returned an int at place 2 of the list; it must"),
        ("(row for _ in 'a')", "returned a generator; it must"),
        ("{1: 'a'}", "returned a row with a field that is no text: 1"),
        ("exit(3)", "raised SystemExit: 3"),
    ],
)
def test_what_a_function_may_not_return(tmp_path, tokenizer, cache, result, said):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    path = tmp_path / "wrong.py"
    path.write_text(f"def made(row):\n    return {result} if row['id'] == '1' else {{'text': 'a b'}}\n")
    settings = DataConfig(train_file=raw, row_function=f"{path}:made", data_cache_dir=str(cache))
    report = prepare_data(settings, tokenizer, seed=0).report
    (line,) = bad_row_lines(report, settings)
    assert said in line
    assert line.startswith(f"{raw}:2")
    assert "wrong.py:" in line


def test_if_a_function_drops_every_row_a_line_says_so(tmp_path, tokenizer, cache):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    path = tmp_path / "none.py"
    path.write_text("def none(row):\n    pass\n")
    with pytest.raises(
        DataError, match=r"raw.jsonl:1: .*none.py:none returned None. No row of this source can be used"
    ):
        prepare_data(
            DataConfig(train_file=raw, row_function=f"{path}:none", data_cache_dir=str(cache)), tokenizer, seed=0
        )


def test_a_filter_that_keeps_only_late_rows_still_finds_their_format(tmp_path, tokenizer, cache, monkeypatch):
    monkeypatch.setattr("sft.data.source_format.MAX_HELD_ROWS", 600)
    rows = [{"id": i, "question": "q", "answer": f"a {i}"} for i in range(2000)]
    path = tmp_path / "late.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep = tmp_path / "late.py"
    keep.write_text("def keep(row):\n    return row['id'] >= 1990\n")
    settings = DataConfig(train_file=str(path), row_filter=f"{keep}:keep", data_cache_dir=str(cache))
    report = prepare_data(settings, tokenizer, seed=0).report
    assert (report.train.rows_used, report.train.rows_dropped) == (10, {"row_filter": 1990})


def test_rows_made_of_one_row_are_held_out_together(tmp_path, tokenizer, functions, cache):
    settings = config(functions, cache, validation_split=0.4, **write_rows(tmp_path, "jsonl"))
    data = prepare_data(settings, tokenizer, seed=0)
    numbers = [{answer.rstrip(".") for answer in answers(tokenizer, rows)} for rows in (data.train, data.validation)]
    assert data.report.validation.rows_used > 1
    assert not numbers[0] & numbers[1]


def test_samples_and_previews_show_what_a_row_became(tmp_path, tokenizer, functions, cache):
    settings = config(functions, cache, **write_rows(tmp_path, "parquet"))
    data = prepare_data(settings, tokenizer, seed=0, show_rows=[3, 2])
    assert [prompt.reference for prompt in data.sample_prompts] == ["answer 0", "answer 2", "answer 2."]
    shown = [
        (preview.number, preview.source.part, preview.problem and preview.problem.reason) for preview in data.previews
    ]
    assert shown == [(2, 0, "row_function"), (3, 1, None), (3, 2, None), (3, 3, None)]


def test_the_cache_follows_the_code_and_its_own_imports(tmp_path, tokenizer, cache, caplog):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    folder = tmp_path / "code"
    (folder / "texts").mkdir(parents=True)
    (folder / "main_rows.py").write_text(
        "import json\nfrom own_helper import end\n\n\ndef made(row):\n    from texts.words import word\n\n"
        "    return {'question': row['ask'], 'answer': word() + end()}\n"
    )
    (folder / "own_helper.py").write_text("def end():\n    return '!'\n")
    (folder / "texts" / "__init__.py").write_text("")
    (folder / "texts" / "words.py").write_text("def word():\n    return 'one'\n")
    settings = DataConfig(train_file=raw, row_function=f"{folder / 'main_rows.py'}:made", data_cache_dir=str(cache))
    caplog.set_level(logging.INFO, logger="sft.data")

    def first_answer():
        caplog.clear()
        data = prepare_data(settings, tokenizer, seed=0)
        return answers(tokenizer, data.train)[0], "prepared before" in caplog.text

    assert first_answer() == ("one!", False)
    assert first_answer() == ("one!", True)
    (folder / "unrelated.py").write_text("x = 1\n")
    assert first_answer() == ("one!", True)
    (folder / "texts" / "words.py").write_text("def word():\n    return 'another'\n")
    assert first_answer() == ("another!", False)
    (folder / "own_helper.py").write_text("def end():\n    return '?'\n")
    assert first_answer() == ("another?", False)


def test_a_function_is_pickled_as_its_name(functions):
    function = UserFunction(f"{functions}:to_rows", "row_function")
    again = pickle.loads(pickle.dumps(function))
    assert again.digest == function.digest
    assert again({"id": "4", "ask": "a", "reply": "b"}) == function({"id": "4", "ask": "a", "reply": "b"})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import no_such_module\n\ndef f(row): pass\n",
            "my.py:1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("def f(row): pass\n1 / 0\n", "my.py:2: ZeroDivisionError: division by zero. The file cannot be run"),
        ("f = 3\n", "'f' of .*my.py is not a function"),
        ("def f(row)\n    pass\n", "my.py:1: expected ':'"),
        ("def g(row): pass\n", "my.py has no function 'f'"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, code, said):
    path = tmp_path / "my.py"
    path.write_text(code)
    with pytest.raises(ConfigError, match=said) as raised:
        UserFunction(f"{path}:f", "datasets[1].row_function")
    (line,) = raised.value.problems
    assert line.startswith("datasets[1].row_function: ")


def test_a_module_of_another_folder_is_not_taken_for_an_own_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_helper.py").write_text(f"value = {name!r}\n")
        (tmp_path / name / "my.py").write_text(
            "from same_helper import value\n\n\ndef f(row):\n    return {'text': value}\n"
        )
    assert UserFunction(f"{tmp_path / 'one' / 'my.py'}:f", "row_function")({}) == {"text": "one"}
    with pytest.raises(ConfigError, match="a module of this name is already loaded from"):
        UserFunction(f"{tmp_path / 'two' / 'my.py'}:f", "row_function")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no_such.py:f", "row_function: no such file: "),
        ("my_rows.py", "is not of the form file.py:function."),
        ("my_rows.py:to_row", "my_rows.py has no function 'to_row'. Did you mean 'to_rows'?"),
    ],
)
def test_main_refuses_a_function_that_is_not_there(run_sft, tmp_path, functions, named, said):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    run = run_sft(train_file=raw, row_function=str(functions.with_name(named)))
    assert run.status == 2
    assert said in run.err
    assert run.err.count("\n") == 1


def test_main_counts_made_and_dropped_rows_in_a_dry_run(run_sft, tmp_path, functions):
    raw = write_rows(tmp_path, "jsonl")["train_file"]
    run = run_sft(train_file=raw, row_function=f"{functions}:to_rows", row_filter=f"{functions}:keep", dry_run=True)
    assert run.status == 0, run.err
    found = json.loads((run.output_dir / "preflight.json").read_text())
    assert found["sound"]
    assert found["rows_dropped"] == COUNTS
    assert found["rows_read"] == found["rows_used"] + 5
    assert found["train"]["rows_made"] == found["rows_read"] - len(RAW)
    assert f"row_function made {found['rows_read']} rows of 12 rows in the data" in " ".join(run.out.split())


def test_main_resumes_a_stream_of_made_rows_to_the_bit(run_sft, tmp_path, functions):
    settings = {
        "train_file": write_rows(tmp_path, "jsonl")["train_file"],
        "row_function": f"{functions}:to_rows",
        "streaming": True,
        "shuffle_block_rows": 4,
        "max_steps": 6,
        "save_steps": 4,
        "num_train_epochs": None,
        "sample_prompts": "[]",
    }
    whole = run_sft(**settings, output_dir=str(tmp_path / "whole"))
    assert whole.status == 0, whole.err
    checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    resumed = run_sft(**settings, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=checkpoint)
    assert resumed.status == 0, resumed.err
    ours, theirs = (load_file(run.output_dir / "model.safetensors") for run in (resumed, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    functions.write_text(CODE.replace('row["reply"] +', '"no " + row["reply"] +'))
    changed = run_sft(**settings, output_dir=str(tmp_path / "changed"), resume_from_checkpoint=checkpoint)
    assert changed.status == 2
    assert "was trained on other rows" in changed.err
