"""Model FLOP/s in the summary of a run."""

from __future__ import annotations

import psutil
import pytest
import torch

from sft.common.run_records import DistributedContext, ModelFootprint
from sft.processes.device_memory import available_memory_bytes, memory_for_copy, peak_memory_bytes, total_memory_bytes
from sft.processes.device_peaks import device_peak_flops
from sft.reporting.environment import compute_environment, device_name
from sft.training.progress import TrainingProgress


def test_model_flops_per_second_count_the_trained_tokens(run_sft):
    run = run_sft()
    flops = run.summary["train"]["model_flops_per_second"] * run.summary["train"]["seconds"]
    tokens = run.summary["data"]["train"]["tokens"]
    size = 400 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32  # the output layer, layers, norms
    assert run.summary["train"]["mfu"] is None
    assert 6 * size * tokens < flops < 6 * size * tokens * 1.2  # attention comes on top


@pytest.fixture
def blind(monkeypatch):
    """A machine whose driver and whose process table refuse every question."""

    def refuse(*_, **__):
        raise RuntimeError("NVML_ERROR_GPU_IS_LOST")

    for name in ("get_device_name", "get_device_properties", "mem_get_info", "memory_allocated", "utilization"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    for name in ("memory_info", "cpu_percent"):
        monkeypatch.setattr(psutil.Process, name, refuse_access)
    monkeypatch.setattr(psutil, "virtual_memory", refuse_access)


def refuse_access(*_, **__):
    raise psutil.AccessDenied


def test_figures_that_cannot_be_read_do_not_end_a_run(blind, caplog):
    sizes = ModelFootprint(
        num_parameters=1, num_trainable_parameters=1, weight_bytes=4, hidden_size=1, num_layers=1, vocab_size=1
    )
    with caplog.at_level("INFO", "sft.train"):
        progress = TrainingProgress(DistributedContext(), torch.device("cpu"), footprint=sizes)
        first, second = (progress.step_metrics(is_stream=False) for _ in range(2))
    assert first.keys() == second.keys()
    assert not first.keys() & {"memory_allocated_bytes", "memory_share", "cpu_utilization", "gpu_utilization"}
    assert "tokens_per_second" in first
    assert len(caplog.messages) == 1
    assert "cpu_utilization, memory_allocated_bytes, memory_share" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_machine_that_tells_nothing_is_described(blind, device):
    assert total_memory_bytes(device) == available_memory_bytes(device) == memory_for_copy(device, None) == 0
    assert peak_memory_bytes(device) >= 0
    assert device_name(device)
    assert compute_environment(device, reuses_freed_memory=False).device == device.partition(":")[0]
    assert device_peak_flops(device, "bfloat16") is None
