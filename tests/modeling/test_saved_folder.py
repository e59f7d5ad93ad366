"""Saved folders are read alike by transformers 5 and, under the earlier names, by other programs."""

from __future__ import annotations

import json

import pytest
import transformers
from transformers import AutoConfig, AutoTokenizer

from sft.modeling.saved_folder import finish_saved_folder, with_earlier_names, with_earlier_tokenizer
from sft.modeling.saving import save_final_model
from tests.support.paths import REPOSITORY
from tests.support.small_models import ARCHITECTURES, build_model, build_tokenizer

THETA = 500_000.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
SIZE = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
SIZE |= {"max_position_embeddings": 128, "pad_token_id": 0}


def saved(tmp_path, name: str, **options) -> tuple[dict, dict]:
    """config.json as transformers writes it, and as it is finished."""
    config = getattr(transformers, f"{name}Config")(**SIZE, **options)
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    finish_saved_folder(tmp_path, None)
    loaded = AutoConfig.from_pretrained(tmp_path)
    known = {key: value for key, value in (loaded.rope_parameters or {}).items() if key != "type"}
    assert known == config.rope_parameters
    after = json.loads((tmp_path / "config.json").read_text())
    assert {key: after[key] for key in before} == before  # nothing is taken away or changed
    return before, after


@pytest.mark.parametrize(
    "name", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Olmo2", "Granite", "SmolLM3"]
)
def test_rope_theta_stands_at_the_top_too(tmp_path, name):
    rope = {"rope_theta": THETA, "rope_type": "default"}
    before, after = saved(tmp_path, name, rope_parameters=rope)
    assert "rope_theta" not in before  # otherwise this is no longer needed
    assert (after["rope_theta"], after["rope_parameters"]) == (THETA, rope)
    assert "rope_scaling" not in after


@pytest.mark.parametrize(
    "scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 2.0}, LONG], ids=lambda x: x["rope_type"]
)
def test_scaling_stands_beside_it_under_its_earlier_name(tmp_path, scaling):
    _, after = saved(tmp_path, "Llama", rope_parameters={**scaling, "rope_theta": THETA})
    expected = {**scaling, **({"original_max_position_embeddings": 128} if scaling is LONG else {})}
    assert (after["rope_theta"], after["rope_scaling"]) == (THETA, expected)


def test_longrope_with_the_original_length_beside_it_has_its_three_earlier_entries(tmp_path):
    options = {"rope_parameters": {**LONG, "rope_theta": THETA}, "original_max_position_embeddings": 64}
    _, after = saved(tmp_path, "Phi3", **options)
    assert after["rope_scaling"] == {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def test_parts_of_heads_and_names_of_one_architecture(tmp_path):
    rope = {"rope_theta": THETA, "rope_type": "default", "partial_rotary_factor": 0.5}
    _, after = saved(tmp_path, "Phi", rope_parameters=rope)
    assert (after["rope_theta"], after["partial_rotary_factor"]) == (THETA, 0.5)
    assert "rotary_pct" not in after
    neox = with_earlier_names(json.loads(transformers.GPTNeoXConfig(rope_parameters=rope).to_json_string()))
    assert (neox["rotary_emb_base"], neox["rotary_pct"]) == (THETA, 0.5)


def test_parameters_by_kind_of_layer(tmp_path):
    kinds = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    kinds |= {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    _, after = saved(tmp_path, "Gemma3Text", rope_parameters=kinds, head_dim=8)
    assert (after["rope_theta"], after["rope_local_base_freq"]) == (1e6, 1e4)
    assert after["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    # This architecture would take the old entry for the parameters of all layers: so it is left out.
    _, other = saved(tmp_path, "ModernBertDecoder", rope_parameters=kinds)
    assert other["rope_theta"] == 1e6
    assert "rope_scaling" not in other


def test_nested_and_foreign_configurations():
    inner = {"rope_parameters": {"rope_theta": THETA, "rope_type": "default"}}
    assert with_earlier_names({"model_type": "unknown", **inner})["rope_theta"] == THETA
    assert with_earlier_names({"model_type": "x", "text_config": inner})["text_config"]["rope_theta"] == THETA
    kept = {"model_type": "llama", "rope_theta": 1.0, **inner}
    assert with_earlier_names(kept) == kept
    for config in ({}, {"model_type": "gpt2"}, {"rope_parameters": None}, {"rope_parameters": {}}):
        assert with_earlier_names(config) == config


def test_the_tokenizer_has_a_class_and_tokens_that_transformers_4_knows(tmp_path):
    tokenizer = build_tokenizer(eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"])
    tokenizer.save_pretrained(tmp_path)
    finish_saved_folder(tmp_path, tokenizer)
    entries = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert entries["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert entries["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in entries
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.extra_special_tokens == ["<|im_start|>"]
    text = "<|im_start|>user\nHello\n\n you 12"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    named = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<image>"}}
    assert with_earlier_tokenizer(named) == named


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_final_model_is_finished(tmp_path, architecture):
    model = build_model(architecture)
    save_final_model(model, build_tokenizer(), str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.get("rope_parameters")
    assert config.get("rope_theta") == (rope and rope["rope_theta"])
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == model.config.rope_parameters if rope else not rope


def test_the_sentencepiece_file_and_the_added_tokens_are_kept_for_llama_cpp(tmp_path):
    shipped = REPOSITORY / "examples" / "tiny-chat"
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    tokenizer.save_pretrained(tmp_path)
    finish_saved_folder(tmp_path, tokenizer)
    assert (tmp_path / "tokenizer.model").read_bytes() == (shipped / "tokenizer.model").read_bytes()
    entries = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert [token["content"] for token in entries["added_tokens_decoder"].values()] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert (entries["add_bos_token"], entries["add_prefix_space"]) == (False, False)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nHello  you\n\n12 Zoë<|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    finish_saved_folder(tmp_path, again)  # once more: nothing changes
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == entries


def test_every_save_is_finished():
    files = {path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "sft").rglob("*.py")}
    saving = sorted(path.name for path, text in files.items() if ".save_pretrained(" in text)
    # Two write into temporary folders.
    assert saving == ["generation_settings.py", "random_model.py", "saving.py"]
    text = (REPOSITORY / "sft" / "modeling" / "saving.py").read_text(encoding="utf-8")
    assert text.count("tokenizer.save_pretrained(") == text.count("    finish_saved_folder(") == 2
