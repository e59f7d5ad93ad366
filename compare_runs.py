"""Compare several runs: `python compare_runs.py runs/a runs/b ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sft.commands.compare.comparison import compare
from sft.commands.compare.runs import ComparedRun, read_run, short_names
from sft.commands.compare.text import comparison_lines
from sft.common.errors import ConfigError, UserError, one_line
from sft.common.files import long_names_refused
from sft.common.optional_packages import missing_package
from sft.common.standard_streams import guard_standard_streams, write_product
from sft.configuration.command_line import OneLineParser
from sft.processes.exit_records import print_problems
from sft.processes.logs import configure_logging
from sft.processes.output import safe_text
from sft.processes.terminal import open_live_line
from sft.reporting.curves import draw_comparison

DESCRIPTION = """\
Compare runs by the records in their output folders: settings and data that differ, validation and training loss, speed
and memory, and one image with the curves of all runs. Warns about results that cannot be compared."""


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit code: 0; 2 for a user error."""
    configure_logging()
    parser = OneLineParser(prog="python compare_runs.py", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output_dir of a run; two or more")
    parser.add_argument("--output", default="compared_runs.png", metavar="FILE.png", help="path of the image")
    try:
        given = parser.parse_args(arguments)
        runs = _read(given.runs)
        if not given.output.lower().endswith(".png"):
            raise ConfigError(
                f"command line: --output: expected a file name that ends in .png, found {given.output!r}."
            )
        lines = comparison_lines(compare(runs), open_live_line(sys.stdout))
        lines += ["", _draw(runs, given.output)]
        write_product(safe_text("\n".join(lines) + "\n"))
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    return 0


@long_names_refused()
def _read(folders: Sequence[str]) -> list[ComparedRun]:
    paths = [Path(folder).resolve() for folder in folders]
    repeated = next((folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1), None)
    if repeated is not None:
        raise ConfigError(f"command line: '{repeated}' is named twice; name different runs.")
    if len(folders) < 2:
        raise ConfigError("command line: name two or more runs: python compare_runs.py runs/a runs/b")
    return [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def _draw(runs: Sequence[ComparedRun], path: str) -> str:
    """Draw the curves of all runs into one image. Returns the line for the terminal."""
    rows_per_step = {run.name: run.find("batch_plan", "global_batch_size") for run in runs}
    try:
        # A link that the user names is followed: the file that it points to is replaced.
        draw_comparison({run.name: run.events for run in runs}, os.path.realpath(path), rows_per_step)
    except OSError as error:
        raise ConfigError(
            f"command line: --output: {path} cannot be written: {error.strerror or one_line(error)}."
        ) from None
    except ImportError:
        return f"The curves were not drawn: this {missing_package('matplotlib')}."
    except Exception as error:
        return f"The curves were not drawn: {type(error).__name__}: {one_line(error)}"
    return f"Curves: {path}"


if __name__ == "__main__":
    guard_standard_streams()
    sys.exit(main(sys.argv[1:]))
