"""Tiny random models that take images and text, as they are published: the whole model, with its processor's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.architectures import GATED_DELTA
from tests.support.small_models import SIZES, build_tokenizer

_TEXT = {**SIZES, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE = {**_TOWER, "image_size": 28, "patch_size": 14}
_QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}}
NAMES = ("gemma3", "mistral3", "qwen3_5", "qwen2_5_vl", "llava")


def build_multimodal(name: str) -> Any:
    """A random model of images and text in float32, the same numbers each time; in evaluation mode."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    if name == "gemma3":
        config = t.Gemma3Config(text_config={**_TEXT, "head_dim": 8}, vision_config=_IMAGE, mm_tokens_per_image=4)
        return t.Gemma3ForConditionalGeneration(config).eval()
    if name == "mistral3":
        config = t.Mistral3Config(
            text_config={"model_type": "mistral", **_TEXT, "head_dim": 8, "sliding_window": None},
            vision_config={"model_type": "pixtral", **_IMAGE, "head_dim": 8},
            image_token_index=9,
        )
        return t.Mistral3ForConditionalGeneration(config).eval()
    if name == "qwen3_5":
        config = t.Qwen3_5Config(text_config={**_TEXT, **GATED_DELTA}, vision_config={**_QWEN_TOWER, "in_channels": 3})
        return t.Qwen3_5ForConditionalGeneration(config).eval()
    if name == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        config = t.Qwen2_5_VLConfig(
            text_config={**_TEXT, "rope_parameters": rope},
            vision_config={**_QWEN_TOWER, "fullatt_block_indexes": [1], "window_size": 28},
        )
        return t.Qwen2_5_VLForConditionalGeneration(config).eval()
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(**_TEXT), vision_config=t.CLIPVisionConfig(**_IMAGE), image_token_index=9
    )
    return t.LlavaForConditionalGeneration(config).eval()


def save_multimodal(name: str, folder: Path) -> Any:
    """Writes the model, its tokenizer and its processor's settings; returns the model."""
    model = build_multimodal(name)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model
