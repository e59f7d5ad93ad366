"""Memory of the device: use, peak, and what a copy may take."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from sft.processes import control_groups
from sft.processes.device_memory import (
    available_memory_bytes,
    memory_for_copy,
    peak_memory_bytes,
    total_memory_bytes,
    used_memory_bytes,
)
from tests.support.paths import REPOSITORY


def test_peak_memory_includes_what_was_freed_again():
    # In a process of its own: one that has run other tests reuses memory that these have freed.
    code = (
        "import torch; from sft.processes.device_memory import PeakMemory, used_memory_bytes\n"
        "before = used_memory_bytes('cpu')\n"
        "with PeakMemory('cpu') as peak:\n"
        "    block = torch.ones(2**26)\n"
        "    del block\n"
        "assert peak.peak_bytes >= before + 2**28 - 2**24, (peak.peak_bytes, before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_peak_is_the_highest_so_far_and_never_falls():
    code = (
        "import torch; from sft.processes.device_memory import peak_memory_bytes, used_memory_bytes; "
        "before = used_memory_bytes('cpu'); block = torch.ones(2**26); del block; "
        "assert used_memory_bytes('cpu') < before + 2**27; assert peak_memory_bytes('cpu') > before + 2**28 - 2**24"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_total_and_available_memory_are_those_of_the_machine_or_of_a_tighter_control_group(monkeypatch):
    monkeypatch.setattr(control_groups, "memory_limits", lambda: [])
    assert total_memory_bytes("cpu") == psutil.virtual_memory().total > peak_memory_bytes("cpu")
    assert used_memory_bytes("cpu") < available_memory_bytes("cpu") <= total_memory_bytes("cpu")
    monkeypatch.setattr(control_groups, "memory_limits", lambda: [(2**40, 2**30), (2**29, 2**28)])
    assert total_memory_bytes("cpu") == 2**29
    available = available_memory_bytes("cpu", processes_here=4)
    assert available == pytest.approx(used_memory_bytes("cpu") + 2**26, abs=2**24)
    monkeypatch.setattr(control_groups, "memory_limits", lambda: [(2**29, 2**30)])
    assert available_memory_bytes("cpu") == pytest.approx(used_memory_bytes("cpu"), abs=2**24)


def test_a_copy_may_take_half_of_what_is_free_within_the_budget():
    free = memory_for_copy("cuda:0", 1)  # a GPU's budget is not the main memory's
    assert free > 0
    assert 0 < memory_for_copy("cpu", None) <= 1.2 * free
    assert memory_for_copy("cpu", 1) == 0
    budget = used_memory_bytes("cpu") * 2
    assert memory_for_copy("cpu", budget) <= budget
    # The peak includes an earlier copy, so its size may be taken again.
    assert memory_for_copy("cpu", 1, 2**50) > 0


def test_memory_is_measured():
    assert 10**7 < peak_memory_bytes("cpu") < total_memory_bytes("cpu")


@pytest.mark.gpu
def test_memory_of_a_gpu_is_measured():
    assert total_memory_bytes("cuda:0") > 10**9
