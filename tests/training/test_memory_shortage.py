"""Memory that runs out in the middle of a run: the same training goes on in smaller parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from data_handler import prepare_data
from sft.batching.plan import resolve_batch_plan
from sft.common.errors import MemoryShortage
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import DataConfig, LoggingConfig, LoRAConfig, ModelConfig, TrainingConfig
from sft.modeling.adapters import add_adapters
from sft.training.arguments import build_training_arguments
from sft.training.row_layout import resolve_layout
from tests.support import messages
from tests.support.parts import REPOSITORY, build_model, build_tokenizer
from trainer_utils import build_trainer, evaluate, train

FLOAT32 = Precision(weights="float32", mixed="no")
CPU = DistributedContext()


@pytest.fixture
def prepare(question_file, tmp_path):
    """A trainer of the settings, and the model that it trains."""

    def prepare(*, lora=None, architecture="llama", **settings):
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        data_config = DataConfig(train_file=question_file, max_seq_length=64, validation_split=0.3)
        data = prepare_data(data_config, tokenizer, seed=1)
        config = TrainingConfig(
            **{"output_dir": str(tmp_path), "max_steps": 4, "learning_rate": 1e-2, **settings},
            extra_training_arguments={"save_strategy": "no", "eval_strategy": "no", "use_cpu": True},
        )
        model = build_model(architecture)
        if lora is not None:
            model = add_adapters(model, lora)
        layout = resolve_layout(
            model, ModelConfig(model_name_or_path="m"), config, FLOAT32, CPU, pad_token_id=0, max_seq_length=64
        )
        plan = resolve_batch_plan(config, len(data.train), CPU, lengths=data.train.lengths, max_seq_length=64)
        arguments = build_training_arguments(
            config, LoggingConfig(report_to=[], logging_steps=1), FLOAT32, CPU, has_validation=True
        )
        prepared = build_trainer(arguments, model, tokenizer, data, plan, layout, CPU, resume_point=None)
        return prepared, model

    return prepare


def give_memory(model, rows: int, *, in_backward: bool = False, from_call: int = 0):
    """Lets the model raise torch's own error where it is given more than so many rows at a time."""
    calls = []

    def rows_of(inputs) -> int:
        boundaries = inputs.get("cu_seq_lens_q")
        return len(inputs["input_ids"]) if boundaries is None else len(boundaries) - 1

    def forward(module, args, kwargs, output=None):
        calls.append(rows_of(kwargs))
        if calls[-1] > rows and len(calls) > from_call and not in_backward:
            raise torch.OutOfMemoryError("no memory, says the test")

    def backward(module, *_):
        if calls[-1] > rows and len(calls) > from_call:
            raise torch.OutOfMemoryError("no memory, says the test")

    model.register_forward_pre_hook(forward, with_kwargs=True)
    if in_backward:
        next(layer for layer in model.modules() if hasattr(layer, "q_proj") or hasattr(layer, "c_attn")
             ).register_full_backward_hook(backward)  # fmt: skip
    return calls


def trained(prepared, model):
    """Weights and losses at the end."""
    weights, logged = trained_with_hits(prepared, model)
    return weights, logged[::2]


def trained_with_hits(prepared, model):
    """Weights at the end, and the loss and token accuracy of each step."""
    train(prepared, resume_point=None)
    history = prepared.trainer.state.log_history
    logged = [event[name] for event in history if "loss" in event for name in ("loss", "token_accuracy")]
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}, logged


