"""Streamed rows: the same rows in each step on any number of processes and workers, resumed without a loss."""

from __future__ import annotations

import itertools
import json
import os

import pytest
from torch.utils.data import DataLoader

from data_handler import prepare_data
from sft.batching.layout import PaddedCollator
from sft.batching.stream import MicroBatchStream
from sft.common.run_records import DistributedContext
from sft.configuration.schema import DataConfig
from sft.training.stream_drops import StreamDrops, take_dropped
from tests.support import forked, messages
from tests.support.small_models import build_tokenizer

ROWS = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(50)]
BAD = 7
"""The row that cannot be used."""


@pytest.fixture(scope="module")
def stream_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "rows.jsonl"
    rows = [{**row, "answer": ""} if i == BAD else row for i, row in enumerate(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def streamed(stream_file):
    config = DataConfig(train_file=stream_file, streaming=True, shuffle_block_rows=16)
    tokenizer = build_tokenizer()
    return prepare_data(config, tokenizer, seed=3), tokenizer


def as_it_is(batch):
    return batch


def steps(streamed, count, size, *, rank=0, world_size=1, workers=0, first=0):
    """The answers of each micro-batch, and the dropped rows."""
    data, tokenizer = streamed
    stream = MicroBatchStream(
        data.stream, PaddedCollator(0), size, rank=rank, world_size=world_size, first_micro_batch=first
    )
    loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=as_it_is)
    result = []
    for batch in itertools.islice(loader, count):
        rows = batch["target_rows"].tolist()
        labels = {row: [] for row in rows}
        for row, token in zip(rows, batch["targets"].tolist(), strict=True):
            labels[row].append(token)
        answers = sorted(tokenizer.decode(row) for row in labels.values())
        result.append((answers, [row.source.line for row in batch["dropped"]]))
    return result


def test_a_pass_yields_every_row_once_and_the_slot_of_a_bad_row_is_empty(streamed):
    taken = steps(streamed, 25, 2)
    answers = [answer for batch, _ in taken for answer in batch]
    assert sorted(answers) == sorted(f"Answer {i}.<|im_end|>" for i in range(50) if i != BAD)
    assert [line for _, dropped in taken for line in dropped] == [BAD + 1]
    assert answers != sorted(answers)


def test_the_next_pass_has_another_order(streamed):
    taken = steps(streamed, 50, 2)
    first, second = taken[:25], taken[25:]
    assert sorted(a for batch, _ in first for a in batch) == sorted(a for batch, _ in second for a in batch)
    assert first != second


def remarks_of(file, *, world_size, workers):
    """What the steps of one pass count, of all processes, as training counts it."""
    config = DataConfig(train_file=file, streaming=True, shuffle_block_rows=16)
    data = prepare_data(config, build_tokenizer(), seed=3)
    drops = StreamDrops.for_data(config)
    micro_batches, size = 12 // world_size, 4
    for rank in range(world_size):
        stream = MicroBatchStream(data.stream, PaddedCollator(0), size, rank=rank, world_size=world_size)
        loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=as_it_is)
        batches = list(itertools.islice(loader, micro_batches))
        take_dropped(batches, drops, size, DistributedContext(), None)
        assert not any({"dropped", "remarks"} & set(batch) for batch in batches)
    records = drops.remarks.records()
    return {
        name: {rows.name: rows.rows for rows in getattr(records, name)} for name in ("unread_keys", "control_tokens")
    }


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_remarks_on_streamed_rows_are_counted(tmp_path, world_size, workers):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i}", **({"name": "Ann"} if i % 5 == 0 else {})},
                {"role": "assistant", "content": "ok <|im_end|>" if i % 8 == 0 else "ok", "train_detail": i},
            ]
        }
        for i in range(48)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert remarks_of(str(path), world_size=world_size, workers=workers) == {
        "unread_keys": {"train_detail": 48, "name": 10},
        "control_tokens": {"<|im_end|>": 6},
    }


def test_two_processes_divide_the_rows_of_one(streamed):
    one = steps(streamed, 40, 4)
    halves = [steps(streamed, 40, 2, rank=rank, world_size=2) for rank in (0, 1)]
    together = [(sorted(a[0] + b[0]), a[1] + b[1]) for a, b in zip(*halves, strict=True)]
    assert together == one


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(streamed, workers):
    assert steps(streamed, 30, 3, workers=workers) == steps(streamed, 30, 3)


