"""`row_function` and `row_filter`: functions of the user that change raw rows, or drop them, before a row has a format.

They run wherever rows are prepared. What a row becomes may depend on nothing but the row: rows are read again to show
them, and a stream is read again on resume.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sft.common.data_records import RawRow, RowProblem
from sft.common.device_errors import reraise_device_error
from sft.common.errors import ConfigError, one_line
from sft.common.function_files import function_problem, own_files, split_function
from sft.data.sources.json_rows import MAX_NESTING, checked_record

DELIBERATE_DROPS = ("row_function", "row_filter")
"""Reasons of rows that the user's functions drop: None and an empty list, or a false answer."""
FAILED = "row_function_failed"
"""Reason of rows at which one of them raised an exception or returned something else."""


class UserFunction:
    """A function that a setting names, `my_rows.py:to_messages`. Pickled as this text: each process loads it itself."""

    def __init__(self, text: str, key: str):
        """
        Args:
            text: The file and the function.
            key: The setting, for messages.

        Raises:
            ConfigError: In one line, if there is no such function, or its file cannot be run.
        """
        self._text, self._key = text, key
        if (problem := function_problem(text)) is not None:
            raise ConfigError(f"{key}: {problem}")
        file, name = split_function(text)
        path = Path(file).resolve()
        self._folder, self._paths = path.parent, tuple(own_files(path))
        self.digest = _digest(name, self._folder, self._paths)
        """Of its name, its file, and the modules that it imports from the same folder."""
        function = getattr(_load(path, self.digest, key, self._paths), name, None)
        if not callable(function):
            raise ConfigError(f"{key}: {name!r} of {file} is not a function.")
        self._function: Callable[[Any], Any] = function
        code = getattr(function, "__code__", None)
        self._place = f"{path.name}:{code.co_firstlineno}" if code is not None else text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._text, self._key)

    def call(self, *arguments: Any) -> Any:
        """The result of the function itself, with its own errors."""
        return self._function(*arguments)

    def __call__(self, record: Mapping[str, Any]) -> Any:
        """What it returns for a row, or a `RowProblem` with the place in its file at which it raised an exception."""
        try:
            return self._function(record)
        except (Exception, SystemExit) as error:
            reraise_device_error(error)
            return self.failure(f"raised {_named(error)}", _place(error, self._folder, self._paths))

    def failure(self, what: str, place: str | None = None) -> RowProblem:
        """The problem of a row for which it did something else than it should."""
        return RowProblem(reason=FAILED, message=f"{self.kind} {place or self._place} {what}")

    def dropped(self, returned: str) -> RowProblem:
        """The problem of a row that it drops."""
        return RowProblem(reason=self.kind, message=f"{self._text} returned {returned}")

    @property
    def kind(self) -> str:
        """`row_function` or `row_filter`."""
        return self._key.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSteps:
    """What a source does to its raw rows: the filter first, then the function."""

    row_filter: UserFunction | None = None
    row_function: UserFunction | None = None

    @classmethod
    def for_settings(cls, *, row_filter: tuple[str | None, str], row_function: tuple[str | None, str]) -> "RowSteps":
        """Load the functions of two settings, each given as its value and its key.

        Raises:
            ConfigError: See `UserFunction`.
        """
        loaded = [None if text is None else UserFunction(text, key) for text, key in (row_filter, row_function)]
        return cls(row_filter=loaded[0], row_function=loaded[1])

    @property
    def digest(self) -> dict[str, str | None]:
        """Everything in the code that decides what a row becomes."""
        steps = {"row_filter": self.row_filter, "row_function": self.row_function}
        return {name: None if step is None else step.digest for name, step in steps.items()}

    def __call__(self, row: RawRow, *, is_kept: bool = False) -> list[RawRow]:
        """The rows that a raw row becomes; one with a `problem` if that is none.

        Args:
            row: A row as read. Its record may be changed by the functions.
            is_kept: Whether the record is used again, so that the functions receive a copy.
        """
        if row.record is None or (self.row_filter is None and self.row_function is None):
            return [row]
        record = deepcopy(row.record) if is_kept else row.record
        if self.row_filter is not None:
            answer = self.row_filter(record)
            if not isinstance(answer, bool | np.bool_):
                is_problem = isinstance(answer, RowProblem)
                problem = answer if is_problem else _misfit(self.row_filter, answer, "True or False")
                return [replace(row, record=None, problem=problem)]
            if not answer:
                return [replace(row, record=None, problem=self.row_filter.dropped("False"))]
        if self.row_function is None:
            return [row]
        return _made(row, self.row_function, self.row_function(record))


