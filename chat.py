"""Chat with a trained model in the terminal: `python chat.py ./sft_output`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sft.commands.chat.options import MODEL_BEFORE_TRAINING, ChatOptions, Sampling
from sft.common.errors import ConfigError, UserError
from sft.common.files import is_utf8, long_names_refused
from sft.common.standard_streams import guard_standard_streams
from sft.configuration.command_line import OneLineParser, number
from sft.processes.exit_records import print_problems
from sft.processes.libraries import pause_garbage_collection, quiet_libraries, resume_garbage_collection
from sft.processes.logs import configure_logging

DESCRIPTION = """\
Chat with a model in the terminal: a full model, adapters (LoRA, QLoRA), a checkpoint, or a base model. A model without
a chat template continues text. With --prompt, or with text on standard input, it answers once, and only the answer is
written to standard output."""


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit code: 0; 2 for a user error; 130 after Ctrl-C."""
    configure_logging(sys.stderr)
    try:
        return chat(read_options(arguments))
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


@long_names_refused()
def chat(options: ChatOptions) -> int:
    """Answer the prompt, or start a conversation if there is none and standard input is a terminal."""
    prompt = options.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = _read_stdin()
    if prompt is not None and not prompt.strip():
        raise ConfigError("command line: the prompt (--prompt or standard input) is empty.")
    quiet_libraries()

    # Not at the top: these import torch, which --help does without.
    from sft.commands.chat.loading import load_responders  # heavy
    from sft.commands.chat.session import ChatSession, answer_once  # heavy

    resume_garbage_collection()
    responders = load_responders(options)
    if prompt is not None:
        answer_once(responders, prompt, options.system, options.sampling, sys.stdout)
        return 0
    session = ChatSession(responders, options.system, options.sampling, sys.stdout, keeps_history=options.history)
    return session.run()


def read_options(arguments: Sequence[str]) -> ChatOptions:
    """Parse and check the command line.

    Raises:
        ConfigError: if an option is unknown, has an invalid value, or contradicts another one.
    """
    given = vars(_parser().parse_args(arguments))
    for name in ("prompt", "system"):
        if given[name] is not None and not is_utf8(given[name]):
            raise ConfigError(f"command line: --{name}: not UTF-8 text.")
    if given["top_p"] is not None and not given["temperature"]:
        raise ConfigError("command line: --top_p has no effect without --temperature; add it, for example 0.7.")
    sampling = Sampling(
        temperature=given.pop("temperature"),
        top_p=given.pop("top_p") or 1.0,
        max_new_tokens=given.pop("max_new_tokens"),
        seed=given.pop("seed"),
    )
    return ChatOptions(sampling=sampling, **given)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python chat.py", description=DESCRIPTION)
    add = parser.add_argument
    add("model", help="a folder (output_dir of a run, or a checkpoint-N), or a name on the Hub")
    add("--prompt", metavar="TEXT", help="answer this prompt and exit; text on standard input is one prompt as well")
    add("--system", metavar="TEXT", help="system prompt")
    add("--plain", action="store_true", help="continue text, although there is a chat template")
    add(
        "--no_history",
        dest="history",
        action="store_false",
        help="answer each question on its own, for a model trained on single questions",
    )
    add(
        "--compare",
        metavar="BASE",
        nargs="?",
        const=MODEL_BEFORE_TRAINING,
        help="show the answers of a second model as well (default: the model before training)",
    )
    add("--base", help="base model of the adapters, if it is not the one that they name")
    add("--merge", action="store_true", help="merge adapters into the weights in memory, which makes generation faster")
    add(
        "--load_in_4bit",
        action=argparse.BooleanOptionalAction,
        help="load weights in 4 bits (default: as the adapters' base model was loaded in training)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="data type of the weights; auto: as saved on a GPU, float32 on the CPU",
    )
    add("--temperature", type=number(float, 0), default=0.0, help="0: greedy decoding (default)")
    add("--top_p", type=number(float, 0, 1), help="sample from the most likely tokens that add up to this probability")
    add("--max_new_tokens", type=number(int, 1), default=512, help="maximum length of an answer (default: 512)")
    add("--seed", type=number(int, 0), default=42, help="seed for sampling (default: 42)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model")
    return parser


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input: not UTF-8 text (byte {error.start}).") from None


if __name__ == "__main__":
    guard_standard_streams()
    pause_garbage_collection()
    sys.exit(main(sys.argv[1:]))
