"""Builds the fake CUDA library for the installed torch: the C files beside this one, and stubs for all other symbols.

Which symbols torch needs differs between its versions. They are read from its libraries with `nm`; whatever the C files
do not define becomes a stub: a cuBLAS call that does nothing, or a call that prints its name and reports that it is not
supported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SOURCES = Path(__file__).parent
_LIBRARIES = (
    "libc10_cuda",
    "libtorch_cuda",
    "libtorch_python",
    "libtorch_cpu",
    "libtorch_cuda_linalg",
    "libcaffe2_nvrtc",
)
_DO_NOTHING = ("cuTensorMapEncodeTiled",)
"""Stubs that report success."""
_NEEDED = re.compile(r" U ((?:_*cuda|cu|cublas|cublasLt)[A-Z]\w*)")
_ASKED_FOR = re.compile(rb"(?<=\0)cu[A-Z]\w+(?=\0)")
"""The driver's functions that torch's allocator asks for by name."""
_KEPT = re.compile(r"__cuda(Push|Pop|Register|Unregister|InitModule)|cudaGetError(Name|String)|cuFile")
"""The real runtime's, which need no device; and of a library that torch loads when it is used."""
NAME = "libcuda.so.1"
"""The driver's name: a process that has it loaded, and Triton's linker, find the fake under it."""


def missing_to_build() -> str | None:
    """Why the library cannot be built here; None if it can."""
    if importlib.util.find_spec("torch") is None or not _torch_library("libtorch_cuda").is_file():
        return "needs a CUDA build of torch"
    for program in ("gcc", "nm"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not any((folder / "cuda_runtime_api.h").is_file() for folder in _header_folders()):
        return "needs the headers of the CUDA runtime, which come with torch's CUDA build"
    return None


def build(folder: Path) -> Path:
    """The library, in a folder of `folder` that is named by a digest of its sources and of torch's version."""
    import torch  # not at the top: this module also tells whether it is there

    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*_SOURCES.rglob("*.c"), *_SOURCES.glob("*.h"), Path(__file__)]):
        digest.update(path.read_bytes())
    library = folder / digest.hexdigest()[:16] / NAME
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    files, objects = sorted(_SOURCES.glob("*.c")), library.with_name("without_stubs.so")
    _compile(files, objects)
    defined = set(re.findall(r" T (\w+)", _symbols(objects, "--defined-only")))
    needed = {name for path in _torch_libraries() for name in _NEEDED.findall(_symbols(path, "--undefined-only"))}
    needed |= {name.decode() for name in _ASKED_FOR.findall(_torch_library("libc10_cuda").read_bytes())}
    stubs = library.with_name("stubs.c")
    stubs.write_text("\n".join(_stubs(sorted(name for name in needed - defined if not _KEPT.match(name)))))
    _compile([_SOURCES / "nvml" / "nvml.c"], library.with_name("libnvidia-ml.so.1"))
    _compile([*files, stubs], library)
    return library


def _stubs(names: list[str]) -> Iterator[str]:
    yield "int fake_cuda_missing(const char *), fake_driver_missing(const char *), fake_blas_call(void);"
    for name in names:
        if name.startswith("cublas"):
            call = "fake_blas_call()"
        elif name in _DO_NOTHING:
            call = "0"
        else:
            call = f'fake_{"cuda" if "cuda" in name else "driver"}_missing("{name}")'
        yield f"int {name}(void) {{ return {call}; }}"


def _compile(files: list[Path], target: Path) -> None:
    headers = [f"-I{folder}" for folder in [_SOURCES, *_header_folders()]]
    shared = ["-O1", "-shared", "-fPIC", "-std=gnu11", f"-Wl,-soname,{target.name}"]
    subprocess.run(["gcc", *shared, *headers, *map(str, files), "-o", str(target), "-ldl", "-lpthread"], check=True)


def _symbols(library: Path, which: str) -> str:
    return subprocess.run(["nm", "-D", which, str(library)], check=True, capture_output=True, text=True).stdout


def _torch_library(name: str) -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib" / f"{name}.so"


def _torch_libraries() -> list[Path]:
    return [path for path in map(_torch_library, _LIBRARIES) if path.is_file()]


def _header_folders() -> list[Path]:
    """The folders of the packages that torch's CUDA build requires."""
    site = _torch_library("libtorch_cuda").parents[2]
    # Triton's come last, for what the others lack: its version may be another one.
    return [
        *sorted({path.parent for path in site.glob("nvidia/*/include/cuda*.h")}),
        site / "triton/backends/nvidia/include",
    ]
