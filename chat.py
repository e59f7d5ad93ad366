"""Talks to a trained model in the terminal: `python chat.py ./sft_output`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sft.commands.chat.options import BASE_BEFORE_TRAINING, Sampling, TalkOptions
from sft.common.errors import ConfigError, UserError
from sft.configuration.command_line import OneLineParser, number
from sft.processes.exit_records import print_problems
from sft.processes.libraries import pause_garbage_collection, quiet_libraries, resume_garbage_collection
from sft.processes.logs import configure_logging

DESCRIPTION = """\
Talks to a model in the terminal: a whole model, adapters (LoRA, QLoRA), a checkpoint, or a base model. A model without
a chat template continues text. With --prompt, or with text on standard input, it answers once, and the answer alone
goes to standard output."""


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status: 0; 2 for what a user can mend; 130 after Ctrl-C."""
    configure_logging(sys.stderr)
    try:
        return talk(read_options(arguments))
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: there is nobody left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def talk(options: TalkOptions) -> int:
    """One answer, or a conversation where there is a terminal and no question yet."""
    prompt = options.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = _from_pipe()
    if prompt is not None and not prompt.strip():
        raise ConfigError("command line: there is nothing to answer: --prompt (or standard input) is empty.")
    quiet_libraries()

    from sft.commands.chat.speakers import load_speakers
    from sft.commands.chat.terminal import Talk, answer_once

    resume_garbage_collection()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # what a terminal's encoding lacks is written out
    speakers = load_speakers(options)
    if prompt is None:
        talk_with = Talk(speakers, options.system, options.sampling, sys.stdout, keeps_history=options.history)
        return talk_with.run()
    answer_once(speakers, prompt, options.system, options.sampling, sys.stdout)
    return 0


def read_options(arguments: Sequence[str]) -> TalkOptions:
    """The command line, checked.

    Raises:
        ConfigError: if it does not make sense.
    """
    parser = OneLineParser(prog="python chat.py", description=DESCRIPTION,
                           formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="a folder (a run's output_dir, a checkpoint-N), or a name on the Hub")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and leave; so is a pipe, all of it as one prompt")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--plain", action="store_true", help="continue text, although there is a chat template")
    parser.add_argument("--no_history", dest="history", action="store_false",
                        help="each question by itself, for a model that was trained on single questions")  # fmt: skip
    parser.add_argument("--compare", metavar="BASE", nargs="?", const=BASE_BEFORE_TRAINING,
                        help="answers from this model too; without BASE: from the one before training")  # fmt: skip
    parser.add_argument("--base", help="the adapters' base, where it is not the one that they name")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the weights, in memory: quicker")
    parser.add_argument("--load_in_4bit", action=argparse.BooleanOptionalAction,
                        help="weights in 4 bits; default: adapters' base as it was in training")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                        help="type of the weights; auto: as saved on a GPU, float32 on CPU")  # fmt: skip
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="0: the likeliest token (default)")
    parser.add_argument("--top_p", type=number(float, 0, 1), help="share of the likeliest tokens to choose from")
    parser.add_argument("--max_new_tokens", type=number(int, 1), default=512, help="longest answer (default: 512)")
    parser.add_argument("--seed", type=number(int, 0), default=42, help="of the random choice (default: 42)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")
    given = vars(parser.parse_args(arguments))
    if given["top_p"] is not None and not given["temperature"]:
        raise ConfigError("command line: --top_p chooses at random, so it needs --temperature, say 0.7.")
    sampling = Sampling(
        temperature=given.pop("temperature"), top_p=given.pop("top_p") or 1.0,
        max_new_tokens=given.pop("max_new_tokens"), seed=given.pop("seed"),
    )  # fmt: skip
    return TalkOptions(sampling=sampling, **given)


def _from_pipe() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input: not UTF-8 text (byte {error.start}).") from None


if __name__ == "__main__":
    pause_garbage_collection()
    sys.exit(main(sys.argv[1:]))
