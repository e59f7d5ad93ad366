"""The libraries' errors about model files as one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_token

from sft.common.device_errors import is_out_of_memory
from sft.common.errors import ModelError
from sft.common.files import refuse_special_files
from sft.common.hub_errors import hub_problem
from sft.common.hub_names import full_name_hint
from sft.common.outside_files import outside_file, reason
from sft.modeling.model_files import check_settings_files, find_broken_file

logger = logging.getLogger("sft.model")


@contextmanager
def readable_loading_errors(what: str, path: str) -> Iterator[None]:
    """Raise the libraries' errors about missing or unreadable model files as one line.

    Args:
        what: what is loaded: `model`, `tokenizer`, ...
        path: a folder, or the name of a model on the Hub.

    Raises:
        ModelError: instead of the library's error, naming the file where one can be found; or if a file in the folder
            is a FIFO, a device, or not what its name says.
    """
    _log_hub_lookup(path)
    refuse_special_files(ModelError, *sorted(Path(path).glob("*")))
    if Path(path).is_dir():
        check_settings_files(Path(path))

    def explain(error: Exception) -> str | None:
        if Path(path).exists():
            return find_broken_file(Path(path), what)
        problem = _hub_problem(error) or f"the {what} cannot be loaded: {reason(error)}"
        return f"{path}: {problem}{full_name_hint(path, 'model')}"

    try:
        with outside_file(f"{path}: the {what} cannot be loaded", ModelError, explain):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"{path}: the {what} cannot be loaded: {reason(error)}") from error


def _hub_problem(error: Exception) -> str | None:
    """What kept the Hub from providing the model; None if the error is not about the Hub."""
    has_token = get_token() is not None
    return hub_problem(error, what="model", has_token=has_token, is_offline=constants.HF_HUB_OFFLINE)


@cache
def _log_hub_lookup(path: str) -> None:
    """Log, once, that a model is not a local folder: without a network the lookup takes a minute."""
    if not Path(path).exists():
        logger.info("%s is not a local folder: looking in the Hugging Face cache (HF_HOME) and on the Hub.", path)
