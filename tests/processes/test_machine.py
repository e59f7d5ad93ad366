"""What a machine certainly lacks, without torch: GPUs, bfloat16, compilers."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from sft.processes import machine
from tests.support import messages


@pytest.fixture
def torch_build(monkeypatch, tmp_path):
    """Makes torch look like a build with this `version.py`, and clears the variables that hide GPUs."""
    for name in machine._VISIBLE:
        monkeypatch.delenv(name, raising=False)

    def build(text):
        (tmp_path / "version.py").write_text(text)
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: spec)

    return build


@pytest.fixture
def devices(monkeypatch):
    """Makes /dev contain these files."""

    def have(*names):
        class Dev:
            def __init__(self, *parts):
                assert parts == ("/dev",)

            def glob(self, pattern):
                return [
                    SimpleNamespace(name=name) for name in names if machine.re.match(pattern.replace("*", ".*"), name)
                ]

        monkeypatch.setattr(machine, "Path", lambda *parts: Dev(*parts) if parts == ("/dev",) else PATH(*parts))
        monkeypatch.setattr(sys, "platform", "linux")

    return have


PATH = machine.Path
CUDA = "__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
ROCM = "cuda = None\nhip = '6.4'\n"
CPU = "cuda: Optional[str] = None\nhip: Optional[str] = None\n"


@pytest.mark.parametrize(
    ("text", "files", "visible", "most"),
    [
        (CPU, ("nvidia0", "nvidiactl"), None, 0),
        (CUDA, (), None, 0),
        (CUDA, ("nvme0",), None, 0),
        (CUDA, ("nvidia0", "nvidia1", "nvidiactl"), None, 2),
        (CUDA, ("nvidia0", "nvidia1", "nvidiactl"), "0", 1),
        (CUDA, ("nvidia0", "nvidia1"), "", 0),
        (CUDA, ("nvidia0", "nvidia1"), "-1", 0),
        (CUDA, ("nvidia0", "nvidia1"), "0,-1,1", 1),
        (CUDA, ("dxg",), None, None),
        (ROCM, ("kfd",), None, None),
        (ROCM, ("kfd",), "0,1,2", 3),
        ("", ("nvidiactl",), None, None),
    ],
)
def test_most_gpus(torch_build, devices, monkeypatch, text, files, visible, most):
    torch_build(text)
    devices(*files)
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.find_most_gpus() == most


def test_a_driver_without_device_files_may_have_gpus(torch_build, devices, monkeypatch):
    torch_build(CUDA)
    devices()
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: name)
    assert machine.find_most_gpus() is None


@pytest.mark.parametrize(
    ("capabilities", "lacks"), [([7], True), ([7, 6], True), ([7, 9], False), ([8], False), ([], False)]
)
def test_gpus_without_bfloat16_by_their_compute_capability(monkeypatch, capabilities, lacks):
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(capabilities),
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetCudaComputeCapability=lambda number: (capabilities[number], 0),
    )
    monkeypatch.setattr(machine, "is_installed", lambda name: True)
    monkeypatch.setattr(machine, "import_module", lambda name: library)
    assert machine._gpus_lack_bfloat16() is lacks


def test_bfloat16_is_not_known_without_the_library_or_its_driver(monkeypatch):
    def fail():
        raise OSError("no driver")

    monkeypatch.setattr(machine, "is_installed", lambda name: True)
    monkeypatch.setattr(machine, "import_module", lambda name: SimpleNamespace(nvmlInit=fail))
    assert machine._gpus_lack_bfloat16() is False
    monkeypatch.setattr(machine, "is_installed", lambda name: False)
    assert machine._gpus_lack_bfloat16() is False


@pytest.mark.parametrize(
    ("on_gpu", "found", "variables", "missing"),
    [
        (False, {"g++"}, {}, None),
        (False, {"c++", "clang++", "gcc"}, {}, "C++ compiler"),
        (False, {"c++"}, {"CXX": "c++"}, None),
        (False, {"g++"}, {"CXX": "icpx"}, "C++ compiler"),
        (True, {"gcc"}, {}, None),
        (True, {"clang"}, {}, None),
        (True, {"g++"}, {}, "C compiler"),
        (True, {"gcc"}, {"CC": "icx"}, "C compiler"),
    ],
)
def test_what_torch_compile_lacks(monkeypatch, tmp_path, on_gpu, found, variables, missing):
    for name in ("CC", "CXX", "TORCH_INDUCTOR_INSTALL_GXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine, "is_installed", lambda name: True)
    monkeypatch.setattr(machine.shutil, "which", lambda name: name if name in found else None)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    answer = machine._missing_to_compile(on_gpu=on_gpu)
    assert answer is None if missing is None else missing in answer
    (tmp_path / "Python.h").unlink()
    if missing is None:
        assert messages.PYTHON_HEADERS in machine._missing_to_compile(on_gpu=on_gpu)
    monkeypatch.setattr(machine, "is_installed", lambda name: False)
    if on_gpu:
        assert "triton" in machine._missing_to_compile(on_gpu=True)


def test_the_facts_of_this_machine_agree_with_torch():
    import torch

    facts = machine.look_at_machine(asks_bfloat16=True, asks_compiler=True)
    assert facts.most_gpus is None or facts.most_gpus >= torch.cuda.device_count()
    assert set(facts.missing_to_compile) == {False, True}
    assert machine.look_at_machine(asks_bfloat16=False, asks_compiler=False).missing_to_compile == {}
