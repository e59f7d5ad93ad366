"""Compiled layers on fake devices, down to machine code: neither interrupted graphs nor compilations without end."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"packing": True, "per_device_train_batch_size": 2}, id="packed"),
        pytest.param({"padding_free": False}, id="padded"),
        pytest.param({}, id="flat"),
    ],
)
def test_ten_batches_of_different_lengths_are_compiled_once(run_fake, settings):
    run = run_fake(torch_compile=True, max_steps=12, num_train_epochs=None, save_strategy="no", **settings)
    assert run.status == 0, run.text
    (record,) = run.records
    print(record["graph_breaks"], [step["compilations"] for step in record["steps"]])
    assert record["graph_breaks"] == {}
    compilations = [step["compilations"] for step in record["steps"][2:]]
    assert compilations == [compilations[0]] * 10
    assert compilations[0] > 0