@pytest.mark.parametrize("first", [1, 5, 13, 29])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_where_it_stopped(streamed, first, workers):
    assert steps(streamed, 20, 4, first=first, workers=workers) == steps(streamed, 20 + first, 4)[first:]


def test_a_block_of_one_row_keeps_the_order(stream_file):
    config = DataConfig(train_file=stream_file, streaming=True, shuffle_block_rows=1)
    tokenizer = build_tokenizer()
    data = prepare_data(config, tokenizer, seed=3)
    taken = steps((data, tokenizer), 10, 1)
    assert [answers for answers, _ in taken] == [[f"Answer {i}.<|im_end|>"] if i != BAD else [] for i in range(10)]


def test_streamed_data_is_sampled_and_not_cached(streamed, stream_file):
    data, _ = streamed
    assert not data.report.is_complete
    assert data.report.train.rows_dropped == {"empty_answer": 1}
    assert data.num_train_rows is None
    assert [path for path, _, _ in os.walk(os.environ["XDG_CACHE_HOME"]) if stream_file in path] == []


def stream_run(run_sft, stream_file, **settings):
    defaults = {
        "train_file": stream_file,
        "streaming": True,
        "shuffle_block_rows": 16,
        "max_steps": 8,
        "on_bad_rows": "skip",
        "sample_prompts": "[]",
        "num_train_epochs": None,
    }
    return run_sft(**(defaults | settings))


def test_main_trains_on_a_stream_and_counts_what_it_drops(run_sft, stream_file):
    run = stream_run(run_sft, stream_file, max_steps=14)
    assert run.status == 0, run.err
    assert run.summary["train"]["rows_dropped"] == 1
    assert run.metrics[-1]["step"] == 14
    assert f"dropped  {stream_file}:{BAD + 1}: {messages.EMPTY_ANSWER}." in run.out
    losses = [event["loss"] for event in run.metrics if "loss" in event]
    assert losses[-1] < losses[0]


def test_main_stops_at_a_bad_row_of_a_stream(run_sft, stream_file):
    run = stream_run(run_sft, stream_file, on_bad_rows="error")
    assert run.status == 2
    assert f"{stream_file}:{BAD + 1}: " in run.err
    assert "Traceback" not in run.err


