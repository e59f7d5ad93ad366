"""Checks that the optional packages that settings need are installed."""

from __future__ import annotations

from collections.abc import Iterator

from sft.common.optional_packages import is_installed, missing_package
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.schema import SFTConfig

_BITSANDBYTES_OPTIMIZERS = ("bnb", "paged", "ademamix", "lion")
"""Parts of the names of the optimizers that transformers takes from bitsandbytes; one more is its alias adamw_8bit."""


def needs_bitsandbytes(optimizer: str) -> bool:
    """Return whether transformers takes the optimizer of this name (`optim`) from bitsandbytes."""
    return optimizer == "adamw_8bit" or any(part in optimizer for part in _BITSANDBYTES_OPTIMIZERS)


def check_packages(config: SFTConfig) -> Iterator[Contradiction]:
    """Check the packages of quantization, of the optimizer and of GGUF files; `check_logging` checks the trackers'."""
    quantization, optimizer = config.quantization, config.training.optim
    if quantization is not None and (quantization.load_in_4bit or quantization.load_in_8bit):
        yield from _check_installed("bitsandbytes", "quantization_config")
    if needs_bitsandbytes(optimizer):
        yield from _check_installed("bitsandbytes", "optim", f"{optimizer} ")
    if config.model.gguf_file:
        yield from _check_installed("gguf", "gguf_file")


def _check_installed(module: str, key: str, value: str = "") -> Iterator[Contradiction]:
    if not is_installed(module):
        yield Contradiction(key, f"{value}{missing_package(module)}.")
