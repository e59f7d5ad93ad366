"""Fixtures of the tests on fake devices, which have the mark `fake_gpu` and are skipped where no fake can be built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.gpu_path.fake_cuda.build import build, missing_to_build
from tests.gpu_path.processes import NONE, FakeCuda, FakeRun


@pytest.hookimpl(tryfirst=True)  # other hooks look at the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.fake_gpu)


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCuda]:
    """Starts processes with fake devices. The library is built once, for all workers of the session."""
    missing = missing_to_build()
    if missing is not None:
        pytest.skip(missing)
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if folder.name.startswith("popen-") else folder) / "fake_cuda"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        library = build(folder)
    started = FakeCuda(library, folder)
    yield started
    started.stop()


@pytest.fixture
def call_fake(devices: FakeCuda, tmp_path: Path) -> Callable[..., Any]:
    """The result of a function of `programs.py` in a new process: `call_fake(name, device=..., argument=value)`."""
    return partial(devices.call, tmp_path)


@pytest.fixture
def run_fake(
    devices: FakeCuda, model_folder: Callable[[str], str], question_file: str, tmp_path: Path
) -> Callable[..., FakeRun]:
    """Runs the command on fake devices with small settings: `run_fake(processes=1, device=..., fault=..., key=value)`.

    A value of None omits the setting.
    """

    def run(
        *,
        processes: int = 1,
        device: Mapping[str, str] = NONE,
        fault: Callable[[], Any] | None = None,
        **settings: Any,
    ) -> FakeRun:
        defaults = {
            "model_name_or_path": model_folder("llama"),
            "train_file": question_file,
            "output_dir": str(tmp_path / "out"),
            "max_seq_length": 64,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "report_to": "none",
            "sample_prompts": [],
            "dataloader_num_workers": 0,
            "torch_compile": False,  # the trial of `auto` would be in every record
        }
        return devices.run_sft(tmp_path, defaults | settings, processes=processes, device=device, fault=fault)

    return run
