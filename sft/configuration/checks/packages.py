"""Checks that the optional packages that settings need are installed."""

from __future__ import annotations

from collections.abc import Iterator

from sft.common.optional_packages import is_installed, missing_package
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.installed_transformers import BFLOAT16_OPTIMIZERS
from sft.configuration.schema import SFTConfig

_BITSANDBYTES_OPTIMIZERS = ("bnb", "paged", "ademamix", "lion")
"""Parts of the names of the optimizers that transformers takes from bitsandbytes; one more is its alias adamw_8bit."""
_OPTIMIZER_PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "stable_adamw": "optimi",
    "adamw_anyprecision": "torchdistx",
    "adamw_apex": "apex",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
}
"""First part of an optimizer's name -> the package that transformers takes it from."""
_NEED_TARGET_MODULES = ("galore", "apollo")
"""First parts of the names of the optimizers that train only the layers in `optim_target_modules` in their own way."""
_BACKEND_PACKAGES = {"ccl": "oneccl_bindings_for_pytorch", "hccl": "habana_frameworks"}
_ATTENTION_PACKAGES = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
}
"""Attention implementation -> packages, one of which transformers takes it from."""


def needs_bitsandbytes(optimizer: str) -> bool:
    """Return whether transformers takes the optimizer of this name (`optim`) from bitsandbytes."""
    return optimizer == "adamw_8bit" or any(part in optimizer for part in _BITSANDBYTES_OPTIMIZERS)


def optimizer_packages(optimizer: str) -> list[str]:
    """The packages that transformers takes the optimizer of this name from; empty for those of torch and its own."""
    packages = [package for start, package in _OPTIMIZER_PACKAGES.items() if optimizer.startswith(start)]
    if needs_bitsandbytes(optimizer) or optimizer.startswith("galore_adamw_8bit"):
        packages.append("bitsandbytes")
    return packages


def check_packages(config: SFTConfig) -> Iterator[Contradiction]:
    """Check the packages that settings need; `check_logging` checks the trackers', `check_deepspeed` DeepSpeed's."""
    quantization, training = config.quantization, config.training
    if quantization is not None and (quantization.load_in_4bit or quantization.load_in_8bit):
        yield from _check_installed("quantization_config", "", "bitsandbytes")
    yield from _check_optimizer(config)
    if config.model.gguf_file:
        yield from _check_installed("gguf_file", "", "gguf")
    attention = config.model.attn_implementation
    if attention in _ATTENTION_PACKAGES:
        yield from _check_installed("attn_implementation", f"{attention} ", *_ATTENTION_PACKAGES[attention])
    if training.passed_through.use_liger_kernel:
        yield from _check_installed("use_liger_kernel", "", "liger_kernel")
    backend = config.distributed.ddp_backend
    if backend in _BACKEND_PACKAGES:
        yield from _check_installed("ddp_backend", f"{backend} ", _BACKEND_PACKAGES[backend])


def _check_optimizer(config: SFTConfig) -> Iterator[Contradiction]:
    name, passed = config.training.optim, config.training.passed_through
    for package in optimizer_packages(name):
        yield from _check_installed("optim", f"{name} ", package)
    if name in BFLOAT16_OPTIMIZERS:
        yield from _check_bfloat16_optimizer(config)
    if name.startswith(_NEED_TARGET_MODULES) and not passed.optim_target_modules:
        yield Contradiction("optim", f"{name} requires optim_target_modules, a list of module names, or all-linear.")
    if name.endswith("_layerwise") and config.training.gradient_accumulation_steps > 1:
        yield Contradiction("gradient_accumulation_steps", f"must be 1 with optim: {name}.")


def _check_bfloat16_optimizer(config: SFTConfig) -> Iterator[Contradiction]:
    name, passed = config.training.optim, config.training.passed_through
    if config.lora is not None:
        yield Contradiction(
            "optim", f"{name} is for bfloat16 weights, and adapters are float32; use adamw_torch_fused."
        )
    elif config.model.dtype != "bfloat16":
        yield Contradiction(
            "optim", f"{name} is for bfloat16 weights: write dtype: bfloat16, or use adamw_torch_fused."
        )
    if passed.deepspeed:
        yield Contradiction("optim", f"{name} cannot be combined with deepspeed.")
    if passed.fields.get("optim_args"):
        yield Contradiction("optim_args", f"has no effect on {name}; omit it.")


def _check_installed(key: str, value: str, *modules: str) -> Iterator[Contradiction]:
    """Check that one of these modules is installed; the first is the one to install."""
    if not any(is_installed(module) for module in modules):
        yield Contradiction(key, f"{value}{missing_package(modules[0])}.")
