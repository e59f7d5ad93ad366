"""Models of images and text: the text is trained, the rest is frozen, and all of it is saved as it came."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig
from sft.modeling.loading import load_pretrained_model
from sft.modeling.merging import merge_adapters
from sft.modeling.saving import save_final_model
from sft.modeling.text_path import freeze_unused_modules
from tests.support import messages
from tests.support.layouts import (
    LENGTHS,
    assert_same,
    layout_of,
    loss_and_gradients,
    padded_loss_and_gradients,
    random_rows,
)
from tests.support.multimodal_models import NAMES, PROCESSOR, save_multimodal
from tests.support.small_models import build_tokenizer, with_random_adapters

TOWERS = ("vision", "visual", "projector")
IDS = torch.arange(20, 50)[None]


def load(folder, lora=None):
    config = ModelConfig(model_name_or_path=str(folder))
    return load_pretrained_model(config, lora, None, Precision(weights="float32", mixed="no"), DistributedContext())


def is_tower(name):
    return any(part in name for part in TOWERS)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_trained_and_the_whole_is_saved_as_it_came(name, tmp_path, caplog):
    caplog.set_level("INFO", "sft")
    original = save_multimodal(name, tmp_path)
    model = load(tmp_path)
    assert type(model) is type(original)
    freeze_unused_modules(model)
    assert caplog.text.count(messages.TEXT_DOES_NOT_REACH) == 1
    assert all(weight.requires_grad != is_tower(key) for key, weight in model.named_parameters())
    layout = layout_of(model)
    assert layout.obstacle is None, "its rows cannot be packed"
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.01
    save_final_model(model, build_tokenizer(), str(tmp_path / "saved"))
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) == is_tower(key) for key in before)
    assert json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text()) == PROCESSOR
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is type(original)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize("name", ["mistral3", "qwen3_5"])
def test_adapters_are_on_the_text_and_are_merged_into_the_whole(name, tmp_path):
    original = save_multimodal(name, tmp_path)
    model = load(tmp_path, LoRAConfig(r=2))
    adapted = [key for key, _ in model.named_parameters() if "lora_B" in key]
    assert adapted
    assert not any(is_tower(key) for key in adapted)
    with_random_adapters(model)
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        save_final_model(merge_adapters(model), build_tokenizer(), str(tmp_path / "merged"))
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(original(input_ids=IDS).logits, expected, atol=1e-4)
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()


def test_rows_of_a_model_with_three_rotary_positions_do_not_see_each_other(tmp_path):
    """Qwen-VL has a position of time, height and width; those of text are equal."""
    model = save_multimodal("qwen2_5_vl", tmp_path)
    rows = random_rows(lengths=LENGTHS)
    found = loss_and_gradients(model, rows)
    assert found[2].is_padding_free
    assert_same(found[:2], padded_loss_and_gradients(model, rows))
