"""What is typed behind `python sft_main.py`: the configuration file, the kind of run, and settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sft_errors import ConfigError

_FILE_OPTIONS = ("--config_file", "--config")
_SHOWN_BY_DEFAULT = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command line, taken apart."""

    config_file: str | None
    overrides: tuple[str, ...]
    """Settings as they were typed, for `load_config`."""
    dry_run: bool = False
    show_rows: tuple[int, ...] = ()
    """Numbers of training rows, from 1, that a dry run shows."""
    to_repeat: str = ""
    """The command without a word on resuming, to say how to go on: the caller adds that."""


def read_command(arguments: Sequence[str]) -> Command:
    """Takes a command line apart.

    Raises:
        ConfigError: if an option lacks its value, or has one that it cannot have.
    """
    path: str | None = None
    dry_run = False
    show_rows: tuple[int, ...] | None = None
    overrides: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, equals, value = argument.partition("=")
        if name in (*_FILE_OPTIONS, "--show_rows"):
            if not equals:
                if not pending:
                    example = "rows: --show_rows 3,17" if name == "--show_rows" else f"a file: {name} my.yaml"
                    raise ConfigError(f"command line: {name} needs {example}")
                value = pending.pop(0)
            if name == "--show_rows":
                show_rows = _row_numbers(value)
            else:
                path = value
        elif name == "--dry_run":
            dry_run = _switch(value) if equals else True
        else:
            overrides.append(argument)
    if show_rows is not None and not dry_run:
        raise ConfigError("command line: --show_rows belongs to a dry run; add --dry_run.")
    shown = (show_rows if show_rows is not None else _SHOWN_BY_DEFAULT) if dry_run else ()
    return Command(
        config_file=path,
        overrides=tuple(overrides),
        dry_run=dry_run,
        show_rows=shown,
        to_repeat=_without_resuming(arguments),
    )


def _row_numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ConfigError(f"command line: --show_rows: expected numbers of rows from 1 up, as in 3,17; found {text!r}.")
    return tuple(dict.fromkeys(map(int, parts)))


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"command line: --dry_run is true or false, found {text!r}.")
    return text.lower() == "true"


def _without_resuming(arguments: Sequence[str]) -> str:
    kept: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if argument.partition("=")[0] == "--resume_from_checkpoint":
            if "=" not in argument and pending and not pending[0].startswith("--"):
                pending.pop(0)
            continue
        kept.append(argument)
    return shlex.join(["python", "sft_main.py", *kept])
