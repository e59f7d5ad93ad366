"""Publish the final model in the output folder so that a partly written model can never be loaded.

It is first written to a staging folder and flushed to disk, so that a full disk changes nothing in the output folder.
Then it is moved file by file. The config file, without which the folder cannot be loaded, is moved last, and an
earlier one is deleted first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sft.checkpointing.publish import UNFINISHED
from sft.common.files import flush_to_disk, refuse_link

_MODEL = ("config.json", ("model*.safetensors", "model*.safetensors.index.json"))
_ADAPTERS = ("adapter_config.json", ("adapter_model*.safetensors", "adapter_model*.bin"))
"""The config file, and patterns of weight files of an earlier model to be deleted."""
_PICKLED = "training_args.bin"


def model_staging_folder(output_dir: str | Path) -> Path:
    """The folder in which the final model is written before it is published."""
    return Path(output_dir, UNFINISHED, "model")


def write_model(output_dir: str | Path, write: Callable[[str], None]) -> None:
    """Write a model to the staging folder, and publish it.

    Args:
        output_dir: the folder to publish it in.
        write: writes the model to the folder that it is called with.

    Raises:
        OSError: if it cannot be written. The output folder is unchanged, unless only moving the files failed.
    """
    staging = model_staging_folder(output_dir)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write(str(staging))
        publish_model(staging, Path(output_dir))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # it may fill the disk
        raise


def publish_model(staging: Path, target: Path) -> None:
    """Move a model from the staging folder to its target folder, where it replaces an earlier one."""
    (staging / _PICKLED).unlink(missing_ok=True)
    files = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    for name in files:
        flush_to_disk(staging / name)
    config_file, weights = _ADAPTERS if (staging / _ADAPTERS[0]).is_file() else _MODEL
    (target / config_file).unlink(missing_ok=True)
    flush_to_disk(target)
    for pattern in weights:
        for path in target.glob(pattern):
            path.unlink()
    for name in sorted(files, key=lambda name: name.as_posix() == config_file):
        if name.parent != Path():
            refuse_link(target / name.parent)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name.as_posix() == config_file:
            flush_to_disk(target)
        os.replace(staging / name, target / name)
    flush_to_disk(target)
    shutil.rmtree(staging)
    with suppress(OSError):  # not empty: a checkpoint is being written there
        staging.parent.rmdir()
