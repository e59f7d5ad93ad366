"""Errors that a user can cause and can mend: one clear line each, exit code 2, never a traceback."""

import re
from collections.abc import Mapping


class UserError(Exception):
    """Something in the user's hands is wrong. Each of `problems` is one complete line for the terminal."""

    exit_code = 2

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ConfigError(UserError):
    """A setting is wrong: in the YAML file, on the command line, or for this machine."""


class DataError(UserError):
    """The training or validation data cannot be used as it is."""


class ModelError(UserError):
    """The model or tokenizer cannot be loaded or does not fit the settings."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; those before it are as they were."""


class MemoryShortage(UserError):
    """The device cannot hold what the settings ask for, however small the parts."""


class TrainingError(UserError):
    """Training cannot go on in a way that makes sense."""


def located(error: UserError, origins: Mapping[str, str]) -> UserError:
    """The error with `file:line: ` before each problem that begins with the name of a key that was given.

    Args:
        error: raised after the configuration was read, so without the place of its keys.
        origins: key -> where it was given.
    """

    def with_place(problem: str) -> str:
        key = re.match(r"[a-z]\w*(\[\d+\])?(\.\w+)*", problem)
        place = key and origins.get(key.group())
        return f"{place}: {problem}" if place else problem

    return type(error)(*map(with_place, error.problems))


def one_line(error: Exception, longest: int = 400) -> str:
    """What a library says in many lines, on one, of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 4] + " ..."
