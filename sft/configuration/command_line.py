"""The command lines of all commands: an argparse parser with one-line errors, and the options of `sft_main.py`."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from sft.common.errors import ConfigError
from sft.common.machine_records import LaunchOptions
from sft.common.secrets import hide, hide_value, looks_secret, secrets_in_arguments
from sft.common.standard_streams import write_product

DEFAULT_ROWS = (1, 2, 3)
"""Training rows that a dry run shows."""
_EXAMPLES = {
    "--config_file": "--config_file my.yaml",
    "--config": "--config my.yaml",
    "--show_rows": "--show_rows 3,17",
    "--nodes": "--nodes 2",
    "--node_rank": "--node_rank 0",
    "--rendezvous": "--rendezvous node1:29500",
    "--max_restarts": "--max_restarts 3",
    "--log_dir": "--log_dir logs",
    "--model": "--model gpt2",
    "--data": "--data my_data.jsonl",
    "--gpus": "--gpus 4",
    "--method": "--method lora",
    "--output_dir": "--output_dir runs/first",
}
"""Shown if an option has no value."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and reports errors as one line, with exit code 2 like all user errors."""

    def __init__(
        self,
        *,
        prog: str,
        description: str | None = None,
        add_help: bool = True,
        formatter_class: type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter,
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            add_help=add_help,
            formatter_class=formatter_class,
            allow_abbrev=False,
        )
        self._arguments: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; errors do not quote secrets."""
        self._arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        """Write the help to standard output.

        Raises:
            OutputLost: if it cannot be written.
        """
        write_product(self.format_help())

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError with argparse's message."""
        message = message.removeprefix("argument ")
        option = message.partition(":")[0].partition("/")[0]
        example = _EXAMPLES.get(option) if message.endswith("expected one argument") else None
        hint = f", as in {example}" if example else "" if ", found " in message else ". --help lists all options"
        raise ConfigError(hide(f"command line: {message}{hint}.", secrets_in_arguments(self._arguments)))