def test_main_resumes_a_stream_to_the_bit(run_sft, stream_file, tmp_path):
    from safetensors.torch import load_file

    whole = stream_run(run_sft, stream_file, save_steps=5, output_dir=str(tmp_path / "whole"))
    assert whole.status == 0, whole.err
    checkpoint = tmp_path / "whole" / "checkpoint-5"
    resumed = stream_run(
        run_sft, stream_file, save_steps=5, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(checkpoint)
    )
    assert resumed.status == 0, resumed.err
    ours, theirs = (load_file(run.output_dir / "model.safetensors") for run in (resumed, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    tail = [event for event in whole.metrics if event["step"] > 5 and "loss" in event]
    again = [event for event in resumed.metrics if "loss" in event]
    assert [(e["step"], e["loss"], e["epoch"]) for e in again] == [(e["step"], e["loss"], e["epoch"]) for e in tail]


def test_main_refuses_to_resume_a_stream_with_steps_of_another_size(run_sft, stream_file, tmp_path):
    whole = stream_run(run_sft, stream_file, save_steps=5, output_dir=str(tmp_path / "whole"))
    assert whole.status == 0, whole.err
    again = {
        "output_dir": str(tmp_path / "again"),
        "max_steps": 6,
        "resume_from_checkpoint": str(tmp_path / "whole" / "checkpoint-5"),
    }
    run = stream_run(run_sft, stream_file, per_device_train_batch_size=2, **again)
    assert run.status == 2
    assert messages.OTHER_BATCH_SIZE.format(before=4, after=2) in run.err
    assert run.err.count("\n") == 1
    split = stream_run(run_sft, stream_file, per_device_train_batch_size=2, gradient_accumulation_steps=2, **again)
    assert split.status == 0, split.err


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_train_on_a_stream_as_one_does(model_folder, stream_file, tmp_path, workers):
    def losses(name, processes):
        done = forked.run(
            tmp_path / f"terminal-{name}",
            *(f"--train_file={stream_file}", "--streaming", "--max_steps=6", "--use_cpu", "--on_bad_rows=skip"),
            *(f"--model_name_or_path={model_folder('llama')}", "--report_to=none", f"--output_dir={tmp_path / name}"),
            *("--logging_steps=1", "--sample_prompts=[]", "--max_seq_length=64", "--shuffle_block_rows=16"),
            *(f"--dataloader_num_workers={workers}", f"--per_device_train_batch_size={4 // processes}", "--bf16=false"),
            processes=processes,
        )
        assert (done.status, done.err) == (0, "")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [event["loss"] for event in map(json.loads, lines) if "loss" in event]

    one = losses("one", 1)
    two = losses("two", 2)
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-4)


def test_a_dataset_of_the_library_is_streamed_without_being_loaded(stream_file, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [json.dumps(row) + "\n" for row in ROWS]
    (tmp_path / "data" / "train.jsonl").write_text("".join(rows))
    (tmp_path / "data" / "validation.jsonl").write_text("".join(rows[:2]))
    config = DataConfig(dataset_name=str(tmp_path / "data"), dataset_config_name="default", streaming=True)
    tokenizer = build_tokenizer()
    data = prepare_data(config, tokenizer, seed=3)
    assert data.validation is None  # its rows would have to be kept
    answers = [answer for batch, _ in steps((data, tokenizer), 25, 2) for answer in batch]
    assert sorted(answers) == sorted(f"Answer {i}.<|im_end|>" for i in range(50))


def test_workers_share_a_dataset_of_the_library(stream_file, tmp_path):
    (tmp_path / "data").mkdir()
    for shard in range(4):
        rows = "".join(json.dumps(row) + "\n" for row in ROWS[shard::4])
        (tmp_path / "data" / f"train-{shard}.jsonl").write_text(rows)
    config = DataConfig(dataset_name=str(tmp_path / "data"), dataset_config_name="default", streaming=True)
    tokenizer = build_tokenizer()
    streamed = prepare_data(config, tokenizer, seed=3), tokenizer
    assert steps(streamed, 25, 2, workers=2) == steps(streamed, 25, 2)


@pytest.mark.parametrize(
    ("settings", "status", "text"),
    [
        ({"on_bad_rows": "error", "on_too_long": "drop"}, 0, "(too_long)"),
        ({"on_bad_rows": "skip", "on_too_long": "error"}, 2, "more than max_seq_length 64 (too_long)."),
    ],
)
def test_main_applies_on_too_long_to_a_stream(run_sft, tmp_path, settings, status, text):
    path = tmp_path / "long.jsonl"
    rows = [*ROWS[:10], {"question": "q", "answer": "many words " * 60}, *ROWS[11:20]]
    # Beyond the rows that are looked at beforehand.
    path.write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0]] * 1000 + rows))
    run = stream_run(run_sft, str(path), shuffle_block_rows=1, per_device_train_batch_size=340, max_steps=3, **settings)
    assert run.status == status, run.err
    assert text in (run.out if status == 0 else run.err)
    assert "Traceback" not in run.err


def test_a_step_without_any_row_has_no_loss_and_changes_nothing(run_sft, stream_file):
    run = stream_run(run_sft, stream_file, per_device_train_batch_size=1, shuffle_block_rows=1, max_steps=10)
    assert run.status == 0, run.err
    losses = {event["step"]: event["loss"] for event in run.metrics if "loss" in event}
    assert losses[BAD + 1] == 0
    assert all(loss > 0 for step, loss in losses.items() if step != BAD + 1)
    assert run.summary["train"]["epochs"] is None


def test_a_bad_row_of_a_stream_in_another_process_is_printed_once(model_folder, tmp_path):
    path = tmp_path / "rows.jsonl"
    # Line 1,202 has slot 1,201: of the second process, and beyond the rows that are looked at beforehand.
    rows = [*ROWS * 24, ROWS[0], {"question": "q", "answer": ""}, *ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = forked.run(
        tmp_path / "terminal",
        *(f"--train_file={path}", "--streaming", "--max_steps=60", "--use_cpu", "--report_to=none", "--bf16=false"),
        *(f"--model_name_or_path={model_folder('llama')}", f"--output_dir={tmp_path / 'out'}", "--sample_prompts=[]"),
        *("--max_seq_length=64", "--shuffle_block_rows=1", "--per_device_train_batch_size=20"),
        processes=2,
    )
    assert done.status == 2
    assert done.err.count(messages.EMPTY_ANSWER) == 1
    assert "Traceback" not in done.err
