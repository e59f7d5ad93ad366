"""Steps whose loss or gradient is NaN or inf: skipped, counted and logged; too many consecutive ones end the run."""

from __future__ import annotations

import json
import re

import pytest
import torch

from sft.common.errors import TrainingError
from tests.support import messages
from tests.support.short_of_memory import train_and_read


def spoil(model, calls: set[int], *, value: float = torch.nan, gradient_alone: bool = False):
    """Multiplies the hidden states, or their gradient, by `value` in the given training passes, counted from 1."""
    count = [0]

    def hook(module, inputs, output):
        count[0] += module.training
        if module.training and count[0] in calls and gradient_alone:
            output.register_hook(lambda gradient: gradient * value)
        elif module.training and count[0] in calls:
            return output * value
        return None

    model.model.norm.register_forward_hook(hook)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "sgd"])
@pytest.mark.parametrize("gradient_alone", [False, True])
def test_a_bad_step_changes_no_weight_and_logs_its_rows(prepare, caplog, optimizer, gradient_alone):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": optimizer}
    prepared, model = prepare(**settings)
    seen = {}

    def remember(module, *_):
        seen[len(seen)] = {name: weight.detach().clone() for name, weight in module.named_parameters()}

    model.register_forward_pre_hook(lambda module, *_: remember(module) if module.training else None)
    spoil(model, {4}, gradient_alone=gradient_alone)  # the second micro-batch of the second step
    with caplog.at_level("INFO", logger="sft"):
        weights, losses = train_and_read(prepared, model)
    before, after = seen[2], seen[4]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert prepared.trainer.bad_steps.count == 1
    assert caplog.text.count(messages.BAD_STEP.format(step=2)) == 1
    assert "train.jsonl:" in caplog.text
    assert losses[1] == 0.0
    assert all(loss > 0 for number, loss in enumerate(losses) if number != 1)


def test_good_steps_are_not_changed_by_the_check(prepare):
    settings = {"per_device_train_batch_size": 2, "max_grad_norm": 1000.0}  # torch rounds otherwise where it clips
    expected = train_and_read(*prepare(**settings))
    prepared, model = prepare(**settings)
    prepared.trainer.step_gradient._bad_steps = None
    found = train_and_read(prepared, model)
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][name], weight) for name, weight in expected[0].items())


def test_too_many_consecutive_bad_steps_end_the_run_and_name_the_rows(prepare):
    prepared, model = prepare(per_device_train_batch_size=2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    spoil(model, {1, 2, 3})
    message = re.escape(messages.TOO_MANY_BAD_STEPS.format(count=3, step=3))
    with pytest.raises(TrainingError, match=rf"{message}.*train\.jsonl:\d+") as raised:
        train_and_read(prepared, model)
    assert len(raised.value.problems) == 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_bad_steps_with_good_ones_between_them_do_not_end_the_run(prepare):
    prepared, model = prepare(per_device_train_batch_size=2, max_steps=6)
    spoil(model, {1, 2, 4, 5}, value=torch.inf)
    weights, _ = train_and_read(prepared, model)
    assert prepared.trainer.bad_steps.count == 4
    assert all(weight.isfinite().all() for weight in weights.values())


def test_the_summary_counts_bad_steps(prepare, tmp_path, model_folder, question_file):
    import sft_main

    status = sft_main.main(
        [
            f"--model_name_or_path={model_folder('llama')}",
            f"--train_file={question_file}",
            "--max_seq_length=64",
            "--report_to=none",
            "--max_steps=2",
            "--use_cpu",
            "--sample_prompts=[]",
            f"--output_dir={tmp_path / 'out'}",
        ],
    )
    assert status == 0
    assert json.loads((tmp_path / "out/run_summary.json").read_text())["bad_steps"] == 0
