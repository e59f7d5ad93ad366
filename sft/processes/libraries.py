"""Import the large libraries quickly, and keep them quiet."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

_COMPILATION_SWITCH = "TORCHDYNAMO_DISABLE"
"""torch's variable, read at each call of `torch.compile`."""
_BITSANDBYTES_OPTIMIZERS = ("bnb", "8bit", "paged", "lion", "ademamix")
"""Parts of the names of optimizers that bitsandbytes implements, or may implement."""


def quiet_libraries() -> None:
    """Keep the notices, hints and progress bars of other libraries out of the log. Errors are still shown."""
    # If it is set, the tokenizers library does not warn when a process is forked (see `tokenize_in_one_thread`).
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # torch warns with 25 addresses of its own code when another process ends; the run says so in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Warns at import, on CPUs with AVX512-BF16, that the optional package `kernels` is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Logs "Retrying in ..." many times before an unreachable Hub ends in our one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    # Not at the top: the entries import this module before they know that the configuration is valid.
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def pause_garbage_collection() -> None:
    """Pause garbage collection during imports. To be called by the entry.

    Imports create millions of objects and hardly any garbage: scanning them repeatedly takes a fifth of their time.
    """
    gc.disable()


def resume_garbage_collection() -> None:
    """Resume garbage collection if it was paused, without the objects that exist by now: they stay."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def skip_final_garbage_collection() -> None:
    """Collect garbage a last time. To be called just before the process exits.

    Otherwise the interpreter scans all objects several more times on exit: a second, with these libraries.
    """
    gc.collect()
    gc.freeze()


def import_libraries(*, is_dry_run: bool, optimizer: str, is_quantized: bool) -> None:
    """Import what every run needs of torch and transformers, then resume garbage collection.

    Threads would not be faster: imports hold the interpreter's lock (measured: 3.7 s in one thread, 4.0 s in two).

    Args:
        is_dry_run: a dry run needs no Trainer (nor `datasets` and pandas, which it imports).
        optimizer: the value of `optim`.
        is_quantized: whether bitsandbytes quantizes the weights.
    """
    import_module("transformers.modeling_utils")
    uses_bitsandbytes = is_quantized or any(name in optimizer for name in _BITSANDBYTES_OPTIMIZERS)
    with nullcontext() if uses_bitsandbytes else _without_compilation():
        # Imports peft, which imports bitsandbytes, which passes functions of its own to torch.compile.
        import_module("transformers.training_args")
    if not is_dry_run:
        import_module("transformers.trainer")
    resume_garbage_collection()


@contextmanager
def _without_compilation() -> Iterator[None]:
    """Within the context, `torch.compile` returns its argument and does not import the compiler (0.8 s)."""
    before = os.environ.get(_COMPILATION_SWITCH)
    os.environ[_COMPILATION_SWITCH] = "1"
    try:
        yield
    finally:
        os.environ.pop(_COMPILATION_SWITCH)
        if before is not None:
            os.environ[_COMPILATION_SWITCH] = before
