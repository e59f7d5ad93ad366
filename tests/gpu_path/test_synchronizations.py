"""In a step of training the process never waits for the device: neither for a value, nor for a copy."""

from __future__ import annotations

import pytest

from tests.gpu_path.counting import BLOCKING

PACKED = {"packing": True, "per_device_train_batch_size": 2}
PADDED = {"padding_free": False}
UNFUSED = "an optimizer that does not read the flag of a bad step: one value a step"
STEADY = slice(2, -1)
"""Steps that are looked at: the first ones allocate, and the last one ends with what follows training."""


def blocking(run) -> list[dict[str, int]]:
    """For each steady step of each rank: the lines that made the process wait, and how often."""
    return [
        {line: n for line, n in step["lines"].items() if line.partition(":")[0] in BLOCKING}
        for record in run.records
        for step in record["steps"][STEADY]
    ]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="flat"),
        pytest.param(PACKED, id="packed"),
        pytest.param(PADDED, id="padded"),
        pytest.param({"lora_config.r": 4}, id="lora"),
        pytest.param(
            {"optim": "adafactor"}, id="unfused optimizer", marks=pytest.mark.xfail(strict=True, reason=UNFUSED)
        ),
    ],
)
def test_a_step_does_not_wait_for_the_device(run_fake, settings):
    run = run_fake(
        max_steps=6,
        gradient_accumulation_steps=2,
        num_train_epochs=None,
        logging_steps=1000,
        save_strategy="no",
        **{"per_device_train_batch_size": 2} | settings,
    )
    assert run.status == 0, run.text
    steps = blocking(run)
    assert len(steps) == 3
    assert steps == [{}] * 3


def test_a_sharded_step_does_not_wait_for_the_device(run_fake):
    """But for what gloo copies to main memory, which NCCL does not."""
    run = run_fake(
        processes=2,
        device={"FAKE_CUDA_DEVICES": "2"},
        ddp_backend="gloo",
        fsdp="{}",
        max_steps=6,
        num_train_epochs=None,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1000,
        save_strategy="no",
    )
    assert [len(record["steps"]) for record in run.records] == [6, 6], run.text
    of_gloo = ("torch/distributed/", "no line of Python")
    lines = {line for step in blocking(run) for line in step if not any(text in line for text in of_gloo)}
    assert lines == set()


@pytest.mark.parametrize(
    "settings", [pytest.param({}, id="all weights"), pytest.param({"lora_config.r": 4}, id="lora")]
)
def test_a_checkpoint_is_copied_without_waiting_for_each_tensor(run_fake, settings):
    run = run_fake(max_steps=6, num_train_epochs=None, logging_steps=1000, save_steps=4, **settings)
    assert run.status == 0, run.text
    (record,) = run.records
    lines = record["steps"][3]["lines"]
    sources = ("state_copy.py", "checkpointed_trainer.py", "safetensors", "no line of Python")
    copies = {line: n for line, n in lines.items() if any(source in line for source in sources)}
    # One for the weights, one for the optimizer.
    assert list(copies.values()) == [2], copies
    assert next(iter(copies)).startswith("synchronizations: sft/modeling/state_copy.py")
