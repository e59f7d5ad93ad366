"""Models of another kind than causal language models are named by their config.json, before weights are read."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers as t

from sft.common.errors import ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig
from sft.modeling.architecture import auto_class, num_positions, text_part_line, why_not_causal_lm
from sft.modeling.loading import load_pretrained_model
from sft.modeling.published_quantization import check_quantized_weights_can_train
from sft.modeling.tokenizer import load_tokenizer
from tests.support import messages
from tests.support.small_models import build_model


def load_float32(config):
    return load_pretrained_model(config, None, None, Precision(weights="float32", mixed="no"), DistributedContext())


ENCODER_DECODER = [t.T5Config, t.BartConfig, t.WhisperConfig, t.MarianConfig, t.PegasusConfig, t.T5GemmaConfig]
MULTIMODAL = {
    t.Qwen2AudioConfig: "audio",
    t.CLIPConfig: "vision",
}
OTHER = [t.DistilBertConfig, t.ViTConfig, t.ModernBertConfig]
WHOLE = [t.Qwen2VLConfig, t.LlavaConfig, t.PaliGemmaConfig, t.Mistral3Config]
CAUSAL = [
    *WHOLE,
    t.LlamaConfig,
    t.GPT2Config,
    t.MixtralConfig,
    t.MambaConfig,
    t.Gemma3Config,
    t.Llama4Config,
    t.BertConfig,
]


@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_an_encoder_decoder_model_is_refused_before_its_weights_are_read(kind, tmp_path):
    kind(architectures=["TheirModel"]).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    with pytest.raises(ModelError, match=rf"^model_name_or_path: .* {messages.ENCODER_DECODER} \(TheirModel\)"):
        load_pretrained_model(config, None, None, Precision(weights="float32", mixed="no"), DistributedContext())


@pytest.mark.parametrize(("kind", "takes"), MULTIMODAL.items())
def test_a_multimodal_model_without_a_causal_text_part_is_named(kind, takes):
    problem = why_not_causal_lm(kind(architectures=["TheirModel"]))
    assert problem is not None
    assert problem.startswith(messages.MULTIMODAL.format(name="TheirModel", takes=takes))
    assert "\n" not in problem


@pytest.mark.parametrize("kind", OTHER)
def test_another_model_is_named_by_its_class_or_type(kind):
    assert why_not_causal_lm(kind()).startswith(messages.NOT_CAUSAL_MODEL.format(kind=kind().model_type))


@pytest.mark.parametrize("kind", [*CAUSAL, *WHOLE])
def test_a_model_that_transformers_loads_as_causal_is_accepted(kind):
    assert why_not_causal_lm(kind()) is None


def test_a_model_with_its_own_code_is_accepted():
    assert why_not_causal_lm(t.ViTConfig(auto_map={"AutoModelForCausalLM": "modeling.Their"})) is None


@pytest.mark.parametrize(
    ("kind", "names", "loader"),
    [
        (t.LlamaConfig, ["LlamaForCausalLM"], t.AutoModelForCausalLM),
        (t.Gemma3Config, ["Gemma3ForConditionalGeneration"], t.AutoModelForImageTextToText),
        (t.Mistral3Config, None, t.AutoModelForImageTextToText),
        (t.Qwen3_5Config, ["Qwen3_5ForConditionalGeneration"], t.AutoModelForImageTextToText),
        (t.Qwen3_5Config, ["Qwen3_5ForCausalLM"], t.AutoModelForCausalLM),
        (t.Qwen3_5TextConfig, None, t.AutoModelForCausalLM),
        (t.ViTConfig, None, None),
    ],
)
def test_a_model_of_images_and_text_is_loaded_whole_unless_its_files_are_the_text_part(kind, names, loader):
    assert auto_class(kind(architectures=names)) is loader


def test_a_text_part_that_is_loaded_alone_is_reported():
    model = build_model("llama")
    described = t.LlavaConfig(text_config=model.config, architectures=["LlavaForConditionalGeneration"])
    assert text_part_line(described, model) == (
        "LlavaForConditionalGeneration is a multimodal model: only its text part, LlamaForCausalLM, is loaded, trained "
        "and saved; the saved model has no part for vision."
    )
    assert text_part_line(model.config, model) is None


@pytest.mark.parametrize("kind", [*ENCODER_DECODER[:3], *MULTIMODAL, *OTHER])
@pytest.mark.parametrize("load", [load_tokenizer, load_float32])
def test_adapters_of_another_kind_of_model_are_named_by_it(kind, load, tmp_path):
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    kind(architectures=["TheirModel"]).save_pretrained(base)
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    config = ModelConfig(model_name_or_path=str(adapters))
    with pytest.raises(ModelError, match=rf"adapters contains adapters on {base}, which is .*TheirModel") as caught:
        load(config)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "nope"},
        {"quant_method": "GPTQ"},
        {"quant_method": ""},
        {"quant_method": "bnb", "load_in_4bit": True},
        {"bits": 4},
    ],
)
def test_an_unknown_method_of_quantization_is_named(settings, tmp_path):
    found = build_model("llama").config.to_dict() | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(found))
    config = ModelConfig(model_name_or_path=str(tmp_path))
    with pytest.raises(ModelError, match=r"is quantized by .* which transformers does not know") as caught:
        load_float32(config)
    assert len(caught.value.problems) == 1
    assert str(settings.get("quant_method", "none")) in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "bitsandbytes", None])
def test_a_known_method_of_quantization_is_left_to_the_loader(method):
    settings = {"quant_method": method} if method else {"load_in_8bit": True}
    assert why_not_causal_lm(t.LlamaConfig(quantization_config=settings)) is None


@pytest.mark.parametrize(
    ("trains", "has_adapters", "found"),
    [
        (False, True, "which cannot be trained"),
        (False, False, "which cannot be trained"),
        (True, False, "only adapters can be trained. Add lora_config"),
        (True, True, None),
    ],
)
def test_weights_that_are_quantized_in_their_files(trains, has_adapters, found):
    model = build_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    model.hf_quantizer = SimpleNamespace(is_trainable=trains, is_qat_trainable=False)
    with pytest.raises(ModelError, match=found) if found else nullcontext():
        check_quantized_weights_can_train(model, "their/model", has_adapters=has_adapters)


@pytest.mark.parametrize(
    ("dtype", "is_refused"), [("uint8", True), ("int8", True), ("float8_e4m3fn", True), ("bfloat16", False)]
)
def test_weights_that_are_quantized_in_their_files_are_not_sharded(dtype, is_refused):
    model = build_model("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    model.hf_quantizer = SimpleNamespace(is_trainable=True, is_qat_trainable=False)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(getattr(torch, dtype)), requires_grad=False)
    with pytest.raises(ModelError, match="fsdp cannot shard quantized") if is_refused else nullcontext():
        check_quantized_weights_can_train(model, "their/model", has_adapters=True, is_to_be_sharded=True)
    check_quantized_weights_can_train(model, "their/model", has_adapters=True)


@pytest.mark.parametrize(("stated", "positions"), [(-1, None), (0, None), (512, 512)])
def test_a_number_of_positions_that_is_none_sets_no_limit(stated, positions):
    assert num_positions(t.LlamaConfig(max_position_embeddings=stated)) == positions
    assert num_positions(t.GPT2Config(n_positions=stated)) == positions
