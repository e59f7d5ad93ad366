"""Loading a model: its types, quantized weights, and files that are refused."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig, QuantizationConfig, TrainingConfig
from sft.modeling.experts import stacked_experts
from sft.modeling.loading import load_pretrained_model
from sft.modeling.precision import resolve_precision
from tests.support import messages
from tests.support.architectures import build_architecture
from tests.support.small_models import build_model

CPU = DistributedContext()
FLOAT32 = Precision(weights="float32", mixed="no")


def test_load_model_trains_float32_whatever_the_checkpoint_holds(tmp_path):
    build_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    precision = resolve_precision(config, TrainingConfig(), CPU, adapters_only=False)
    model = load_pretrained_model(config, None, None, precision, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_load_model_refuses_weights_that_lack_a_layer(tmp_path):
    model = build_model("llama")
    model.save_pretrained(tmp_path)
    model.config.num_hidden_layers = 3
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=messages.LACKS_TENSORS.format(count=9, names="model.layers.2")):
        load_pretrained_model(ModelConfig(model_name_or_path=str(tmp_path)), None, None, FLOAT32, CPU)


def test_load_model_reports_a_damaged_file_in_one_line(tmp_path):
    build_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=f"model.safetensors: {messages.CANNOT_BE_READ}"):
        load_pretrained_model(ModelConfig(model_name_or_path=str(tmp_path)), None, None, FLOAT32, CPU)


@pytest.mark.parametrize(("mixed", "kind"), [("bf16", "bfloat16"), ("no", "float32")])
def test_stacked_experts_are_not_quantized_which_is_said_before_loading(mixed, kind, tmp_path, caplog):
    pytest.importorskip("bitsandbytes")
    caplog.set_level("INFO", "sft")
    build_architecture("mixtral").save_pretrained(tmp_path)
    config, precision = ModelConfig(model_name_or_path=str(tmp_path)), Precision(weights="bfloat16", mixed=mixed)
    model = load_pretrained_model(config, LoRAConfig(r=2), QuantizationConfig(load_in_4bit=True), precision, CPU)
    assert {str(weight.dtype) for weight in stacked_experts(model).values()} == {f"torch.{kind}"}
    expected = f"(60.4% of the parameters) are stacked in single parameters and stay in {kind}: 0.00 GiB."
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("sft")]
    assert expected in lines[0]  # before any other line, and so before the weights are read
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed == "bf16"):
        model(input_ids=torch.arange(3, 40)[None]).logits.square().mean().backward()
    assert all(w.grad is not None and w.grad.any() for n, w in model.named_parameters() if ".lora_B." in n)


def test_a_dense_model_in_4_bits_says_nothing_about_experts(model_folder, caplog):
    pytest.importorskip("bitsandbytes")
    caplog.set_level("INFO", "sft")
    config = ModelConfig(model_name_or_path=model_folder("llama"))
    load_pretrained_model(config, LoRAConfig(r=2), QuantizationConfig(load_in_4bit=True), FLOAT32, CPU)
    assert "bitsandbytes" not in caplog.text


def test_load_model_in_4_bits_has_gradients_after_an_evaluation(model_folder):
    """Where the CPU has AVX512-BF16, bitsandbytes would repack the weights at the first evaluation."""
    config = ModelConfig(model_name_or_path=model_folder("llama"))
    model = load_pretrained_model(
        config, LoRAConfig(r=4), QuantizationConfig(load_in_4bit=True), FLOAT32, DistributedContext()
    )
    ids = torch.arange(1, 9).view(1, -1)
    model.eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
    model.train()
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits.detach(), before)
    logits.square().mean().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
