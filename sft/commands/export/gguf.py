"""GGUF by llama.cpp's own converter, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sft.common.errors import ConfigError, ModelError

CONVERTER = "convert_hf_to_gguf.py"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def find_converter(setting: str | None) -> Path:
    """The converter script: as named (the file, or llama.cpp's folder), or on the PATH.

    Raises:
        ConfigError: if it is not there.
    """
    if setting is not None:
        path = Path(setting).expanduser()
        path = path / CONVERTER if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(
                f"command line: --gguf_converter: no {path}. Name llama.cpp's {CONVERTER}, or its folder."
            )
        return path
    found = shutil.which(CONVERTER)
    if found is None:
        raise ConfigError(
            f"command line: --gguf needs llama.cpp's {CONVERTER}, which is not on the PATH: name it, or llama.cpp's "
            "folder, with --gguf_converter."
        )
    return Path(found)


def convert_to_gguf(folder: Path, converter: Path, dtype: str) -> Path:
    """Runs the converter on an exported model; returns the file that it wrote.

    Raises:
        ModelError: if it fails, with its last line.
    """
    target = folder / f"{folder.absolute().name}-{_TYPES[dtype]}.gguf"
    command = [sys.executable, str(converter), str(folder), "--outfile", str(target), "--outtype", _TYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not target.is_file():
        target.unlink(missing_ok=True)
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = said[-1] if said else f"exit status {done.returncode}"
        raise ModelError(f"{folder} is written, but {converter.name} made no GGUF file of it: {last}")
    return target
