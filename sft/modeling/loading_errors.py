"""The libraries' errors about model files as one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, get_token
from safetensors import SafetensorError

from sft.common.errors import ModelError, one_line
from sft.common.hub_errors import hub_problem

if TYPE_CHECKING:
    pass

logger = logging.getLogger("sft.model")


@cache
def log_hub_lookup(place: str) -> None:
    """Says, once, that a model is not looked for here: where there is no network, that takes a minute of silence."""
    if not Path(place).exists():
        logger.info("%s is no folder here: looking in the Hugging Face cache (HF_HOME), and on the Hub.", place)


@contextmanager
def readable_loading_errors(what: str, place: str) -> Iterator[None]:
    """Turns what the libraries say of a model that is not there, or not theirs, into one line.

    Raises:
        ModelError: in place of the library's error.
    """
    log_hub_lookup(place)
    try:
        yield
    except Exception as error:
        problem = None if Path(place).exists() else _hub_problem(error)
        if problem is not None:
            raise ModelError(f"{place}: {problem}") from error
        if isinstance(error, OSError | ValueError | ImportError | KeyError | RuntimeError | SafetensorError):
            raise ModelError(f"{place}: the {what} cannot be loaded: {one_line(error)}") from error
        raise


def _hub_problem(error: Exception) -> str | None:
    has_token = get_token() is not None
    return hub_problem(error, what="model", has_token=has_token, is_offline=constants.HF_HUB_OFFLINE)
