"""The options of the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from sft.check_gpu.sections import SECTIONS, TOTAL_SECONDS
from sft.configuration.command_line import OneLineParser, number

DESCRIPTION = """\
Check this program on a GPU: PASS or FAIL with a figure a line, and gpu_check.json for a bug report. Models have random
weights; nothing is downloaded. Each section runs in a process of its own, so one that fails does not end the others.
Exit code 0: all passed; 1: some failed; 2: no GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """What to check, and how long."""

    sections: tuple[str, ...]
    device: str
    """`cuda` or `cpu`."""
    is_quick: bool
    """Small sizes; always on a CPU."""
    seconds: float
    """For everything."""
    output: str
    """The JSON file."""
    backend: str | None
    """`ddp_backend` of the runs of several processes; None for their default."""
    section: str | None = None
    """The section that this process is to run; None in the command itself."""
    folder: str | None = None
    """For what that section writes."""

    def seconds_of(self, section: str) -> float:
        """The part of `seconds` that a section may take."""
        chosen = sum(SECTIONS[name].seconds for name in self.sections)
        return self.seconds * SECTIONS[section].seconds / chosen


def read_options(arguments: Sequence[str]) -> CheckOptions:
    """Parse the command line.

    Raises:
        ConfigError: if an option is unknown or has an invalid value.
    """
    lines = [f"  {name:<12} {section.covers}" for name, section in SECTIONS.items()]
    parser = OneLineParser(
        prog="python -m sft.check_gpu", description="\n".join([DESCRIPTION, "", "sections, in this order:", *lines])
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help="check these sections only")
    parser.add_argument("--quick", action="store_true", help="small models and few steps: about two minutes")
    parser.add_argument(
        "--seconds",
        type=number(float, 1),
        default=TOTAL_SECONDS,
        metavar="N",
        help="time for everything; checks that have not started by then are skipped (default: %(default)g)",
    )
    parser.add_argument("--output", default="gpu_check.json", metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same checks on the CPU, with small sizes"
    )
    parser.add_argument(
        "--backend",
        choices=["nccl", "gloo"],
        help="ddp_backend of the runs on two GPUs; gloo shows whether a failure is NCCL's (default: nccl)",
    )
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return CheckOptions(
        sections=tuple(name for name in SECTIONS if not given.only or name in given.only),
        device=given.device,
        is_quick=given.quick or given.device == "cpu",
        seconds=given.seconds,
        output=given.output,
        backend=given.backend,
        section=given.section,
        folder=given.folder,
    )
