"""Fixtures of all tests: small models, data files, the command in this process, counts of injected faults."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_result import Run
from tests.support.fault_counts import FAULT_KINDS, FAULTS, Tally
from tests.support.in_process import run_command
from tests.support.paths import REPOSITORY
from tests.support.small_models import QUESTIONS, build_model, build_tokenizer

# Before any library is imported. Several processes run tests at the same time: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may contact the Hugging Face Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Prepared rows are kept between runs: a test must find none but its own session's.
_CACHE = tempfile.TemporaryDirectory(prefix="sft-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
MAX_WORKERS = 8
"""Each takes about 1 GiB of memory."""
SLOW_TEST_SECONDS = 1800
# Scripts in tests/support are started by path.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run whole folders of tests in parallel, one worker per core; single files stay in this process (`-n` decides)."""
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput") or config.option.collectonly:
        return
    if config.option.numprocesses is None and any(Path(argument).is_dir() for argument in config.args):
        config.option.numprocesses = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    if config.option.numprocesses and config.option.dist == "no":
        config.option.dist = "loadscope"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests may take longer than `timeout` in pyproject.toml."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "gpu", "fake_gpu", "slurm")):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_SECONDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.scheduling import TestsWithSharedFixturesTogether  # xdist may be switched off

    return TestsWithSharedFixturesTogether(config, log) if config.option.dist == "loadscope" else None


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Workers send reports as UTF-8: surrogates in captured output (odd file names) are escaped."""
    return _without_surrogates((yield))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {name: _without_surrogates(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_surrogates(item) for item in value)
    return value


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A folder with a model and tokenizer of an architecture, made once. GPT-2's has no chat template and no pad."""
    made: dict[str, str] = {}

    def folder(architecture: str) -> str:
        if architecture not in made:
            path = tmp_path_factory.mktemp(architecture)
            build_model(architecture).save_pretrained(path)
            base_like = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
            tokenizer = build_tokenizer(None, **base_like) if architecture == "gpt2" else build_tokenizer()
            tokenizer.save_pretrained(path)
            made[architecture] = str(path)
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 question/answer rows of different lengths."""
    path = tmp_path_factory.mktemp("questions") / "train.jsonl"
    rows = [{"question": f"{question} ({i})", "answer": answer} for i in range(6) for question, answer in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run_sft(
    model_folder: Callable[[str], str], question_file: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> Iterator[Callable[..., Any]]:
    """Runs the command in this process with small settings; returns a `Run`.

    `run_sft(key=value, ...)` changes settings; a value of None omits the setting. `draws_curves` is that of
    `run_command`.
    """

    def run(*extra: str, draws_curves: bool = False, **settings: Any) -> Run:
        defaults = {
            "model_name_or_path": model_folder("llama"),
            "train_file": question_file,
            "output_dir": str(tmp_path / "out"),
            "max_seq_length": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "report_to": "none",
            "sample_max_new_tokens": 4,
            "bf16": False,
        }
        arguments = [f"--{key}={value}" for key, value in (defaults | settings).items() if value is not None]
        status = run_command([*arguments, *extra], draws_curves=draws_curves)
        captured = capfd.readouterr()
        return Run(status, captured.out, captured.err, Path(settings.get("output_dir", defaults["output_dir"])))

    yield run
    logging.getLogger("sft").handlers.clear()
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it keeps the folder of its first run


@pytest.fixture(autouse=True)
def _restore_environment() -> Iterator[None]:
    """A run in this process sets variables for the trackers; the next test must not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tally() -> Tally:
    return Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FAULTS:
        counts = ", ".join(f"{FAULTS[word]} {word}" for word in FAULT_KINDS)
        lost = FAULTS["faults injected"] - FAULTS["runs equal to the bit"]
        terminalreporter.write_line(f"Faults: {counts}; lost or changed: {lost}.")
