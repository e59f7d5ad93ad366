"""Several runs side by side: `python compare_runs.py runs/a runs/b ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sft.commands.compare.comparison import ComparedRun, compare, read_run, short_names
from sft.commands.compare.text import comparison_lines
from sft.common.errors import ConfigError, UserError
from sft.common.optional_packages import missing_package
from sft.configuration.command_line import OneLineParser
from sft.processes.exit_records import print_problems
from sft.reporting.curves import draw_comparison

DESCRIPTION = """\
Compares runs by what they left in their output folders: the settings and data that differ, validation and training
loss, speed and memory side by side, and one picture of all curves. Warns where figures cannot be compared."""


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status: 0, or 2 for what a user can mend."""
    parser = OneLineParser(prog="python compare_runs.py", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output_dir of a run; two or more")
    parser.add_argument("--output", default="compared_runs.png", metavar="FILE.png", help="where the picture goes")
    try:
        given = parser.parse_args(arguments)
        runs = _read(given.runs)
        if not given.output.lower().endswith(".png"):
            raise ConfigError(f"command line: --output: expected the name of a PNG file, found {given.output!r}.")
        lines = comparison_lines(compare(runs))
        drawn = _draw(runs, given.output)
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    sys.stdout.write("\n".join([*lines, "", drawn]) + "\n")
    return 0


def _read(folders: Sequence[str]) -> list[ComparedRun]:
    resolved = [Path(folder).resolve() for folder in folders]
    twice = next((f for f, place in zip(folders, resolved, strict=True) if resolved.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"command line: '{twice}' is named twice; a run cannot be compared with itself.")
    if len(folders) < 2:
        raise ConfigError("command line: name two or more runs: python compare_runs.py runs/a runs/b")
    return [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def _draw(runs: Sequence[ComparedRun], path: str) -> str:
    """Draw the curves of all runs into one picture. Returns the line for the terminal."""
    sizes = {run.name: run.find("batch_plan", "global_batch_size") for run in runs}
    try:
        draw_comparison({run.name: run.events for run in runs}, path, sizes)
    except OSError as error:
        raise ConfigError(f"command line: --output: {path} cannot be written: {error.strerror}.") from None
    except ImportError:
        return f"The curves were not drawn: this {missing_package('matplotlib')}."
    return f"The curves: {path}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
