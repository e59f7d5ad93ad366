"""Compiled layers on fake devices, down to machine code: neither interrupted graphs nor compilations without end."""

from __future__ import annotations

import pytest
import torch

PACKED = {"packing": True, "per_device_train_batch_size": 2}


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        pytest.param(PACKED, 1, id="packed"),
        # Its configuration states a kind for each layer, all the same: not once for each layer.
        pytest.param(PACKED | {"architecture": "qwen2"}, 1, id="packed, layers with a kind"),
        # The second time for any length; where a mask has a length, multiples of 8 are a case of their own.
        pytest.param({"padding_free": False}, 3, id="padded"),
        pytest.param({}, 2, id="flat"),
    ],
)
def test_batches_of_different_lengths_are_compiled_once_or_twice(run_fake, model_folder, settings, most):
    architecture = settings.get("architecture", "llama")
    settings = {name: value for name, value in settings.items() if name != "architecture"}
    settings["model_name_or_path"] = model_folder(architecture)
    run = run_fake(torch_compile=True, max_steps=12, num_train_epochs=None, save_strategy="no", **settings)
    assert run.status == 0, run.text
    (record,) = run.records
    assert record["graph_breaks"] == {}
    assert len(record["steps"]) == 12
    assert record["steps"][-1]["compilations"] == most


@pytest.mark.parametrize("processes", [1, 2])
def test_auto_tries_compiled_layers_and_keeps_its_decision(run_fake, tmp_path, processes):
    settings = PACKED | {"torch_compile": "auto", "max_steps": 6, "save_steps": 3, "num_train_epochs": None}
    several = {"device": {"FAKE_CUDA_DEVICES": "2"}, "ddp_backend": "gloo"} if processes > 1 else {}
    run = run_fake(processes=processes, **settings, **several)
    assert run.status == 0, run.text
    assert "torch_compile: auto): the run is too short" in run.text or "it would not be faster" in run.text
    assert "compiled layers compute another" not in run.text
    assert (tmp_path / "out" / "resolved_config.yaml").read_text().count("layers compiled: no") == 1


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="full"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulation"),
        pytest.param({"gradient_checkpointing": True}, id="checkpointing"),
        pytest.param({"processes": 2, "device": {"FAKE_CUDA_DEVICES": "2"}, "ddp_backend": "gloo"}, id="two processes"),
        pytest.param({"lora_config": "{r: 4}", "gradient_accumulation_steps": 2}, id="LoRA"),
    ],
)
def test_graphs_of_compiled_layers_are_captured_once_and_replayed(run_fake, settings):
    compiled = PACKED | {"torch_compile": True, "torch_compile_mode": "reduce-overhead"}
    run = run_fake(max_steps=10, num_train_epochs=None, save_strategy="no", **compiled, **settings)
    if settings.get("gradient_checkpointing") and torch.__version__ < "2.13":
        assert run.status == 2
        assert "torch_compile_mode: reduce-overhead captures CUDA graphs" in run.text
        return
    assert run.status == 0, run.text
    record = run.records[0]
    assert record["graph_breaks"] == {}
    first, last = record["steps"][0], record["steps"][-2]
    assert last["captures"] == 0
    assert last["replays"] >= 2 * 2  # forward and backward pass of two layers
    assert last["launches"] < first["launches"]
