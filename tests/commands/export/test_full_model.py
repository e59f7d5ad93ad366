"""Merging and writing: merged equals unmerged for all kinds of adapters, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sft.commands.export import full_model
from sft.commands.export.verification import (
    compare_logits,
    compute_logits,
)
from tests.support import messages
from tests.support.saved_models import IDS, save_adapters
from tests.support.small_models import ARCHITECTURES, build_model, build_tokenizer


def load(folder, adapters=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(model, adapters).eval() if adapters else model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_adapters_equal_unmerged_ones_up_to_float32_rounding(export, model_folder, tmp_path, architecture):
    base = model_folder(architecture)
    adapters = save_adapters(base, tmp_path / "adapters")
    status, out, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    assert messages.MERGED_INTO in out
    found, expected = compute_logits(load(output), IDS), compute_logits(load(base, adapters), IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (compute_logits(load(base), IDS) - expected).abs().max() > 0.01, "the adapters do something"
    assert not (output / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen2", {"target_modules": ["q_proj", "lm_head"]}),
        ("qwen2", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("gpt2", {"target_modules": ["c_attn", "wte"]}),
        ("llama", {"use_dora": True}),
        ("llama", {"use_rslora": True, "lora_alpha": 3}),
    ],
)
def test_heads_and_embeddings_are_exported_as_trained(export, model_folder, tmp_path, architecture, settings):
    """A tied head and its embedding are parted where adapters make them differ, and only there."""
    base = model_folder(architecture)
    adapters = save_adapters(base, tmp_path / "adapters", **settings)
    status, _, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    whole = load(output)
    torch.testing.assert_close(compute_logits(whole, IDS), compute_logits(load(base, adapters), IDS), rtol=0, atol=2e-5)
    touches = {"lm_head", "embed_tokens", "wte"} & {
        *settings.get("target_modules", []),
        *settings.get("modules_to_save", []),
    }
    assert whole.config.tie_word_embeddings == (architecture != "llama" and not touches)


def test_a_tied_head_stays_tied_where_adapters_leave_it_alone(export, model_folder, tmp_path):
    adapters = save_adapters(model_folder("qwen2"), tmp_path / "adapters")
    _, _, _, output = export(adapters, "--merge")
    from safetensors import safe_open

    with safe_open(output / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  (it is no mapping)


def test_added_tokens_keep_their_embeddings(export, model_folder, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(12)])
    adapters = save_adapters(
        model_folder("llama"),
        tmp_path / "adapters",
        tokenizer=tokenizer,
        modules_to_save=["embed_tokens", "lm_head"],
        target_modules=["q_proj"],
    )
    status, _, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    whole = load(output)
    assert whole.get_input_embeddings().num_embeddings == len(tokenizer) == whole.config.vocab_size
    from safetensors.torch import load_file

    trained = load_file(Path(adapters) / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(whole.get_input_embeddings().weight, trained)


def quantized_run(base: str, folder: Path, **quantization) -> str:
    """Adapters with the record of a run on a quantized base."""
    adapters = save_adapters(base, folder)
    record = {"model_name_or_path": base, "lora_config": {"r": 4}, "quantization_config": quantization}
    (folder / "resolved_config.yaml").write_text(json.dumps(record))
    return adapters


@pytest.mark.parametrize(
    ("architecture", "quantization"),
    [
        ("llama", {"load_in_4bit": True}),
        ("gpt2", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
        ("qwen2", {"load_in_8bit": True}),
    ],
)
def test_adapters_of_a_quantized_base_are_merged_into_the_dequantized_base(
    export, model_folder, tmp_path, architecture, quantization
):
    pytest.importorskip("bitsandbytes")
    base = model_folder(architecture)
    adapters = quantized_run(base, tmp_path / "run", **quantization)
    status, out, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    assert messages.DEQUANTIZED.format(bits=4 if "load_in_4bit" in quantization else 8) in out
    found = load(output)
    assert getattr(found.config, "quantization_config", None) is None
    status, _, err, plain = export(adapters, "--merge", "--dtype", "float32", "--no-load_in_4bit", name="plain")
    if "load_in_4bit" in quantization:  # the same adapters on the quantized base: a different model
        assert (status, err) == (0, "")
        assert compare_logits(compute_logits(found, IDS), compute_logits(load(plain), IDS)).relative_rms > 0.01


def flip_a_weight(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(folder, "model.safetensors")
    weights = load_file(path)
    weights[name].view(-1)[0] += 1
    save_file(weights, path, metadata={"format": "pt"})


def test_a_file_that_differs_from_what_was_written_is_refused(export, model_folder, tmp_path, monkeypatch):
    """A disk that loses one number, in the row of a token that no text holds."""
    save = full_model.save_final_model

    def save_on_a_bad_disk(model, tokenizer, folder):
        save(model, tokenizer, folder)
        flip_a_weight(Path(folder), "model.embed_tokens.weight")

    monkeypatch.setattr(full_model, "save_final_model", save_on_a_bad_disk)
    status, _, err, output = export(save_adapters(model_folder("llama"), tmp_path / "adapters"), "--merge")
    assert status == 2
    name = "model.embed_tokens.weight"
    assert messages.WEIGHTS_DIFFER.format(count=1, total=21, name=name) in err
    assert err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_differs_from_the_adapters_is_refused(export, model_folder, tmp_path, monkeypatch, dtype):
    """One adapter of fourteen counts a hundredth more than it should: less than what bfloat16 rounds away."""
    merge = full_model.merge_adapters

    def merge_wrongly(model):
        layer = next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp.up_proj"))
        layer.scaling["default"] *= 1.01
        return merge(model)

    monkeypatch.setattr(full_model, "merge_adapters", merge_wrongly)
    adapters = save_adapters(model_folder("llama"), tmp_path / "adapters")
    status, _, err, output = export(adapters, "--merge", "--dtype", dtype)
    assert status == 2
    assert messages.MERGED_INTO in err
    assert messages.ROUNDING in err
    assert messages.NOTHING_WRITTEN in err
    assert not output.exists()


def test_weights_that_float16_cannot_hold_are_refused(export, tmp_path):
    model = build_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    build_tokenizer().save_pretrained(tmp_path / "large")
    status, _, err, output = export(str(tmp_path / "large"), "--dtype", "float16")
    assert status == 2
    large = messages.TOO_LARGE.format(dtype="float16", other="bfloat16")
    assert err == f"{large}{messages.NOTHING_WRITTEN}\n"
    assert not output.exists()


def test_adapters_that_are_not_weights_cannot_be_merged(export, model_folder, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load(model_folder("llama")), config).save_pretrained(tmp_path / "prompt")
    build_tokenizer().save_pretrained(tmp_path / "prompt")
    status, _, err, output = export(str(tmp_path / "prompt"), "--merge")
    assert status == 2
    assert messages.NOT_WEIGHTS.format(kind="PROMPT_TUNING") in err
    assert not output.exists()
