"""What torch's C++ code accepts as attention within documents."""

from __future__ import annotations

from tests.gpu_path.processes import TESLA_T4

ACCEPTED = {
    "grouped heads",
    "one document",
    "512 documents",
    "empty documents",
    "heads of 80",
    "heads of 256",
    "deterministic",
}


def test_arguments_that_are_accepted_and_refused(call_fake):
    found = call_fake("attend")
    print(found)
    assert {name for name, result in found.items() if result == "ok"} == ACCEPTED
    refused = {name: result for name, result in found.items() if result != "ok"}
    assert "must have dtype int32" in refused["boundaries in 64 bits"]
    assert "CUDA" in refused["boundaries in main memory"]


def test_old_cards_are_refused(call_fake):
    found = call_fake("attend", device=TESLA_T4)
    print(found)
    assert "ok" not in found.values()
    assert "Ampere" in found["grouped heads"]
