"""The command: `python -m sft.check_gpu`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from sft.check_gpu.options import read_options
from sft.check_gpu.section_process import run_section
from sft.check_gpu.supervision import supervise
from sft.common.errors import UserError
from sft.common.files import long_names_refused
from sft.common.standard_streams import continue_without_output, guard_standard_streams
from sft.processes.exit_records import print_problems
from sft.processes.logs import configure_logging


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 0 if all checks passed, 1 if some failed, 2 without a GPU or for a mistake."""
    configure_logging()
    try:
        options = read_options(arguments)
        if options.section is not None:
            return run_section(options.section, options)
        continue_without_output()
        with long_names_refused():
            return supervise(options, arguments)
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the section's process too, as Ctrl-C does
    guard_standard_streams()
    sys.exit(main(sys.argv[1:]))
