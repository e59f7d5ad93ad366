"""How busy the devices are."""

from __future__ import annotations

import time

import psutil
import pytest
import torch

from sft.processes.utilization import CpuUtilization, GpuUtilization


def test_cpu_utilization_is_that_of_the_time_since_the_previous_call(monkeypatch):
    monkeypatch.setattr("sft.processes.utilization.num_usable_cores", lambda: 1)
    utilization = CpuUtilization()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert 0.05 < utilization.read() <= 1
    time.sleep(0.5)
    assert utilization.read() < 0.5


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """With the management library, which tests on CPU do without."""
    monkeypatch.setattr("sft.processes.utilization.is_installed", lambda module: module == "pynvml")


def test_gpu_utilization_comes_from_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: {"cuda:1": 40}[device])
    assert GpuUtilization("cuda:1").read() == 0.4


@pytest.mark.parametrize("error", [RuntimeError("no driver"), OSError("not supported")])
def test_unavailable_gpu_utilization_is_queried_once(monkeypatch, error, caplog):
    caplog.set_level("INFO", "sft.train")
    calls = []

    def utilization(device):
        calls.append(device)
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    gpu = GpuUtilization("cuda:0")
    assert (gpu.read(), gpu.read()) == (None, None)
    assert len(calls) == 1
    assert [str(error) in line for line in caplog.messages] == [True]
    assert GpuUtilization("cpu").read() is None


def test_unavailable_cpu_utilization_is_none(monkeypatch):
    utilization = CpuUtilization()

    def refuse(*_):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "cpu_percent", refuse)
    assert utilization.read() is None
    assert CpuUtilization().read() is None
