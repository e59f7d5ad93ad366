"""The finished model comes into the output folder in a way that no half of it can be taken for a whole.

Written aside and brought to the disk first, so that a full disk leaves what was there. Then moved file by file, and the
file without which nothing loads the folder comes last; the old one goes first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sft.checkpointing.publish import UNFINISHED
from sft.common.files import flush_to_disk

_MODEL = ("config.json", ("model*.safetensors", "model*.safetensors.index.json"))
_ADAPTERS = ("adapter_config.json", ("adapter_model*.safetensors", "adapter_model*.bin"))
"""The file that makes a folder one, and what of an earlier one must not lie beside it."""
_PICKLED = "training_args.bin"


def model_aside(output_dir: str | Path) -> Path:
    """Where the finished model is written, before it is published."""
    return Path(output_dir, UNFINISHED, "model")


def write_model(output_dir: str | Path, write: Callable[[str], None]) -> None:
    """Has a model written aside, and publishes it.

    Args:
        output_dir: where it is to be.
        write: writes it into the folder that it is given.

    Raises:
        OSError: if it cannot be written: what was in the folder before is as it was, unless all that failed was moving.
    """
    aside = model_aside(output_dir)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write(str(aside))
        publish_model(aside, Path(output_dir))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # there may be no room for anything else
        raise


def publish_model(aside: Path, target: Path) -> None:
    """Moves a written model into its folder, where it takes the place of an earlier one."""
    (aside / _PICKLED).unlink(missing_ok=True)
    files = [path.relative_to(aside) for path in sorted(aside.rglob("*")) if path.is_file()]
    for name in files:
        flush_to_disk(aside / name)
    door, weights = _ADAPTERS if (aside / _ADAPTERS[0]).is_file() else _MODEL
    (target / door).unlink(missing_ok=True)
    flush_to_disk(target)
    for pattern in weights:
        for path in target.glob(pattern):
            path.unlink()
    for name in sorted(files, key=lambda name: name.as_posix() == door):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name.as_posix() == door:
            flush_to_disk(target)
        os.replace(aside / name, target / name)
    flush_to_disk(target)
    shutil.rmtree(aside)
    with suppress(OSError):  # a checkpoint is there too
        aside.parent.rmdir()
