"""Tests of the architecture: floors, doors, imports without torch, and limits (see `architecture_figures.py`)."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys

import pytest

from tests import architecture_figures as figures
from tests.support.paths import REPOSITORY

LIGHT = (
    "sft/common",
    "sft/configuration",
    "sft/checkpointing",
    *(
        f"sft/processes/{name}.py"
        for name in (
            "control_groups",
            "environment",
            "exit_records",
            "first_signals",
            "heap",
            "libraries",
            "logs",
            "machine",
            "signals",
            "terminal",
            "watchdog",
        )
    ),
    "config_manager.py",
    "sft_main.py",
    "chat.py",
    "export_model.py",
    "compare_runs.py",
)
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "numpy", "pyarrow", "matplotlib"}
ENVIRONMENT = {"sft/processes", "sft_main.py", "chat.py", "export_model.py", "compare_runs.py"}
STANDARD_LIBRARY = set(sys.stdlib_module_names)
CALLED_BY_LIBRARIES = {"attend_within_documents"}
"""Functions whose parameters transformers or torch decide."""


@pytest.fixture(scope="module")
def counted():
    return figures.gather()


def relative(path):
    return path.relative_to(REPOSITORY).as_posix()


def test_only_known_modules_are_at_the_root():
    allowed = {*figures.COMMANDS, *figures.DOORS}
    assert {path.stem for path in REPOSITORY.glob("*.py")} <= allowed


def test_every_package_of_sft_has_a_floor():
    found = {figures.package_of(path) for path in figures.code_files()} - {None}
    assert found == set(figures.FLOORS)


def test_imports_inside_sft_point_down(counted):
    assert figures.upward(counted) == []


def test_nothing_in_sft_imports_a_module_at_the_root(counted):
    assert [arrow for arrow in counted.root_arrows if arrow[0] == "sft"] == []


def test_a_door_imports_its_own_package_and_lower_floors():
    for path in REPOSITORY.glob("*.py"):
        own = figures.DOORS.get(path.stem)
        if own is None:
            continue
        for name, _ in figures.imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            first, *rest = name.split(".")
            if first == "sft" and rest:
                package = rest[0]
                assert package == own or figures.FLOORS[package] < figures.FLOORS[own], f"{path.name} imports {name}"
            assert first not in figures.DOORS, f"{path.name} imports {name}"


def test_common_uses_the_standard_library_alone_and_has_no_circles():
    arrows = {}
    for path in (REPOSITORY / "sft" / "common").glob("*.py"):
        names = {name for name, _ in figures.imported_modules(ast.parse(path.read_text(encoding="utf-8")))}
        arrows[f"sft.common.{path.stem}"] = {name for name in names if name.startswith("sft.common.")}
    for name, others in arrows.items():
        reached, pending = set(), list(others)
        while pending:
            module = next((known for known in arrows if pending[-1].startswith(known)), None)
            pending.pop()
            if module is not None and module not in reached:
                reached.add(module)
                pending += arrows[module]
        assert name not in reached, name


def test_light_modules_import_no_heavy_library_at_module_level():
    for path in figures.code_files():
        if relative(path).startswith(LIGHT):
            names = {
                name.split(".")[0]
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name, _ in figures.imported_modules(node)
            }
            assert not HEAVY & names, path


def test_figures_are_within_their_limits(counted):
    for name, limit in figures.LIMITS.items():
        if name in counted.numbers:
            assert counted.numbers[name] <= limit, f"{name}: {counted.numbers[name]}, at most {limit}"


def test_modules_and_functions_stay_readable(counted):
    wide = [place for place in counted.wide_functions if place.what.partition(":")[0] not in CALLED_BY_LIBRARIES]
    assert list(map(str, counted.long_modules)) == []
    assert list(map(str, counted.long_functions)) == []
    assert list(map(str, wide)) == []


def test_function_level_imports_and_unformatted_code_give_a_reason(counted):
    assert list(map(str, counted.unexplained)) == []


def test_packages_document_their_purpose():
    for path in (REPOSITORY / "sft").glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_a_configuration_error_imports_neither_torch_nor_transformers():
    code = (
        "import sys, sft_main; status = sft_main.main(['--learning_rat', '1']); "
        "assert status == 2 and not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_imports_only_what_it_needs(tmp_path):
    code = (
        "import sys, sft_main; status = sft_main.main(sys.argv[1:]); assert status == 0, status; "
        "spared = ('transformers.trainer', 'datasets', 'matplotlib', 'wandb', 'tensorboard', "
        "'torch.utils.tensorboard', 'torch._inductor.compile_fx', 'torch._inductor.lowering', 'networkx'); "
        "found = [name for name in spared if name in sys.modules]; assert not found, found"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "--config_file",
        "sample_config.yaml",
        "--dry_run",
        "--output_dir",
        str(tmp_path / "out"),
        "--data_cache_dir",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("optimizer", "is_compiled"), [("adamw_torch_fused", False), ("adamw_8bit", True), ("paged_lion_32bit", True)]
)
def test_libraries_are_imported_without_a_compiler_unless_bitsandbytes_is_used(optimizer, is_compiled):
    code = (
        "import gc, os, sys; from sft.processes import libraries as d; d.pause_garbage_collection(); "
        f"d.import_libraries(is_dry_run=False, optimizer={optimizer!r}, is_quantized=False); "
        "assert gc.isenabled() and 'transformers.trainer' in sys.modules; "
        "assert os.environ.get('TORCHDYNAMO_DISABLE') == '0', 'what was set before comes back'; "
        "print('torch._inductor.compile_fx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "0"},
    )
    assert done.returncode == 0, done.stderr
    has_bitsandbytes = importlib.util.find_spec("peft") and importlib.util.find_spec("bitsandbytes")
    assert done.stdout.split() == [str(bool(is_compiled and has_bitsandbytes))]


def test_environment_variables_are_used_in_allowed_modules_only():
    for path in figures.code_files():
        text = path.read_text(encoding="utf-8")
        if "os.environ" in text or "os.getenv" in text:
            assert any(relative(path).startswith(allowed) for allowed in ENVIRONMENT) or room_is_benchmarks(path), path


def room_is_benchmarks(path):
    return figures.room_of(path) == "benchmarks"


def test_no_code_depends_on_a_models_name():
    families = ("llama", "gpt2", "qwen", "mistral", "gemma", "phi3")
    for path in figures.code_files():
        if room_is_benchmarks(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                constants = [
                    n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                ]
                assert not any(family in constant.lower() for constant in constants for family in families), path


def test_no_bare_except_and_no_way_around_safe_output():
    for path in figures.code_files():
        if room_is_benchmarks(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}: bare except"
            if isinstance(node, ast.Call) and path.stem not in ("output", "standard_streams"):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), path