NO_STEPS = RowSteps()


def _made(row: RawRow, function: UserFunction, result: Any) -> list[RawRow]:
    """The rows that the result of a function stands for."""
    if result is None or (isinstance(result, list) and not result):
        shown = "None" if result is None else "an empty list"
        return [replace(row, record=None, problem=function.dropped(shown))]
    if not isinstance(result, list):
        return [_made_row(row, function, result, 0)]
    return [_made_row(row, function, each, part) for part, each in enumerate(result, start=1)]


def _made_row(row: RawRow, function: UserFunction, record: Any, part: int) -> RawRow:
    """One row of a result.

    Args:
        part: Its place in a list, from 1; 0 for a result that is no list.
    """
    source = replace(row.source, part=part)
    if isinstance(record, RowProblem):
        return RawRow(source=source, problem=record)
    if not isinstance(record, dict):
        where = f" at place {part} of the list" if part else ""
        return RawRow(source=source, problem=_misfit(function, record, "a dict, a list of dicts or None", where))
    if not all(isinstance(name, str) for name in record):
        other = next(name for name in record if not isinstance(name, str))
        problem = function.failure(f"returned a row with a field that is no text: {one_line(repr(other), 80)}")
        return RawRow(source=source, problem=problem)
    checked = checked_record(record, num_brackets=MAX_NESTING + 1)
    if isinstance(checked, RowProblem):
        return RawRow(source=source, problem=checked)
    return RawRow(source=source, record=checked)


def _misfit(function: UserFunction, found: Any, allowed: str, where: str = "") -> RowProblem:
    return function.failure(f"returned {_described(found)}{where}; it must return {allowed}")


def _described(value: Any) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _named(error: BaseException) -> str:
    text = one_line(error, 200)
    name = type(error).__name__
    return name if text == name else f"{name}: {text}"


def _place(error: BaseException, folder: Path, paths: Sequence[Path]) -> str | None:
    """The innermost line of the user's own files in the traceback, as `my_rows.py:12`."""
    own = {str(path): path for path in paths}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{own[lines[-1].filename].relative_to(folder)}:{lines[-1].lineno}" if lines else None


def _digest(name: str, folder: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(name.encode())
    for path in paths:
        digest.update(f"\n{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def _load(file: Path, digest: str, key: str, paths: tuple[Path, ...]) -> ModuleType:
    """Run the file as a module of its own. Its folder is searched for imports: first while the file runs, then last,
    for imports in functions.

    Raises:
        ConfigError: In one line.
    """
    folder = file.parent
    own = {path.relative_to(folder).parts[0].removesuffix(".py"): path for path in paths if path != file}
    _forget_older(folder, own, key)
    name = f"sft_row_functions_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # the name ends with `.py`
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reraise_device_error(error)
        place = _place(error, folder, paths) or file.name
        raise ConfigError(f"{key}: {place}: {_named(error)}. The file cannot be run.") from error
    finally:
        sys.path.remove(str(folder))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return module


def _forget_older(folder: Path, own: Mapping[str, Path], key: str) -> None:
    """Have modules of the folder read again that were loaded for an earlier version of the file.

    Raises:
        ConfigError: If one of them has the name of a module from elsewhere, which would be taken instead.
    """
    for name in own:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is not None and folder not in Path(loaded).resolve().parents:
            raise ConfigError(
                f"{key}: imports {name} from {folder}, but a module of this name is already loaded from {loaded}. "
                "Rename the file."
            )
        if name not in _modules_before(folder):
            for each in [each for each in sys.modules if each.partition(".")[0] == name]:
                del sys.modules[each]


@cache
def _modules_before(folder: Path) -> frozenset[str]:
    """Names of modules that were loaded before the first function of a folder, and so for other reasons."""
    return frozenset(sys.modules)
