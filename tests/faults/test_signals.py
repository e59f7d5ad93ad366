"""A signal to any process at any time: all processes stop at the same step and save, or end at once."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.support import messages
from tests.support.processes import STEPS, settings, sft, weights_of

pytestmark = pytest.mark.slow
LONG = "--max_steps=100000"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights of an uninterrupted run on two processes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = sft(folder, *settings(folder / "out"), "--num_gpus=2")
    assert process.end(120) == 0, process.err
    return weights_of(folder / "out")


def saved_steps(output):
    return sorted(int(path.name.rpartition("-")[2]) for path in output.glob("checkpoint-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("to", ["rank 0", "rank 1", "launcher"])
def test_a_signal_to_any_process_stops_all_at_one_step_and_the_resumed_run_is_identical(
    tmp_path, uninterrupted, number, to
):
    output = tmp_path / "out"
    process = sft(tmp_path, *settings(output), "--num_gpus=2")
    process.wait_for("step  2/")
    pids = {"rank 0": process.children()[0], "rank 1": process.children()[1], "launcher": process.popen.pid}
    os.kill(pids[to], number)
    assert process.end() == 128 + number, process.err
    assert process.err == ""
    (step,) = saved_steps(output)
    assert 2 <= step < STEPS
    assert f"{messages.STOPPED_AT} {step} of {STEPS}" in process.out
    again = sft(tmp_path / "again", *settings(output), "--num_gpus=2", "--resume_from_checkpoint=auto")
    assert again.end() == 0, again.err
    assert weights_of(output) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("phase", ["importing", "preparing", "loading", "first evaluation"])
def test_a_signal_before_training_ends_the_run_at_once(tmp_path, number, processes, phase):
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"{i} " * 60}) + "\n" for i in range(60000)))
    more = ["--max_steps=5", f"--num_gpus={processes}", f"--data_cache_dir={tmp_path / 'cache'}"]
    if phase == "preparing":
        more += [f"--train_file={rows}", "--preprocessing_num_workers=1", "--on_too_long=drop"]
    process = sft(tmp_path, *settings(tmp_path / "out", *more))
    if phase == "importing":
        time.sleep(1.0)
    elif phase == "preparing":
        process.wait_for(lambda: any((tmp_path / "cache").rglob("*")))
    else:
        process.wait_for("Train: " if phase == "loading" else "rows per step")
    began = time.monotonic()
    os.kill(process.popen.pid, number)
    assert process.end() == 128 + number, process.err
    assert time.monotonic() - began < 10
    assert process.err.count("\n") == 1, process.err
    assert messages.ENDED_BY.format(signal=signal.Signals(number).name) in process.err
    assert saved_steps(tmp_path / "out") == []


def test_a_signal_to_one_of_two_processes_before_training_ends_both(tmp_path):
    process = sft(tmp_path, *settings(tmp_path / "out"), "--num_gpus=2")
    process.wait_for("Train: ")
    os.kill(process.children()[1], signal.SIGTERM)
    assert process.end() == 143, process.err
    assert "Traceback" not in process.err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_during_an_evaluation_ends_it_on_all_and_saves_the_same_step(tmp_path, uninterrupted, rank):
    output = tmp_path / "out"
    often = ["--eval_steps=3", "--per_device_eval_batch_size=1"]  # takes a second
    process = sft(tmp_path, *settings(output, *often), "--num_gpus=2")
    process.wait_for("step  3/")
    os.kill(process.children()[rank], signal.SIGUSR1)
    assert process.end() == 138, process.err
    assert process.err == ""
    assert process.out.count(messages.EVALUATION_INTERRUPTED.format(step=3)) == 1
    assert saved_steps(output) == [3]
    again = sft(tmp_path / "again", *settings(output, *often), "--num_gpus=2", "--resume_from_checkpoint=auto")
    assert again.end() == 0, again.err
    assert f"{messages.VALIDATION_AT.format(step=3)}:" in again.out
    assert weights_of(output) == uninterrupted


def test_a_signal_during_a_save_stops_after_this_or_the_next_step(tmp_path, uninterrupted):
    output, often = tmp_path / "out", "--save_steps=1"
    process = sft(tmp_path, *settings(output, often), "--num_gpus=2")
    process.wait_for(lambda: any((output / ".unfinished").glob("checkpoint-[3-9]")))
    os.kill(process.children()[1], signal.SIGUSR1)
    assert process.end() == 138, process.err
    assert 3 <= saved_steps(output)[-1] < STEPS
    again = sft(tmp_path / "again", *settings(output, often), "--num_gpus=2", "--resume_from_checkpoint=auto")
    assert again.end() == 0, again.err
    assert weights_of(output) == uninterrupted


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_ends_the_run_at_once(tmp_path, processes):
    more = [
        LONG,
        f"--num_gpus={processes}",
        "--per_device_train_batch_size=512",
        "--gradient_accumulation_steps=8",
        "--learning_rate=0",
        "--validation_file=null",
        "--eval_steps=null",
    ]
    process = sft(tmp_path, *settings(tmp_path / "out", *more))  # a step takes a minute
    process.wait_for("rows per step")
    time.sleep(12)  # even a busy machine has begun the first step by then
    for _ in range(3):
        os.kill(process.popen.pid, signal.SIGINT)
        time.sleep(2.5)
    assert process.end(10) == 130, process.err
    assert "Traceback" not in process.err
    assert messages.ENDED_BY_SECOND_SIGNAL in process.err


def test_a_signal_to_one_of_two_processes_causes_no_restart(tmp_path):
    process = sft(tmp_path, *settings(tmp_path / "out", LONG), "--num_gpus=2", "--max_restarts=3")
    process.wait_for("/100000  loss")
    os.kill(process.children()[1], signal.SIGTERM)
    assert process.end() == 143, process.err
    assert process.out.count(messages.STOPPED_AT) == 1
