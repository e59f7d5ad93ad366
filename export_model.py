"""Export a trained model: `python export_model.py ./sft_output --merge --output ./merged`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sft.checkpointing.publish import describe_full_disk
from sft.commands.export.options import ExportOptions
from sft.common.errors import ConfigError, ModelError, UserError
from sft.common.files import long_names_refused
from sft.common.standard_streams import continue_without_output, guard_standard_streams
from sft.configuration.command_line import OneLineParser
from sft.processes.exit_records import print_problems
from sft.processes.libraries import pause_garbage_collection, quiet_libraries, resume_garbage_collection
from sft.processes.logs import configure_logging

DESCRIPTION = """\
Export a trained model to a folder of its own, with a model card. Adapters (LoRA, QLoRA) are merged into their base
model. The result is loaded again and compared with the model that was trained, by their logits on some texts; if they
differ by more than rounding explains, nothing is written."""


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit code: 0; 2 for a user error; 130 after Ctrl-C."""
    configure_logging()
    try:
        run_export(read_options(arguments))
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


@long_names_refused()
def run_export(options: ExportOptions) -> None:
    """Import the libraries, and export.

    Raises:
        UserError: if the model cannot be exported; a full disk is one of the reasons.
    """
    continue_without_output()
    quiet_libraries()

    from sft.commands.export.export import export  # not at the top: it imports torch, which --help does without

    resume_garbage_collection()
    try:
        export(options)
    except UserError:
        raise
    except Exception as error:
        problem = describe_full_disk(error)
        if problem is None:
            raise
        raise ModelError(f"{problem}. Free some space, or choose another folder with --output.") from error


def read_options(arguments: Sequence[str]) -> ExportOptions:
    """Parse and check the command line.

    Raises:
        ConfigError: if an option is unknown, has an invalid value, or contradicts another one.
    """
    options = ExportOptions(**vars(_parser().parse_args(arguments)))
    if options.private and options.push_to_hub is None:
        raise ConfigError("command line: --private requires --push_to_hub OWNER/NAME.")
    return options


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python export_model.py", description=DESCRIPTION)
    add = parser.add_argument
    add("model", help="a folder (output_dir of a run, or a checkpoint-N), or a name on the Hub")
    add("--output", metavar="FOLDER", help="a new folder (default: MODEL-merged, or MODEL-export)")
    add("--merge", action="store_true", help="merge adapters into the weights of their base model")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="data type of the weights; auto: as the model, or the adapters' base model, is saved",
    )
    add("--base", help="base model of the adapters, if it is not the one that they name")
    add(
        "--load_in_4bit",
        action=argparse.BooleanOptionalAction,
        help="the adapters were trained on a base model in 4 bits (default: according to the run's record)",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu, as float32 takes much memory)")
    add("--push_to_hub", metavar="OWNER/NAME", help="upload the result to the Hugging Face Hub")
    add("--private", action="store_true", help="with --push_to_hub: create a private repository")
    add("--gguf", action="store_true", help="write a GGUF file as well, with llama.cpp's converter")
    add(
        "--gguf_converter",
        metavar="PATH",
        help="llama.cpp's convert_hf_to_gguf.py, or its folder (default: the one on the PATH)",
    )
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model")
    return parser


if __name__ == "__main__":
    guard_standard_streams()
    pause_garbage_collection()
    sys.exit(main(sys.argv[1:]))
