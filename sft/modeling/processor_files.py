"""Settings of the processor of a model that takes images too: saved beside the model as they came."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from sft.common.device_errors import reraise_device_error
from sft.common.errors import one_line
from sft.modeling.architecture import other_inputs

logger = logging.getLogger("sft.model")
_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def copy_processor_files(model: Any, folder: str | Path) -> None:
    """Copy the processor's files of the base model, where a folder that is saved lacks them.

    Args:
        model: as transformers loaded it, from a folder or the Hub.
        folder: with the saved model.
    """
    source = getattr(model.config, "name_or_path", "")
    if not source or not other_inputs(model.config):
        return
    for name in _FILES:
        target = Path(folder, name)
        try:
            found = Path(source, name) if os.path.isdir(source) else _from_hub(model, source, name)
            if found is not None and found.is_file() and not target.exists():
                shutil.copyfile(found, target)
        except Exception as error:  # of the Hub, or of the disk
            reraise_device_error(error)
            logger.info("%s of %s could not be copied to %s: %s", name, source, folder, one_line(error))


def _from_hub(model: Any, source: str, name: str) -> Path | None:
    commit = getattr(model.config, "_commit_hash", None)
    found = cached_file(source, name, revision=commit, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
