"""What is typed behind `python sft_main.py`: the configuration file, the kind of run, and settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from sft.common.errors import ConfigError
from sft.common.machine_records import LaunchOptions

_FILE_OPTIONS = ("--config_file", "--config")
_NOT_REPEATED = ("--resume_from_checkpoint", "--hub_token", "--push_to_hub_token")
"""What the command to go on with leaves out: it is shown and written down, which a token must not be."""
_SHOWN_BY_DEFAULT = (1, 2, 3)
_SMALLEST = {"nodes": 1, "node_rank": 0, "max_restarts": 0}
_LAUNCH_EXAMPLES = {
    "nodes": "a number of machines: --nodes 2",
    "node_rank": "the number of this machine, from 0: --node_rank 0",
    "max_restarts": "a number: --max_restarts 3",
    "rendezvous": "HOST:PORT of node 0: --rendezvous node1:29500",
    "log_dir": "a folder: --log_dir logs",
}


_START_EXAMPLES = {
    "model": "a folder or a name on the Hub: --model gpt2",
    "data": "a file: --data my_data.jsonl",
    "gpus": "a number: --gpus 4",
    "method": "full, lora or qlora: --method lora",
    "output_dir": "a folder: --output_dir runs/first",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StartOptions:
    """What is typed behind `--init`, unchecked; None where it is to be asked for, or has a default."""

    config_file: str | None = None
    model: str | None = None
    data: str | None = None
    gpus: str | None = None
    method: str | None = None
    output_dir: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command line, taken apart."""

    config_file: str | None
    overrides: tuple[str, ...]
    """Settings as they were typed, for `load_config`."""
    dry_run: bool = False
    print_config: bool = False
    """Show the resolved configuration, and do nothing else."""
    show_rows: tuple[int, ...] = ()
    """Numbers of training rows, from 1, that a dry run shows."""
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    """How processes are started."""
    to_repeat: str = ""
    """The command without a word on resuming, to say how to go on: the caller adds that."""


def read_command(arguments: Sequence[str]) -> Command:
    """Takes a command line apart.

    Raises:
        ConfigError: if an option lacks its value, or has one that it cannot have.
    """
    path: str | None = None
    dry_run = print_config = False
    show_rows: tuple[int, ...] | None = None
    overrides: list[str] = []
    launch: dict[str, str] = {}
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, equals, value = argument.partition("=")
        launch_option = name.removeprefix("--") if name.startswith("--") else ""
        if name in (*_FILE_OPTIONS, "--show_rows") or launch_option in _LAUNCH_EXAMPLES:
            if not equals:
                if not pending:
                    example = "rows: --show_rows 3,17" if name == "--show_rows" else f"a file: {name} my.yaml"
                    raise ConfigError(f"command line: {name} needs {_LAUNCH_EXAMPLES.get(launch_option, example)}")
                value = pending.pop(0)
            if name == "--show_rows":
                show_rows = _row_numbers(value)
            elif launch_option in _LAUNCH_EXAMPLES:
                launch[launch_option] = value
            else:
                path = value
        elif name == "--dry_run":
            dry_run = _switch(name, value) if equals else True
        elif name == "--print_config":
            print_config = _switch(name, value) if equals else True
        else:
            overrides.append(argument)
    if show_rows is not None and not dry_run:
        raise ConfigError("command line: --show_rows belongs to a dry run; add --dry_run.")
    shown = (show_rows if show_rows is not None else _SHOWN_BY_DEFAULT) if dry_run else ()
    return Command(
        config_file=path,
        overrides=tuple(overrides),
        dry_run=dry_run,
        print_config=print_config,
        show_rows=shown,
        launch=_launch_options(launch),
        to_repeat=_without_resuming(arguments),
    )


def read_start(arguments: Sequence[str]) -> StartOptions | None:
    """What stands behind `--init`; None where that does not stand on the command line.

    Raises:
        ConfigError: if something stands there that has no place beside it, or an option lacks its value.
    """
    names = [argument.partition("=")[0] for argument in arguments]
    if "--init" not in names:
        return None
    given: dict[str, str] = {}
    overwrite = False
    pending = list(arguments)
    while pending:
        name, equals, value = pending.pop(0).partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if name == "--overwrite" and not equals:
            overwrite = True
            continue
        if name == "--init":
            if not equals and pending and not pending[0].startswith("--"):
                value = pending.pop(0)
            given |= {"config_file": value} if value else {}
            continue
        if not name.startswith("--") or key not in _START_EXAMPLES:
            allowed = ", ".join(f"--{option}" for option in (*_START_EXAMPLES, "overwrite"))
            raise ConfigError(
                f"command line: {name} has no place beside --init, which takes {allowed}; write settings into the file "
                "that it makes."
            )
        if not equals:
            if not pending or pending[0].startswith("--"):
                raise ConfigError(f"command line: {name} needs {_START_EXAMPLES[key]}")
            value = pending.pop(0)
        given[key] = value
    return StartOptions(**given, overwrite=overwrite)


def _launch_options(given: dict[str, str]) -> LaunchOptions:
    """What was typed about processes, checked; all that is wrong at once."""
    problems: list[str] = []
    values: dict[str, int | str] = dict(given)
    for name in _SMALLEST.keys() & given.keys():
        if given[name].isdecimal() and int(given[name]) >= _SMALLEST[name]:
            values[name] = int(given[name])
        else:
            problems.append(
                f"command line: --{name}: expected a whole number from {_SMALLEST[name]} up, found {given[name]!r}."
            )
    host, _, port = given.get("rendezvous", "").rpartition(":")
    if "rendezvous" in given and not (host and port.isdecimal() and 0 < int(port) < 65536):
        problems.append(
            "command line: --rendezvous: expected HOST:PORT of node 0, as in node1:29500; "
            f"found {given['rendezvous']!r}."
        )
    if problems:
        raise ConfigError(*sorted(problems))
    options = LaunchOptions(**values)
    if options.nodes > 1 and (options.rendezvous is None or options.node_rank is None):
        raise ConfigError(
            f"command line: --nodes {options.nodes} needs --node_rank (0 to {options.nodes - 1}, this machine's) and "
            "--rendezvous HOST:PORT (of node 0, the same on all)."
        )
    if options.nodes == 1 and options.rendezvous is not None:
        raise ConfigError("command line: --rendezvous is for several machines; add --nodes N, or leave it out.")
    if (options.node_rank or 0) >= options.nodes:
        raise ConfigError(
            f"command line: --node_rank is {options.node_rank}, but --nodes is {options.nodes}: "
            "nodes are counted from 0."
        )
    return options


def _row_numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ConfigError(f"command line: --show_rows: expected numbers of rows from 1 up, as in 3,17; found {text!r}.")
    return tuple(dict.fromkeys(map(int, parts)))


def _switch(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"command line: {name} is true or false, found {text!r}.")
    return text.lower() == "true"


def _without_resuming(arguments: Sequence[str]) -> str:
    kept: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if argument.partition("=")[0] in _NOT_REPEATED:
            if "=" not in argument and pending and not pending[0].startswith("--"):
                pending.pop(0)
            continue
        kept.append(argument)
    return shlex.join(["python", "sft_main.py", *kept])
