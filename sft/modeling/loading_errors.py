"""The libraries' errors about model files as one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_token
from safetensors import SafetensorError

from sft.common.errors import ModelError, one_line
from sft.common.files import special_file_in
from sft.common.hub_errors import hub_problem
from sft.common.hub_names import full_name_hint

logger = logging.getLogger("sft.model")
_LOADING_ERRORS = (OSError, ValueError, ImportError, KeyError, RuntimeError, MemoryError, SafetensorError)


@contextmanager
def readable_loading_errors(what: str, path: str) -> Iterator[None]:
    """Raise the libraries' errors about missing or unreadable model files as one line.

    Args:
        what: what is loaded: `model`, `tokenizer`, ...
        path: a folder, or the name of a model on the Hub.

    Raises:
        ModelError: instead of the library's error, or if a file in the folder is a FIFO or a device.
    """
    _log_hub_lookup(path)
    special = special_file_in(path)
    if special is not None:
        raise ModelError(special)
    try:
        yield
    except Exception as error:
        problem = None if Path(path).exists() else _hub_problem(error)
        hint = "" if Path(path).exists() else full_name_hint(path, "model")
        if problem is not None:
            raise ModelError(f"{path}: {problem}{hint}") from error
        if isinstance(error, _LOADING_ERRORS):
            raise ModelError(f"{path}: the {what} cannot be loaded: {one_line(error)}{hint}") from error
        raise


def _hub_problem(error: Exception) -> str | None:
    """What kept the Hub from providing the model; None if the error is not about the Hub."""
    has_token = get_token() is not None
    return hub_problem(error, what="model", has_token=has_token, is_offline=constants.HF_HUB_OFFLINE)


@cache
def _log_hub_lookup(path: str) -> None:
    """Log, once, that a model is not a local folder: without a network the lookup takes a minute."""
    if not Path(path).exists():
        logger.info("%s is not a local folder: looking in the Hugging Face cache (HF_HOME) and on the Hub.", path)
