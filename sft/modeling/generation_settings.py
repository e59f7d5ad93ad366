"""A model's generation_config.json: settings of others that only fail when something is generated or saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from sft.common.device_errors import is_device_error
from sft.common.errors import ModelError
from sft.common.outside_files import outside_file, reason

_FILE = "generation_config.json"


def check_can_be_saved(model: Any) -> None:
    """Check now that the generation settings can be saved, not at the first checkpoint: transformers refuses some.

    Raises:
        ModelError: if they cannot.
    """
    problem = f"{_path_of(model)}: cannot be saved again with the trained model. Correct or remove the file"
    with TemporaryDirectory() as folder, outside_file(problem, ModelError):
        model.generation_config.save_pretrained(folder)


@contextmanager
def generation_errors_named(model: Any) -> Iterator[None]:
    """Turn an error while generating into one line if the model's generation settings cause it.

    They do if a token can be generated without them. Any other error is raised as it is. Sharded models are not tried
    again: the other processes would wait.

    Raises:
        ModelError: naming the file.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RuntimeError, AssertionError) as error:
        if is_device_error(error) or isinstance(model, FSDPModule) or not _generates_plainly(model):
            raise
        raise ModelError(
            f"{_path_of(model)}: nothing can be generated with these settings: {reason(error)}. Correct or remove the "
            "file."
        ) from error


def _generates_plainly(model: Any) -> bool:
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        model.generate(input_ids=torch.tensor([[1, 2]], device=model.device), max_new_tokens=1, pad_token_id=0)
    except Exception:
        return False
    finally:
        model.generation_config = own
    return True


def _path_of(model: Any) -> str:
    name = getattr(model.config, "name_or_path", "") or "the model"
    return f"{name}/{_FILE}" if Path(name).is_dir() else f"{name}: {_FILE}"
