"""In a step of training the process never waits for the device: neither for a value, nor for a copy."""

from __future__ import annotations

import pytest

from tests.gpu_path.counting import BLOCKING

PACKED = {"packing": True, "per_device_train_batch_size": 2}
PADDED = {"padding_free": False}
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
        pytest.param({"optim": "adafactor"}, id="unfused optimizer"),
        pytest.param({"optim": "adamw_torch"}, id="adamw_torch"),
        pytest.param({"fsdp": {}}, id="fsdp"),
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
