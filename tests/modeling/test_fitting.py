"""Model and tokenizer adjusted to each other."""

from __future__ import annotations

import pytest

from sft.common.errors import ModelError
from sft.modeling.fitting import fit_to_tokenizer, set_generation_defaults
from sft.training.callbacks import SpecialTokensCallback
from tests.support import messages
from tests.support.small_models import VOCABULARY, build_model, build_tokenizer


def test_fit_to_tokenizer_refuses_rows_beyond_learned_positions():
    tokenizer = build_tokenizer()
    fit_to_tokenizer(build_model("gpt2"), tokenizer, 128, adapters_only=False)
    with pytest.raises(ModelError, match=messages.WRITE_LENGTH.format(length=128)):
        fit_to_tokenizer(build_model("gpt2"), tokenizer, 129, adapters_only=False)
    fit_to_tokenizer(build_model("llama"), tokenizer, 4096, adapters_only=False)  # rotary: allowed, and logged


def test_fit_to_tokenizer_adds_embeddings_for_new_tokens_or_refuses():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(VOCABULARY)])
    with pytest.raises(ModelError, match=messages.CANNOT_ADD_TOKENS):
        fit_to_tokenizer(build_model("llama"), tokenizer, 64, adapters_only=True)
    model = build_model("llama")
    fit_to_tokenizer(model, tokenizer, 64, adapters_only=False)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_set_generation_defaults_ends_answers_at_the_end_of_a_turn():
    plain = build_tokenizer(None, eos_token="<|endoftext|>")
    assert set_generation_defaults(build_model("llama"), plain, is_chat=False) == [0]
    # The template's end marker is another token than the tokenizer's end: both end an answer.
    two_ends = build_tokenizer(eos_token="<|endoftext|>", additional_special_tokens=["<|im_end|>"])
    model = build_model("llama")
    assert set_generation_defaults(model, two_ends, is_chat=True) == [2, 0]
    assert model.generation_config.eos_token_id == [2, 0]


def test_special_tokens_stay_as_the_base_has_them_unless_the_tokenizer_says_otherwise():
    model, tokenizer = build_model("llama"), build_tokenizer()
    assert tokenizer.bos_token_id is None
    model.config.eos_token_id = [5, 2]
    model.generation_config.bos_token_id = 0
    fit_to_tokenizer(model, tokenizer, 64, adapters_only=False)
    set_generation_defaults(model, tokenizer, is_chat=True)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, [5, 2], 0)
    assert (model.generation_config.bos_token_id, model.generation_config.max_new_tokens) == (0, None)
    other = build_tokenizer(eos_token="<|endoftext|>", bos_token="<|im_start|>")
    other.pad_token = "<|im_end|>"
    fit_to_tokenizer(model, other, 64, adapters_only=False)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 0, 2)


def test_what_trainer_changes_when_it_aligns_special_tokens_is_restored():
    model = build_model("llama")
    callback = SpecialTokensCallback(model)
    for configuration in (model.config, model.generation_config):  # as transformers 5.17 does
        configuration.bos_token_id = configuration.eos_token_id = None
    callback.on_train_begin(None, None, None)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id) == (0, 2, 2)
