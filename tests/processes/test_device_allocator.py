"""torch's allocator of GPU memory is configured where the user has not done it and the driver can."""

from __future__ import annotations

import ctypes
import logging
import os

import pytest
import torch

from sft.processes import device_allocator
from sft.processes.device_allocator import allocator_settings, use_expandable_segments
from tests.support import messages

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
EXPANDABLE, PLAIN = "expandable_segments:True", "expandable_segments:False"


class Driver:
    """CUDA's driver as the library shows it, with the attributes that it reports as supported."""

    def __init__(self, attributes, devices=1):
        self.attributes, self.devices = attributes, devices

    def cuInit(self, flags):
        return 0 if self.devices else 100

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0 if index < self.devices else 101

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = int(attribute in self.attributes)
        return 0


@pytest.fixture
def configured(monkeypatch):
    """Pretends a GPU with a driver that supports everything; returns what torch's allocator was configured with."""
    calls = []
    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver({102, 103}))
    monkeypatch.setattr(device_allocator.platform, "release", lambda: "6.8.0-generic")
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", calls.append)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    return calls


def test_segments_are_expandable_by_default(configured, caplog):
    with caplog.at_level(logging.INFO, logger="sft.train"):
        use_expandable_segments("cuda:0")
    assert configured == [EXPANDABLE]
    assert os.environ["PYTORCH_ALLOC_CONF"] == allocator_settings("cuda:0") == EXPANDABLE
    assert messages.EXPANDABLE_SEGMENTS in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_the_users_settings_stay(configured, caplog, monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    with caplog.at_level(logging.INFO, logger="sft.train"):
        use_expandable_segments("cuda:0")
    assert configured == []
    assert allocator_settings("cuda:0") == "max_split_size_mb:512"
    assert caplog.text == ""


def test_nothing_is_configured_on_cpu(configured, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, logger="sft.train"):
        use_expandable_segments("cpu")
    assert configured == []
    assert caplog.text == ""
    monkeypatch.setenv(NAMES[0], EXPANDABLE)
    assert allocator_settings("cpu") is None


@pytest.mark.parametrize(
    ("driver", "device", "reason"),
    [
        (Driver({102}), "cuda:0", "does not support them"),
        (Driver({103}), "cuda:0", "does not support them"),
        (Driver({102, 103}, devices=0), "cuda:0", "does not answer"),
        (Driver({102, 103}), "cuda:1", "does not answer"),
        ("libcuda.so.1", "cuda:0", "libcuda.so.1: cannot open"),
        ("libnvidia-ml.so.1", "cuda:0", "libnvidia-ml.so.1: cannot open"),
    ],
)
def test_the_default_stays_where_the_driver_lacks_support(configured, caplog, monkeypatch, driver, device, reason):
    def load(name):
        if name == driver:
            raise OSError(f"{name}: cannot open shared object file")
        return Driver({102, 103}) if isinstance(driver, str) else driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    with caplog.at_level(logging.INFO, logger="sft.train"):
        use_expandable_segments(device)
    assert configured == []
    assert allocator_settings(device) is None
    assert messages.DEFAULT_ALLOCATOR in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize(("system", "release"), [("win32", "10"), ("linux", "5.15.167.4-microsoft-standard-WSL2")])
def test_the_default_stays_on_windows(configured, monkeypatch, system, release):
    monkeypatch.setattr(device_allocator.sys, "platform", system)
    monkeypatch.setattr(device_allocator.platform, "release", lambda: release)
    use_expandable_segments("cuda:0")
    assert configured == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("INTERNAL ASSERT FAILED"), [EXPANDABLE, PLAIN]),
        (torch.OutOfMemoryError("CUDA out of memory"), [EXPANDABLE]),  # says nothing about the segments
    ],
)
def test_a_first_allocation_that_fails_restores_the_default(configured, monkeypatch, error, expected):
    def fail(*size, device):
        raise error

    monkeypatch.setattr(torch, "empty", fail)
    use_expandable_segments("cuda:0")
    assert configured == expected
    assert (allocator_settings("cuda:0") is None) == (len(expected) == 2)


@pytest.mark.parametrize("settings", [EXPANDABLE, PLAIN])
def test_torch_knows_the_setting(settings):
    torch._C._accelerator_setAllocatorSettings(settings)
    with pytest.raises(ValueError, match="Expected 'True' or 'False'"):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:Maybe")
    torch._C._accelerator_setAllocatorSettings(PLAIN)
