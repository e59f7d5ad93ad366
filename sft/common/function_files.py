"""Functions in Python files of the user, `my_rows.py:to_messages`: what their code says, without running it."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sft.common.did_you_mean import did_you_mean
from sft.common.errors import one_line

_NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What `ast.parse` raises."""


def split_function(text: str) -> tuple[str, str]:
    """The file and the name in `my_rows.py:to_messages`; either may be empty if the text is none."""
    file, _, name = text.rpartition(":")
    return file, name


def function_problem(text: str) -> str | None:
    """Why the text does not name a function of a Python file, in a sentence; None if nothing is wrong.

    A name that the file only makes while it runs is not known here.
    """
    file, name = split_function(text)
    if not file.endswith(".py") or not name.isidentifier():
        return f"{text!r} is not of the form file.py:function."
    if not os.path.isfile(file):
        folder = os.path.dirname(file) or "."
        hint = did_you_mean(os.path.basename(file), os.listdir(folder)) if os.access(folder, os.R_OK) else ""
        return f"no such file: {file!r} (current directory: {os.getcwd()}).{hint}"
    try:
        tree = ast.parse(Path(file).read_bytes())
    except SyntaxError as error:
        return f"{file}:{error.lineno or 1}: {error.msg}."
    except (OSError, *_NOT_PYTHON) as error:
        return f"{file}: cannot be read as Python: {one_line(error)}."
    names = _top_level_names(tree.body)
    if name in names or "*" in names:
        return None
    return f"{file} has no function {name!r}.{did_you_mean(name, names)}"


def own_files(file: str | Path) -> list[Path]:
    """The file and the modules that it imports from its own folder, also through others of them. Sorted.

    Imports are read from the code, wherever they stand in it; a name of the standard library is never one of them.
    """
    start = Path(file).resolve()
    found, open_files = {start}, [start]
    while open_files:
        for path in map(Path, _own_imports(open_files.pop(), start.parent)):
            if path not in found:
                found.add(path)
                open_files.append(path)
    return sorted(found)


def _own_imports(file: Path, folder: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except _NOT_PYTHON:
        return  # if it is imported, running the function's file says so
    for name in _imported_names(tree):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if (folder / f"{top}.py").is_file():
            yield folder / f"{top}.py"
        elif (folder / top).is_dir():
            yield from (path for path in sorted((folder / top).rglob("*.py")) if path.is_file())


def _imported_names(tree: ast.Module) -> Iterator[str]:
    """Absolute imports. Relative ones stay within a package, which is taken as a whole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def _top_level_names(body: list[ast.stmt]) -> set[str]:
    """Names that statements bind; `*` if they import all names of a module."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
            continue
        # Assignments, and those within `if`, `try` and `with`.
        found = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
        names.update(each.id for each in found if isinstance(each.ctx, ast.Store))
        handlers = [each.body for each in getattr(node, "handlers", ())]
        for inner in (*(getattr(node, name, []) for name in ("body", "orelse", "finalbody")), *handlers):
            names |= _top_level_names(inner)
    return names
