"""Errors that the user can cause and fix: reported in one line each, with exit code 2 and no traceback."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


class UserError(Exception):
    """A problem that the user can fix.

    Args:
        problems: complete lines for the terminal: where, what was found, what is allowed, what to do.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        problems = tuple(line for problem in problems for line in self._raised_in_worker(problem))
        super().__init__("\n".join(problems))
        self.problems = problems

    def _raised_in_worker(self, problem: str) -> Sequence[str]:
        """The lines of an error of a loader's worker: torch raises it again with the text of its traceback instead."""
        if not problem.startswith("Caught ") or "DataLoader worker process" not in problem.partition("\n")[0]:
            return (problem,)
        _, found, lines = problem.partition(f"\n{type(self).__module__}.{type(self).__name__}: ")
        return lines.strip().split("\n") if found else (problem,)


class ConfigError(UserError):
    """An invalid setting: in the YAML file, on the command line, or for this machine."""


class DataError(UserError):
    """Training or validation data that cannot be used."""


class ModelError(UserError):
    """A model or tokenizer that cannot be loaded or contradicts the settings."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read. Earlier checkpoints are unchanged."""


class MemoryShortage(UserError):
    """Out of memory even with the smallest batch size."""


class TrainingError(UserError):
    """Training cannot continue."""


def located(error: UserError, origins: Mapping[str, str]) -> UserError:
    """Prefix each problem that begins with the name of a given key with `file:line: `.

    Args:
        error: raised after the configuration was read.
        origins: key -> where it was given.

    Returns:
        An error of the same class.
    """

    def with_origin(problem: str) -> str:
        key = re.match(r"[a-z]\w*(\[\d+\])?(\.\w+)*", problem)
        origin = key and origins.get(key.group())
        return f"{origin}: {problem}" if origin else problem

    return type(error)(*map(with_origin, error.problems))


def one_line(error: object, longest: int = 400) -> str:
    """A library's error message as a single line of at most `longest` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 4] + " ..."
