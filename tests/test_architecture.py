"""The floors of the house: a place imports from lower floors only, and floor 0 starts without torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

FLOORS = {
    "sft_main": 5,
    "chat": 5,
    "compare_runs": 5,
    "export_model": 5,
    "exporting": 4,
    "talking": 4,
    "run_results": 4,
    "sample_answers": 4,
    "training_run": 4,
    "saved_models": 3,
    "trainer_utils": 3,
    "data_handler": 3,
    "preflight": 3,
    "starting": 3,
    "trackers": 3,
    "batch_sizes": 3,
    "run_facts": 3,
    "run_report": 3,
    "preparation": 2,
    "checkpointed_trainer": 2,
    "training_arguments": 2,
    "running_means": 2,
    "training_callbacks": 2,
    "tracker_guard": 1,
    "hub_pushes": 1,
    "training_batches": 2,
    "training_progress": 2,
    "training_display": 3,
    "training_step": 2,
    "sharded_step": 2,
    "bad_steps": 1,
    "evaluation_step": 2,
    "model_manager": 2,
    "memory_probe": 2,
    "row_layout": 2,
    "prepared_data": 1,
    "prompting": 1,
    "sources": 1,
    "batching": 1,
    "modeling": 1,
    "run_state": 1,
    "reporting": 1,
    "command_line": 0,
    "option_parser": 0,
    "config_manager": 0,
    "configuration": 0,
    "distributed_utils": 0,
    "device_memory": 0,
    "heap": 0,
    "hub_errors": 0,
    "first_signals": 0,
    "process_launcher": 0,
    "machine_types": 0,
    "terminal_modes": 0,
    "sft_types": 0,
    "sft_errors": 0,
}
ENVIRONMENT_ROOMS = {"distributed_utils", "first_signals", "training_arguments", "terminal_modes"}
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "numpy", "pyarrow", "matplotlib"}


def our_files():
    for path in sorted(REPOSITORY.rglob("*.py")):
        place = path.relative_to(REPOSITORY)
        if place.parts[0].removesuffix(".py") in FLOORS:
            yield path, place.parts[0].removesuffix(".py")


def imports_of(tree: ast.AST, *, at_module_level: bool = False):
    """Top-level names imported anywhere in a module, or by its own statements alone (TYPE_CHECKING blocks aside)."""
    nodes = ast.walk(tree) if not at_module_level else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_every_module_has_a_floor():
    known = {path for path, _ in our_files()}
    others = {"tests", "examples", "benchmarks", "docs"}
    strays = [
        path for path in REPOSITORY.rglob("*.py")
        if path not in known and path.relative_to(REPOSITORY).parts[0] not in others
        and not path.relative_to(REPOSITORY).parts[0].startswith(".")
    ]  # fmt: skip
    assert strays == []


@pytest.mark.parametrize(
    ("path", "room"), [pytest.param(p, r, id=str(p.relative_to(REPOSITORY))) for p, r in our_files()]
)
def test_imports_point_down(path, room):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports_of(tree):
        if name in FLOORS and name != room:
            assert FLOORS[name] < FLOORS[room] or FLOORS[name] == FLOORS[room] == 0, f"{room} imports {name}"


def test_floor_0_imports_no_heavy_library_at_module_level():
    for path, room in our_files():
        if FLOORS[room] in (0, 5):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not HEAVY & set(imports_of(tree, at_module_level=True)), path


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
    command = [sys.executable, "-c", code, "--config_file", "sample_config.yaml", "--dry_run",
               "--output_dir", str(tmp_path / "out"), "--data_cache_dir", str(tmp_path / "cache")]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("optimizer", "is_compiled"), [("adamw_torch_fused", False), ("adamw_8bit", True), ("paged_lion_32bit", True)]
)
def test_libraries_are_imported_without_a_compiler_unless_bitsandbytes_is_used(optimizer, is_compiled):
    code = (
        "import gc, os, sys, distributed_utils as d; d.pause_garbage_collection(); "
        f"d.import_libraries(is_rehearsal=False, optimizer={optimizer!r}, quantization=None); "
        "assert gc.isenabled() and 'transformers.trainer' in sys.modules; "
        "assert os.environ.get('TORCHDYNAMO_DISABLE') == '0', 'what was set before comes back'; "
        "print('torch._inductor.compile_fx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    has_bitsandbytes = importlib.util.find_spec("peft") and importlib.util.find_spec("bitsandbytes")
    assert done.stdout.split() == [str(bool(is_compiled and has_bitsandbytes))]


def test_the_environment_is_touched_only_where_it_may_be():
    for path, room in our_files():
        text = path.read_text(encoding="utf-8")
        if "os.environ" in text or "os.getenv" in text:
            assert room in ENVIRONMENT_ROOMS, path


def test_no_code_asks_for_a_model_by_name():
    families = ("llama", "gpt2", "qwen", "mistral", "gemma", "phi3")
    for path, _ in our_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                constants = [
                    n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                ]
                assert not any(family in constant.lower() for constant in constants for family in families), path


def test_modules_and_functions_stay_readable():
    for path, _ in our_files():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, f"{path} grows a second concern"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                limit = 80 if node.name == "run" else 60
                assert node.end_lineno - node.lineno < limit, f"{path}: {node.name}"
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}: bare except"


def test_progress_is_logged_not_printed():
    for path, room in our_files():
        if room == "sft_main":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not is_print, path
