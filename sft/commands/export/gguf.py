"""Conversion to GGUF by llama.cpp's converter, if it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sft.common.errors import ConfigError, ModelError

CONVERTER = "convert_hf_to_gguf.py"
_GGUF_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def find_converter(setting: str | None) -> Path:
    """Return the path of the converter: `setting` (the script, or llama.cpp's folder), or the one on the PATH.

    Raises:
        ConfigError: if it does not exist.
    """
    if setting is not None:
        path = Path(setting).expanduser()
        path = path / CONVERTER if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(
                f"command line: --gguf_converter: no file {path}. Name llama.cpp's {CONVERTER}, or its folder."
            )
        return path
    found = shutil.which(CONVERTER)
    if found is None:
        raise ConfigError(
            f"command line: --gguf requires llama.cpp's {CONVERTER}, which is not on the PATH: name the script, or "
            "llama.cpp's folder, with --gguf_converter."
        )
    return Path(found)


def convert_to_gguf(folder: Path, converter: Path, dtype: str) -> Path:
    """Run the converter on an exported model. Returns the file that it wrote.

    Raises:
        ModelError: if it fails, with the last line of its output.
    """
    target = folder / f"{folder.absolute().name}-{_GGUF_TYPES[dtype]}.gguf"
    command = [sys.executable, str(converter), str(folder), "--outfile", str(target), "--outtype", _GGUF_TYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not target.is_file():
        target.unlink(missing_ok=True)
        output = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = output[-1] if output else f"exit code {done.returncode}"
        raise ModelError(f"{folder} was exported, but {converter.name} could not convert it to GGUF: {reason}")
    return target
