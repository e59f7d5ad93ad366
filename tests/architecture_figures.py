"""Figures of the architecture, counted from the code: `python tests/architecture_figures.py`.

Prints rooms, arrows and floors at the root and inside `sft/`, and every place over a limit. `LIMITS` is what
`test_architecture.py` holds.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = {
    "common": 0,
    "configuration": 1,
    "prompting": 1,
    "checkpointing": 1,
    "processes": 2,
    "batching": 2,
    "modeling": 2,
    "data": 3,
    "reporting": 3,
    "training": 4,
    "commands": 4,
    "check_gpu": 5,
}
"""Packages of `sft/`. A package imports from lower floors only."""
COMMANDS = ("sft_main", "chat", "export_model", "compare_runs")
DOORS = {
    "config_manager": "configuration",
    "data_handler": "data",
    "model_manager": "modeling",
    "trainer_utils": "training",
    "distributed_utils": "processes",
}
"""Modules at the root, with the package that each is the top layer of: it imports that one and lower floors."""
NOT_COUNTED = {"tests", "docs", "examples"}
LIMITS = {
    "rooms at the root": 14,
    "arrows at the root": 30,
    "rooms in sft": 14,
    "floors in sft": 6,
    "arrows in sft": 40,
    "lines of a module": 350,
    "lines of a function": 60,
    "parameters of a function": 8,
    "median lines of a function": 15,
    "function-level imports": 35,
}


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code: `file:line`, and its text."""

    file: Path
    line: int
    what: str = ""

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPOSITORY)}:{self.line} {self.what}".rstrip()


@dataclass(slots=True)
class Figures:
    """What was counted."""

    numbers: dict[str, float] = field(default_factory=dict)
    root_arrows: set[tuple[str, str]] = field(default_factory=set)
    package_arrows: dict[tuple[str, str], list[Place]] = field(default_factory=dict)
    long_modules: list[Place] = field(default_factory=list)
    long_functions: list[Place] = field(default_factory=list)
    wide_functions: list[Place] = field(default_factory=list)
    inner_imports: list[Place] = field(default_factory=list)
    unexplained: list[Place] = field(default_factory=list)
    """Function-level imports and `# fmt: skip` without a reason beside them."""


def code_files() -> list[Path]:
    """The Python files of the program: the root, `sft/` and `benchmarks/`."""
    found = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "sft").rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def room_of(path: Path) -> str:
    """The room at the root that a file belongs to: a module there, or a folder."""
    return path.relative_to(REPOSITORY).parts[0].removesuffix(".py")


def package_of(path: Path) -> str | None:
    """The package, or the single module, of `sft/` that a file belongs to; None outside of it."""
    parts = path.relative_to(REPOSITORY).parts
    if parts[0] != "sft" or parts[1:] == ("__init__.py",):
        return None
    return parts[1].removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that are imported anywhere in a module, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def gather() -> Figures:
    """Counts everything."""
    figures = Figures()
    files = code_files()
    roots = {room_of(path) for path in files}
    lengths: list[int] = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        for name, line in imported_modules(tree):
            first, *rest = name.split(".")
            if first in roots and first != room_of(path):
                figures.root_arrows.add((room_of(path), first))
            own = package_of(path)
            if first == "sft" and rest and own is not None and rest[0] in FLOORS and rest[0] != own:
                figures.package_arrows.setdefault((own, rest[0]), []).append(Place(path, line, name))
        if len(lines) > LIMITS["lines of a module"]:
            figures.long_modules.append(Place(path, len(lines), "lines"))
        _look_at_functions(figures, path, tree, lengths)
        _look_for_reasons(figures, path, tree, lines)
    lengths.sort()
    packages = {package_of(path) for path in files} - {None}
    figures.numbers = {
        "rooms at the root": len(roots),
        "arrows at the root": len(figures.root_arrows),
        "rooms in sft": len(packages),
        "floors in sft": len(set(FLOORS.values())),
        "arrows in sft": len(figures.package_arrows),
        "median lines of a function": lengths[len(lengths) // 2],
        "lines of a function": lengths[-1],
        "function-level imports": len(figures.inner_imports),
        "lines in all": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
    }
    return figures


def _look_at_functions(figures: Figures, path: Path, tree: ast.AST, lengths: list[int]) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = node.end_lineno - node.lineno + 1
        lengths.append(length)
        if length > LIMITS["lines of a function"]:
            figures.long_functions.append(Place(path, node.lineno, f"{node.name}: {length} lines"))
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([each for each in arguments if each.arg not in ("self", "cls")])
        if count > LIMITS["parameters of a function"]:
            figures.wide_functions.append(Place(path, node.lineno, f"{node.name}: {count} parameters"))


def _look_for_reasons(figures: Figures, path: Path, tree: ast.AST, lines: list[str]) -> None:
    for number, line in enumerate(lines, start=1):
        if line.rstrip().endswith("# fmt: skip") or line.strip() in ("# fmt: off", "# fmt: on"):
            figures.unexplained.append(Place(path, number, "# fmt: skip without a reason"))
    if path.is_relative_to(REPOSITORY / "benchmarks"):
        return
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        block_end = -1
        for node in function.body if not _has_inner_function(function) else ast.walk(function):
            for each in ast.walk(node) if not isinstance(node, ast.FunctionDef) else ():
                if isinstance(each, ast.Import | ast.ImportFrom):
                    place = Place(path, each.lineno, ast.unparse(each))
                    if place in figures.inner_imports:
                        continue
                    figures.inner_imports.append(place)
                    is_explained = "#" in lines[each.lineno - 1] or lines[each.lineno - 2].strip().startswith("#")
                    if not is_explained and each.lineno != block_end + 1:
                        figures.unexplained.append(place)
                    block_end = each.end_lineno


def _has_inner_function(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.FunctionDef) for node in ast.walk(function) if node is not function)


def upward(figures: Figures) -> list[Place]:
    """Imports that point up, or to another package of the same floor."""
    return [
        place
        for (own, other), places in figures.package_arrows.items()
        if FLOORS.get(own, -1) <= FLOORS[other]
        for place in places
    ]


def main() -> int:
    figures = gather()
    for name, number in figures.numbers.items():
        limit = LIMITS.get(name)
        print(f"{name:28}{number:8g}" + (f"   (at most {limit})" if limit else ""))
    for title, places in (
        ("Imports that point up", upward(figures)),
        ("Modules too long", figures.long_modules),
        ("Functions too long", figures.long_functions),
        ("Functions with too many parameters", figures.wide_functions),
        ("Without a reason", figures.unexplained),
    ):
        print(f"\n{title}: {len(places)}")
        for place in places:
            print(f"  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
