"""The fake itself: what torch finds, takes, copies and counts on it."""

from __future__ import annotations

from tests.gpu_path.counting import BLOCKING
from tests.gpu_path.processes import TESLA_T4

CONTEXT_MIB = 500
"""Memory of a device that no allocation gets."""


def test_torch_finds_the_devices_that_are_set(call_fake):
    found = call_fake("describe", device=TESLA_T4 | {"FAKE_CUDA_DEVICES": "3"})
    assert found == {
        "devices": 3,
        "name": "Tesla T4",
        "capability": [7, 5],
        "total": 15109 << 20,
        "bfloat16": False,
    }


def test_hidden_devices_are_not_found(call_fake):
    found = call_fake("describe", device={"FAKE_CUDA_DEVICES": "4", "CUDA_VISIBLE_DEVICES": "1,2"})
    assert (found["devices"], found["name"]) == (2, "NVIDIA H100 80GB HBM3")


def test_copies_are_kept_and_results_of_kernels_are_zero(call_fake):
    assert call_fake("copy_and_compute") == [[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]]


def test_memory_has_a_limit(call_fake):
    found = call_fake("exceed_memory", num_mib=1024 - CONTEXT_MIB, device={"FAKE_CUDA_MEMORY_MIB": "1024"})
    assert "CUDA out of memory" in found.pop("message")
    assert found == {"kept_mib": 1024 - CONTEXT_MIB - 64, "free_mib": 64}


def test_segments_that_grow_are_mapped_and_unmapped(call_fake):
    found = call_fake("grow_and_shrink", device={"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    assert found == [160, 160, 0, 0]


def test_what_makes_a_process_wait_is_counted_with_its_line(call_fake):
    counts = call_fake("count_calls")
    lines = {name: count.pop("lines") for name, count in counts.items()}
    assert [sum(counts[name][event] for event in BLOCKING) for name in ("kernel", "pinned", "event")] == [0, 0, 0]
    assert counts["kernel"]["launches"] == 1
    assert counts["item"]["synchronizations"] == 1
    assert counts["pageable"]["pageable_to_device"] == 1
    assert [line.partition(":")[0] for line in lines["pageable"]] == ["pageable_to_device"]
    assert all("tests/gpu_path/programs.py:" in line for found in lines.values() for line in found)


def test_functions_are_compiled_down_to_machine_code(call_fake):
    assert call_fake("compile_function") == [16, 32]