def assert_equal_to_the_bit(found, expected):
    assert found[1] == expected[1]
    for name, weight in expected[0].items():
        assert torch.equal(found[0][name], weight), name


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("from_call", [0, 3])
def test_the_run_goes_on_as_with_the_smaller_size_from_the_start(prepare, in_backward, from_call):
    expected = trained_with_hits(*prepare(per_device_train_batch_size=2, gradient_accumulation_steps=4))
    prepared, model = prepare(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    calls = give_memory(model, rows=2, in_backward=in_backward, from_call=from_call)
    found = trained_with_hits(prepared, model)
    if from_call == 0:
        assert_equal_to_the_bit(found, expected)
    else:  # the first step had the larger size
        assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert max(calls) == 4
    assert calls[-1] == 2
    assert prepared.trainer.step_gradient.shortages == 1
    assert prepared.trainer.plan_now().parts == 2
    assert prepared.trainer.plan_now().global_batch_size == 8


def test_dropout_draws_what_it_would_have_drawn(prepare):
    lora = LoRAConfig(r=4, target_modules=["all-linear"], lora_dropout=0.2)
    expected = trained_with_hits(*prepare(lora=lora, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    prepared, model = prepare(lora=lora, per_device_train_batch_size=4)
    give_memory(model.get_base_model(), rows=1)
    assert_equal_to_the_bit(trained_with_hits(prepared, model), expected)
    assert prepared.trainer.step_gradient.shortages == 2  # from 4 to 2, to 1


@pytest.mark.parametrize("padding_free", [False, "auto"])
def test_an_odd_size_goes_to_the_next_that_divides_it(prepare, padding_free):
    expected = trained_with_hits(
        *prepare(per_device_train_batch_size=1, gradient_accumulation_steps=3, padding_free=padding_free)
    )
    prepared, model = prepare(per_device_train_batch_size=3, padding_free=padding_free)
    give_memory(model, rows=2)
    assert_equal_to_the_bit(trained_with_hits(prepared, model), expected)
    assert prepared.trainer.plan_now().parts == 3


def test_packs_are_parted_by_packs_and_then_by_rows(prepare):
    expected = trained_with_hits(*prepare(packing=True, per_device_train_batch_size=1, gradient_accumulation_steps=2))
    prepared, model = prepare(packing=True, per_device_train_batch_size=2)
    give_memory(model, rows=1)
    assert trained_with_hits(prepared, model)[1] == pytest.approx(expected[1], rel=1e-4)
    assert prepared.trainer.plan_now().parts > 2


def test_a_single_row_that_does_not_fit_ends_the_run_with_one_line(prepare):
    prepared, model = prepare(per_device_train_batch_size=2)
    give_memory(model, rows=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(MemoryShortage, match=r"single row \(of up to \d+ tokens\).*gradient_checkpointing") as raised:
        train(prepared, resume_point=None)
    assert len(raised.value.problems) == 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_evaluation_goes_on_with_smaller_batches(prepare):
    expected = evaluate(prepare()[0].trainer)
    prepared, model = prepare()
    give_memory(model, rows=2)
    found = evaluate(prepared.trainer)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.token_accuracy, found.sequence_accuracy) == (expected.token_accuracy, expected.sequence_accuracy)
    assert prepared.trainer.evaluation_step.shortages == 2  # from 8 to 4, to 2


def test_evaluation_of_a_single_row_that_does_not_fit_is_one_line(prepare):
    prepared, model = prepare()
    give_memory(model, rows=0)
    with pytest.raises(MemoryShortage, match=messages.OUT_OF_MEMORY_IN_EVALUATION):
        evaluate(prepared.trainer)


def run_two(tmp_path, model, question_file, name, *, out_of_memory_at="", **settings):
    """Two processes; the second runs out of memory in a step's forward or backward pass, where that is said."""
    keys = {
        "model_name_or_path": model, "train_file": question_file, "max_seq_length": 64, "learning_rate": 1e-2,
        "max_steps": 4, "logging_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False,
        "sample_prompts": "[]", "output_dir": tmp_path / name, **settings,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         "tests/support/run_short_of_memory.py", *(f"--{key}={value}" for key, value in keys.items())],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "OUT_OF_MEMORY_AT": out_of_memory_at, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    logged = [event[name] for event in events if "loss" in event for name in ("loss", "token_accuracy")]
    return logged, done, tmp_path / name


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_two_processes_agree_where_one_runs_out_of_memory(tmp_path, model_folder, question_file, place):
    from safetensors.torch import load_file

    model = model_folder("llama")
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    expected, _, whole = run_two(tmp_path, model, question_file, "small", **small)
    large = {"per_device_train_batch_size": 2, "out_of_memory_at": f"1:1:{place}"}
    found, done, parted = run_two(tmp_path, model, question_file, "large", **large)
    assert found == expected
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (parted, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert done.stdout.count(messages.OUT_OF_MEMORY_AT_STEP.format(step=1)) == 1
    summary = json.loads((parted / "run_summary.json").read_text())
    assert summary["memory_shortages"] == {"training": 1, "evaluation": 0}
    assert summary["batch_plan"]["parts"] == 2