def number(kind: type[int] | type[float], lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    """A `type` for `add_argument`: a number within bounds.

    Args:
        kind: int or float.
        lowest: smallest allowed value.
        highest: largest allowed value.
    """
    name = "an integer" if kind is int else "a number"
    expected = f"{name} from {lowest:g} to {highest:g}" if highest < math.inf else f"{name} >= {lowest:g}"

    def convert(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest or value == math.inf:
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
        return value

    return convert


@dataclass(frozen=True, kw_only=True, slots=True)
class InitOptions:
    """Options of `--init`, unchecked. None: ask the user, or use a default."""

    config_file: str | None = None
    model: str | None = None
    data: str | None = None
    gpus: str | None = None
    method: str | None = None
    output_dir: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """The command line of a run."""

    config_file: str | None
    overrides: tuple[str, ...]
    """Settings as they were typed, for `load_config`."""
    dry_run: bool = False
    print_config: bool = False
    """Print the resolved configuration and exit."""
    show_rows: tuple[int, ...] = ()
    """Numbers of the training rows that a dry run shows, from 1."""
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    """How processes are started."""
    to_repeat: str = ""
    """The command without secrets and without `--resume_from_checkpoint`, which the caller appends."""


def read_command(arguments: Sequence[str]) -> Command:
    """Parse the command line of a run. Options that are not known here are settings.

    Raises:
        ConfigError: if an option lacks its value or has an invalid one.
    """
    given, overrides = _run_parser().parse_known_args(list(arguments))
    if given.show_rows is not None and not given.dry_run:
        raise ConfigError("command line: --show_rows requires --dry_run.")
    rows = DEFAULT_ROWS if given.show_rows is None else given.show_rows
    return Command(
        config_file=given.config_file,
        overrides=tuple(overrides),
        dry_run=given.dry_run,
        print_config=given.print_config,
        show_rows=rows if given.dry_run else (),
        launch=_launch_options(given),
        to_repeat=_command_to_repeat(arguments),
    )


def read_help(arguments: Sequence[str]) -> list[str] | None:
    """The keys that follow `--help` (all keys if there is none); None if that is not among the arguments."""
    for place, argument in enumerate(arguments):
        option, _, key = argument.partition("=")
        if option in ("--help", "-h"):
            following = takewhile(lambda word: not word.startswith("-"), arguments[place + 1 :])
            return [key] if key else list(following)
    return None


def read_init(arguments: Sequence[str]) -> InitOptions | None:
    """Parse the command line of `--init`; None if that is not among the arguments.

    Raises:
        ConfigError: if there are other arguments, or an option lacks its value.
    """
    if not any(argument.partition("=")[0] == "--init" for argument in arguments):
        return None
    parser = OneLineParser(prog="python sft_main.py", add_help=False)
    parser.add_argument("--init", dest="config_file", nargs="?")
    for name in ("model", "data", "gpus", "method", "output_dir"):
        parser.add_argument(f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else []))
    parser.add_argument("--overwrite", action="store_true")
    given, others = parser.parse_known_args(list(arguments))
    if others:
        allowed = "--model, --data, --gpus, --method, --output_dir, --overwrite"
        raise ConfigError(
            f"command line: {others[0].partition('=')[0]} cannot be combined with --init, which takes {allowed}. Write "
            "settings into the file that --init creates."
        )
    values = vars(given)
    return InitOptions(**{**values, "config_file": values["config_file"] or None})


def _run_parser() -> OneLineParser:
    parser = OneLineParser(prog="python sft_main.py", add_help=False)
    parser.add_argument("--config_file", "--config")
    parser.add_argument("--dry_run", nargs="?", const=True, default=False, type=_true_or_false)
    parser.add_argument("--print_config", nargs="?", const=True, default=False, type=_true_or_false)
    parser.add_argument("--show_rows", type=_row_numbers)
    for name in ("nodes", "node_rank", "max_restarts", "rendezvous", "log_dir"):
        parser.add_argument(f"--{name}")
    return parser


def _launch_options(given: argparse.Namespace) -> LaunchOptions:
    """Check the options about processes; all problems are reported at once."""
    problems: list[str] = []

    def convert(name: str, read: Callable[[str], float]) -> int | None:
        text = getattr(given, name)
        try:
            return None if text is None else int(read(text))
        except argparse.ArgumentTypeError as error:
            problems.append(f"command line: --{name}: {error}.")
            return None

    max_restarts = convert("max_restarts", number(int, 0))
    node_rank = convert("node_rank", number(int, 0))
    nodes = convert("nodes", number(int, 1))
    host, _, port = (given.rendezvous or "").rpartition(":")
    if given.rendezvous is not None and not (host and port.isdecimal() and 0 < int(port) < 65536):
        problems.append(
            f"command line: --rendezvous: expected HOST:PORT of node 0, as in node1:29500; found {given.rendezvous!r}."
        )
    if problems:
        raise ConfigError(*problems)
    options = LaunchOptions(
        nodes=nodes or 1,
        node_rank=node_rank,
        rendezvous=given.rendezvous,
        max_restarts=max_restarts or 0,
        log_dir=given.log_dir,
    )
    _check_nodes(options)
    return options


def _check_nodes(options: LaunchOptions) -> None:
    if options.nodes > 1 and (options.rendezvous is None or options.node_rank is None):
        raise ConfigError(
            f"command line: --nodes {options.nodes} requires --node_rank (of this machine, 0 to {options.nodes - 1}) "
            "and --rendezvous HOST:PORT (of node 0, the same on all machines)."
        )
    if options.nodes == 1 and options.rendezvous is not None:
        raise ConfigError("command line: --rendezvous requires several machines; add --nodes N, or remove it.")
    if (options.node_rank or 0) >= options.nodes:
        raise ConfigError(
            f"command line: --node_rank is {options.node_rank}, but must be below --nodes ({options.nodes}); "
            "nodes are numbered from 0."
        )


def _row_numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"expected row numbers from 1, as in 3,17; found {text!r}")
    return tuple(dict.fromkeys(map(int, parts)))


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


def program(script: str) -> list[str]:
    """The first words of a command that runs `script` of this program from the current folder, as this process runs.

    `python` where a shell finds this interpreter by that name, else its path; a script elsewhere is named by its path.
    """
    names = [name for name in ("python", "python3") if shutil.which(name) == sys.executable]
    path = Path(__file__).absolute().parents[2] / script
    with suppress(OSError, ValueError):  # another folder, or the current one was removed
        path = path.relative_to(Path.cwd())
    return [*(names or [sys.executable or "python"])[:1], str(path)]


def _without_nested_secrets(argument: str, key: str) -> str:
    """The argument with masked secrets in a mapping or `name=value` list; of a text, such as a prompt, in addresses."""
    is_text = " " in argument and "{" not in argument and key != "run_name"
    return hide(argument) if is_text else hide_value(argument)


def _command_to_repeat(arguments: Sequence[str]) -> str:
    """The command as shown to the user and written to files: without secrets and without resuming."""
    kept: list[str] = []
    is_omitted, key = False, ""
    for argument in arguments:
        if argument.startswith("--"):
            key = argument[2:].partition("=")[0].replace("-", "_")
            is_omitted = key == "resume_from_checkpoint" or looks_secret(key)
            if not is_omitted:
                kept.append(_without_nested_secrets(argument, key))
            # What follows `--key=value` is not a value of this option, but an error that is reported elsewhere.
            is_omitted = is_omitted and "=" not in argument
        elif not is_omitted:
            kept.append(_without_nested_secrets(argument, key))
    return shlex.join([*program("sft_main.py"), *kept])
