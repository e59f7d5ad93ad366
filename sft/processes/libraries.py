"""Importing the large libraries quickly, and keeping them quiet."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sft.configuration.schema import QuantizationConfig

_COMPILATION_SWITCH = "TORCHDYNAMO_DISABLE"
"""torch's own, read each time that `torch.compile` is called."""


_BITSANDBYTES_OPTIMIZERS = ("bnb", "8bit", "paged", "lion", "ademamix")
"""Parts of the names of optimizers that are, or may be, those of bitsandbytes."""


def quiet_libraries() -> None:
    """Keeps other libraries' notices, hints and progress bars out of the log. Errors still come through."""
    # Said explicitly, the tokenizers library does not warn when a process is forked (see `tokenize_in_one_thread`).
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Warns at import, on CPUs with AVX512-BF16, that the optional package `kernels` is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Says "Retrying in ..." many times before an unreachable Hub ends in one line of ours.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def pause_garbage_collection() -> None:
    """To be called by the entry: an import makes objects by the million and hardly any garbage.

    The collector would look through all of them again and again: a fifth of the time that imports take.
    """
    gc.disable()


def resume_garbage_collection() -> None:
    """Collects garbage again if that was paused, but looks no more at what is there by now: it is there to stay."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def leave_objects_to_the_system() -> None:
    """To be called at the end: whatever is garbage by now is ended properly, the rest goes with the process.

    Else the interpreter looks through all objects several times more before it ends: a second, with these libraries.
    """
    gc.collect()
    gc.freeze()


def import_libraries(*, is_rehearsal: bool, optimizer: str, quantization: QuantizationConfig | None) -> None:
    """Imports of torch and transformers what every run needs, with the collector paused where the entry paused it.

    Threads would not make it faster: imports hold the interpreter's lock (measured: 3.7 s in one thread, 4.0 s in two).

    Args:
        is_rehearsal: a rehearsal needs no Trainer (and with it `datasets` and pandas).
        optimizer: the name that `optim` has.
        quantization: of the weights, by bitsandbytes; None for none.
    """
    import transformers.modeling_utils

    uses_bitsandbytes = quantization is not None or any(sign in optimizer for sign in _BITSANDBYTES_OPTIMIZERS)
    with nullcontext() if uses_bitsandbytes else _without_compilation():
        # Imports peft, which imports bitsandbytes, which hands functions of its own to torch.compile.
        import transformers.training_args
    if not is_rehearsal:
        import transformers.trainer  # noqa: F401
    resume_garbage_collection()


@contextmanager
def _without_compilation() -> Iterator[None]:
    """Makes `torch.compile` hand back what it is given, without importing its compiler (0.8 s), while this lasts."""
    before = os.environ.get(_COMPILATION_SWITCH)
    os.environ[_COMPILATION_SWITCH] = "1"
    try:
        yield
    finally:
        os.environ.pop(_COMPILATION_SWITCH)
        if before is not None:
            os.environ[_COMPILATION_SWITCH] = before
