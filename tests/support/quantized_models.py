"""Tiny models whose files are quantized as published ones are, written by hand: no package quantizes them here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.architectures import build_architecture
from tests.support.small_models import build_model, build_tokenizer

BLOCK = 16
OTHER_METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "aqlm": {"quant_method": "aqlm"},
    "hqq": {"quant_method": "hqq", "quant_config": {}},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
}
"""What config.json states for methods whose packages are not installed."""


def save_fp8(folder: Path) -> None:
    """A Llama with linear layers in float8 and a scale for each block, as DeepSeek and Qwen publish them."""
    import torch

    model = build_model("llama")
    state = {}
    for name, weight in model.state_dict().items():
        if weight.dim() == 2 and "layers." in name:
            rows, columns = (-(-size // BLOCK) for size in weight.shape)
            scales = torch.full((rows, columns), float(weight.abs().max()) / 448)
            state[name] = (weight / scales[0, 0]).to(torch.float8_e4m3fn)
            state[f"{name}_scale_inv"] = scales
        else:
            state[name] = weight
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    _save(model, state, settings, folder)


def save_mxfp4(folder: Path) -> None:
    """A gpt-oss with experts in MXFP4: two values a byte, and a scale for 32 of them."""
    import torch

    model = build_architecture("gpt_oss")
    state = {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.state_dict().items():
        if weight.dim() == 3:
            experts, columns, rows = weight.shape
            shape = (experts, rows, columns // 32, 16)
            state[f"{name}_blocks"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            state[f"{name}_scales"] = torch.full(shape[:3], 120, dtype=torch.uint8)
        else:
            state[name] = weight
    _save(model, state, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, folder)


def save_with_settings(settings: dict[str, Any], folder: Path) -> None:
    """A Llama whose config.json states that it is quantized."""
    model = build_model("llama")
    _save(model, model.state_dict(), settings, folder)


def _save(model: Any, state: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous().clone() for name, weight in state.items()}, folder / "model.safetensors")
    config = {**model.config.to_dict(), "quantization_config": settings, "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    build_tokenizer().save_pretrained(folder)
