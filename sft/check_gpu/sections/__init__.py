"""The sections of the check, in their order. Each module has `cases(bench)`, which yields its checks.

A check that raises an error is a FAIL line; an error of the device ends its section, since nothing works after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A group of checks that share a process."""

    module: str
    """Its module in this package."""
    seconds: float
    """Its share of the default `--seconds`; a check that has not started by then is skipped."""
    covers: str
    """For `--help`."""
    full_determinism: bool = False
    """Whether its runs set `full_determinism`, which holds for a whole process."""


SECTIONS = {
    "machine": Section(module="machine", seconds=15, covers="versions, capability, NVML, compiler, a matrix product"),
    "attention": Section(module="attention", seconds=25, covers="each case against float32 sdpa; isolation to the bit"),
    "steps": Section(module="steps", seconds=65, covers="packed equals padded; no synchronization in a step"),
    "memory": Section(module="memory", seconds=90, covers="auto batch size, peak against prediction, short documents"),
    "recovery": Section(module="recovery", seconds=50, covers="save, resume, out of memory"),
    "determinism": Section(
        module="recovery", seconds=50, covers="the same with full_determinism, to the bit", full_determinism=True
    ),
    "speed": Section(module="speed", seconds=215, covers="tokens/s and MFU of 1.2B full and 8B LoRA, each lever"),
    "copies": Section(module="copies", seconds=30, covers="copies of a checkpoint to main memory, tf32"),
    "several": Section(module="several", seconds=60, covers="two GPUs: DDP's equality and overlap"),
}
"""Name -> section."""
TOTAL_SECONDS = sum(section.seconds for section in SECTIONS.values())
