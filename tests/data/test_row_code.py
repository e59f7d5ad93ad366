"""Cached rows become stale when the code that decides them changes: `ROW_CODE` names all of that code."""

import ast
from pathlib import Path

from sft.data.preparation import ROW_CODE
from tests.support.paths import REPOSITORY

SFT = REPOSITORY / "sft"
NOT_DECIDING = {
    "common/chat_arguments.py": "names, and the text of a system prompt, which the key contains",
    "common/device_errors.py": "errors of the device, which are raised again",
    "common/did_you_mean.py": "completes error messages",
    "common/errors.py": "exceptions",
    "common/files.py": "writes files to disk",
    "configuration/evaluation_sets.py": "names of evaluation sets, and the keys that give them",
    "common/function_files.py": "which files belong to the user's functions, whose digest the key contains",
    "common/hub_errors.py": "words of error messages",
    "common/hub_names.py": "words of error messages",
    "common/optional_packages.py": "words of error messages",
    "common/outside_files.py": "errors of files as messages",
    "common/secrets.py": "masks secrets in messages",
    "common/shapes.py": "whether records of a run are complete",
    "common/standard_streams.py": "where the output of a command goes",
    "common/shown_rows.py": "previews of rows, and prompts to answer",
    "common/text.py": "widths of lines on a terminal",
    "common/threads.py": "whether checkpoints are written",
    "configuration/model_sections.py": "settings of the model",
    "configuration/passed_through.py": "names of TrainingArguments",
    "configuration/rules.py": "what values the configuration accepts",
    "configuration/schema.py": "puts the sections of settings together",
    "configuration/training_sections.py": "settings of the training",
    "processes/environment.py": "number of cores, cache folder, threads of the tokenizer",
    "processes/live_line.py": "draws the progress",
    "processes/logs.py": "lines of the log",
    "processes/output.py": "standard output and error",
    "processes/terminal.py": "whether the progress is drawn",
}
"""Modules that the preparation of rows reaches, and why they do not decide what a row becomes."""


def is_row_code(path: Path) -> bool:
    return any(path == SFT / name or SFT / name in path.parents for name in ROW_CODE)


def imported_files(path: Path) -> set[Path]:
    """The modules of `sft/` that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            base = REPOSITORY.joinpath(*name.split("."))
            if name.startswith("sft."):
                found |= {file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()}
    return found


def reached_files() -> set[Path]:
    """All modules reached from those that `ROW_CODE` names."""
    pending = [path for path in SFT.rglob("*.py") if is_row_code(path)]
    reached = set(pending)
    while pending:
        new = imported_files(pending.pop()) - reached
        reached |= new
        pending += new
    return reached


def test_row_code_lists_existing_modules():
    for name in (*ROW_CODE, *NOT_DECIDING):
        assert (SFT / name).exists(), name


def test_row_code_contains_every_reached_module_that_decides_what_a_row_becomes():
    others = {
        path.relative_to(SFT).as_posix()
        for path in reached_files()
        if not is_row_code(path) and path.name != "__init__.py"
    }
    assert sorted(others - set(NOT_DECIDING)) == []


def test_row_code_is_reached_from_the_preparer_of_rows():
    """The imports are really followed: from rows.py to records, settings, prompts and templates."""
    found, pending = set(), [SFT / "data" / "rows.py"]
    while pending:
        new = imported_files(pending.pop()) - found
        found |= new
        pending += new
    names = {path.relative_to(SFT).as_posix() for path in found}
    assert names >= {
        "prompting/turns.py",
        "data/sources/streams.py",
        "common/data_records.py",
        "configuration/data_sections.py",
    }
