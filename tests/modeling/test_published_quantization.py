"""Weights that are quantized in their files: trained de-quantized and saved plain, or refused with what to do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sft.common.errors import ConfigError, ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig
from sft.modeling.loading import load_pretrained_model
from sft.modeling.merging import merge_adapters
from sft.modeling.saving import save_final_model
from tests.support.quantized_models import OTHER_METHODS, save_fp8, save_mxfp4, save_with_settings
from tests.support.small_models import build_tokenizer, with_random_adapters

IDS = torch.arange(20, 50)[None]
SAVE = {"fp8": save_fp8, "mxfp4": save_mxfp4}


def load(folder, lora=None, **settings):
    config = ModelConfig(model_name_or_path=str(folder), **settings)
    return load_pretrained_model(config, lora, None, Precision(weights="float32", mixed="no"), DistributedContext())


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("method", SAVE)
def test_dequantized_weights_are_trained_and_saved_as_plain_ones(method, dequantize, tmp_path, caplog):
    """Without a GPU, transformers de-quantizes these methods in any case."""
    caplog.set_level("INFO", "sft")
    SAVE[method](tmp_path)
    model = load(tmp_path, LoRAConfig(r=2), dequantize=dequantize)
    assert (
        caplog.text.count(f"its weights are quantized by {method} (config.json), and were de-quantized to float32") == 1
    )
    with_random_adapters(model)
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        save_final_model(merge_adapters(model), build_tokenizer(), str(tmp_path / "saved"))
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
        torch.testing.assert_close(again.eval()(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not hasattr(again.config, "quantization_config")


def test_dequantized_values_are_those_of_the_files(tmp_path):
    save_fp8(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    saved = load_file(tmp_path / "model.safetensors")
    expected = saved[name].float() * saved[f"{name}_scale_inv"][0, 0]
    torch.testing.assert_close(dict(load(tmp_path, dequantize=True).named_parameters())[name].data, expected)


def test_dequantize_is_refused_for_plain_weights(model_folder):
    with pytest.raises(ConfigError, match=r"^dequantize: the weights of .* are not quantized"):
        load(model_folder("llama"), dequantize=True)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("method", OTHER_METHODS)
def test_a_method_whose_package_is_missing_is_one_line(method, dequantize, tmp_path):
    save_with_settings(OTHER_METHODS[method], tmp_path)
    with pytest.raises(ModelError, match=r"install|requires a GPU") as caught:
        load(tmp_path, dequantize=dequantize)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_of_bitsandbytes_are_dequantized_after_loading(model_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    original = AutoModelForCausalLM.from_pretrained(model_folder("llama"), quantization_config=quantization)
    original.save_pretrained(tmp_path)
    model = load(tmp_path, dequantize=True)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        save_final_model(model, build_tokenizer(), str(tmp_path / "saved"))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(again(input_ids=IDS).logits, expected)
