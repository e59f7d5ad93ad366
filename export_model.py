"""Makes a trained model ready for others: `python export_model.py ./sft_output --merge --output ./merged`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sft.checkpointing.publish import describe_full_disk
from sft.commands.export.options import ExportOptions
from sft.common.errors import ConfigError, ModelError, UserError
from sft.configuration.command_line import OneLineParser
from sft.processes.exit_records import print_problems
from sft.processes.libraries import pause_garbage_collection, quiet_libraries, resume_garbage_collection
from sft.processes.logs import configure_logging

DESCRIPTION = """\
Writes a trained model as a folder of its own, with a model card. Adapters (LoRA, QLoRA) are merged into their base. The
result is read back and compared with what was trained, by its logits on some texts; where they differ by more than
rounding explains, nothing is written."""


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status: 0; 2 for what a user can mend; 130 after Ctrl-C."""
    configure_logging()
    try:
        options = read_options(arguments)
        quiet_libraries()
        from sft.commands.export.export import export

        resume_garbage_collection()
        return _told(lambda: export(options))
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def read_options(arguments: Sequence[str]) -> ExportOptions:
    """The command line, checked.

    Raises:
        ConfigError: if it does not make sense.
    """
    parser = OneLineParser(prog="python export_model.py", description=DESCRIPTION,
                           formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="a folder (a run's output_dir, a checkpoint-N), or a name on the Hub")
    parser.add_argument("--output", metavar="FOLDER", help="a new folder (default: MODEL-merged, or MODEL-export)")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the weights of their base")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                        help="type of the weights; auto: as the model, or the adapters' base, is saved")  # fmt: skip
    parser.add_argument("--base", help="the adapters' base, where it is not the one that they name")
    parser.add_argument("--load_in_4bit", action=argparse.BooleanOptionalAction,
                        help="adapters were trained on a base in 4 bits; default: by the run's record")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu; float32 takes much memory)")
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the result to the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: into a private repository")
    parser.add_argument("--gguf", action="store_true", help="write a GGUF file too, by llama.cpp's converter")
    parser.add_argument("--gguf_converter", metavar="PATH",
                        help="llama.cpp's convert_hf_to_gguf.py, or its folder; default: on the PATH")  # fmt: skip
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")
    options = ExportOptions(**vars(parser.parse_args(arguments)))
    if options.private and options.push_to_hub is None:
        raise ConfigError("command line: --private belongs to --push_to_hub OWNER/NAME.")
    return options


def _told(export) -> int:
    """0; a full disk is no bug of ours."""
    try:
        export()
    except UserError:
        raise
    except Exception as error:
        problem = describe_full_disk(error)
        if problem is None:
            raise
        raise ModelError(f"{problem}. Make room, or choose another folder with --output.") from error
    return 0


if __name__ == "__main__":
    pause_garbage_collection()
    sys.exit(main(sys.argv[1:]))
