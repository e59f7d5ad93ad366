"""A step that runs out of memory is retried in smaller chunks, with the result of a smaller micro-batch size."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sft.common.errors import MemoryShortage
from sft.configuration.schema import LoRAConfig
from sft.training import gradients
from tests.support import forked, messages
from tests.support.injected import OutOfMemory
from tests.support.short_of_memory import assert_equal_to_the_bit, limit_rows, train_and_read_all
from trainer_utils import train


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("from_call", [0, 3])
def test_a_retried_step_equals_training_with_the_smaller_micro_batch_size(prepare, in_backward, from_call):
    expected = train_and_read_all(*prepare(per_device_train_batch_size=2, gradient_accumulation_steps=4))
    prepared, model = prepare(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    calls = limit_rows(model, rows=2, in_backward=in_backward, from_call=from_call)
    found = train_and_read_all(prepared, model)
    if from_call == 0:
        assert_equal_to_the_bit(found, expected)
    else:  # the first step had the larger size
        assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert max(calls) == 4
    assert calls[-1] == 2
    assert prepared.trainer.step_gradient.chunks.shortages == 1
    assert prepared.trainer.current_plan().num_chunks == 2
    assert prepared.trainer.current_plan().global_batch_size == 8


@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_that_begins_with_zeros_is_the_same(prepare, monkeypatch, rows):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    prepared, model = prepare(**settings)
    limit_rows(model, rows=rows)
    expected = train_and_read_all(prepared, model)
    monkeypatch.setattr(gradients, "replays_graphs", lambda config: True)
    prepared, model = prepare(**settings)
    limit_rows(model, rows=rows)
    assert_equal_to_the_bit(train_and_read_all(prepared, model), expected)


def test_dropout_is_the_same_in_smaller_chunks(prepare):
    lora = LoRAConfig(r=4, target_modules=["all-linear"], lora_dropout=0.2)
    expected = train_and_read_all(*prepare(lora=lora, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    prepared, model = prepare(lora=lora, per_device_train_batch_size=4)
    limit_rows(model.get_base_model(), rows=1)
    assert_equal_to_the_bit(train_and_read_all(prepared, model), expected)
    assert prepared.trainer.step_gradient.chunks.shortages == 2  # from 4 to 2, to 1


@pytest.mark.parametrize("padding_free", [False, "auto"])
def test_an_odd_size_is_split_by_its_next_divisor(prepare, padding_free):
    expected = train_and_read_all(
        *prepare(per_device_train_batch_size=1, gradient_accumulation_steps=3, padding_free=padding_free)
    )
    prepared, model = prepare(per_device_train_batch_size=3, padding_free=padding_free)
    limit_rows(model, rows=2)
    assert_equal_to_the_bit(train_and_read_all(prepared, model), expected)
    assert prepared.trainer.current_plan().num_chunks == 3


def test_packs_are_split_by_packs_and_then_by_rows(prepare):
    expected = train_and_read_all(*prepare(packing=True, per_device_train_batch_size=1, gradient_accumulation_steps=2))
    prepared, model = prepare(packing=True, per_device_train_batch_size=2)
    limit_rows(model, rows=1)
    assert train_and_read_all(prepared, model)[1] == pytest.approx(expected[1], rel=1e-4)
    assert prepared.trainer.current_plan().num_chunks > 2


def test_a_single_row_that_does_not_fit_ends_the_run_with_one_line(prepare):
    prepared, model = prepare(per_device_train_batch_size=2)
    limit_rows(model, rows=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    single_row = messages.pattern(messages.SINGLE_ROW, tokens=r"\d+")
    with pytest.raises(MemoryShortage, match=f"{single_row}.*gradient_checkpointing") as raised:
        train(prepared)
    assert len(raised.value.problems) == 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def run_two(tmp_path, model, question_file, name, *, fault=None, **settings):
    """Trains on two processes."""
    keys = {
        "model_name_or_path": model,
        "train_file": question_file,
        "max_seq_length": 64,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "sample_prompts": "[]",
        "output_dir": tmp_path / name,
        **settings,
    }
    options = [f"--{key}={value}" for key, value in keys.items()]
    done = forked.run(tmp_path / f"terminal-{name}", *options, processes=2, fault=fault)
    assert done.status == 0, done.out + done.err
    events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    logged = [event[name] for event in events if "loss" in event for name in ("loss", "token_accuracy")]
    return logged, done, tmp_path / name


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_all_processes_retry_when_one_runs_out_of_memory(tmp_path, model_folder, question_file, place):
    model = model_folder("llama")
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    expected, _, whole = run_two(tmp_path, model, question_file, "small", **small)
    large = {"per_device_train_batch_size": 2, "fault": OutOfMemory(rank=1, call=1, where=place)}
    found, done, parted = run_two(tmp_path, model, question_file, "large", **large)
    assert found == expected
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (parted, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert done.out.count(messages.OUT_OF_MEMORY_AT_STEP.format(step=1)) == 1
    summary = json.loads((parted / "run_summary.json").read_text())
    assert summary["memory_shortages"] == {"training": 1, "evaluation": 0}
    assert summary["batch_plan"]["parts"] == 2
    assert summary["environment"]["data_parallel"] == "ddp"
