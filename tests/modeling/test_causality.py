"""Models that see the tokens after a token are refused; causal ones of every kind are not."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from sft.common.errors import ModelError
from sft.modeling.causality import check_computes, check_is_causal
from sft.modeling.few_tokens import few_tokens
from tests.support import messages
from tests.support.small_models import ARCHITECTURES, build_model

SIZE = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SIZE, "intermediate_size": 48}
NOT_CAUSAL = {
    "bert": lambda: t.BertLMHeadModel(t.BertConfig(**ENCODER)),
    "roberta": lambda: t.RobertaForCausalLM(t.RobertaConfig(**ENCODER, max_position_embeddings=100)),
    "electra": lambda: t.ElectraForCausalLM(t.ElectraConfig(**ENCODER, embedding_size=32)),
    "xlnet": lambda: t.XLNetLMHeadModel(t.XLNetConfig(vocab_size=200, d_model=32, n_layer=2, n_head=4, d_inner=48)),
    "bidirectional by a setting": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**ENCODER, num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True)
    ),
    "bert in bfloat16": lambda: t.BertLMHeadModel(t.BertConfig(**ENCODER)).to(torch.bfloat16),
}
CAUSAL = {
    "decoder of bert": lambda: t.BertLMHeadModel(t.BertConfig(**ENCODER, is_decoder=True)),
    "recurrence": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2)),
    "overwrites its state": lambda: t.RwkvForCausalLM(
        t.RwkvConfig(vocab_size=200, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    ),
    "experts": lambda: t.MixtralForCausalLM(
        t.MixtralConfig(**ENCODER, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    ).to(torch.bfloat16),
    "vision": lambda: t.GitForCausalLM(
        t.GitConfig(**ENCODER, vision_config={**ENCODER, "image_size": 28, "patch_size": 14})
    ),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_model_that_sees_later_tokens_is_refused(name):
    torch.manual_seed(0)
    model = NOT_CAUSAL[name]().train()
    with pytest.raises(
        ModelError, match=f"^model_name_or_path: {type(model).__name__} {messages.NOT_CAUSAL}"
    ) as caught:
        check_is_causal(model)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*CAUSAL, *ARCHITECTURES])
def test_a_causal_model_is_accepted_and_unchanged(name, caplog):
    caplog.set_level("INFO", "sft")
    torch.manual_seed(0)
    model = (CAUSAL[name]() if name in CAUSAL else build_model(name)).train()
    check_is_causal(model)
    assert messages.NOT_TRIED not in caplog.text
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_a_model_that_cannot_be_tried_is_reported(caplog):
    caplog.set_level("INFO", "sft")
    model = build_model("llama")

    def forward(input_ids, **others):
        raise KeyError("pixel_values")

    model.forward = forward
    check_is_causal(model)
    assert messages.CAUSALITY_NOT_TRIED.format(error="'pixel_values'") in caplog.text


def test_few_tokens_are_different_and_none_is_special():
    model = build_model("llama")
    model.config.image_token_id = 31
    model.config.end_token_ids = [3, 10]
    tokens = few_tokens(model, 20)
    assert len(set(tokens)) == 20
    assert not {0, 2, 3, 10, 31} & set(tokens)


def test_a_model_in_main_memory_is_tried_without_the_kernels_of_a_package(caplog):
    def needs_gpu(*_, **__):
        raise RuntimeError("this kernel is for GPUs")

    t.AttentionInterface.register("needs_gpu", needs_gpu)
    caplog.set_level("INFO", "sft")
    model = build_model("llama")
    model.set_attn_implementation("needs_gpu")
    check_computes(model)
    check_is_causal(model)
    assert not caplog.messages
    assert model.config._attn_implementation == "needs_gpu"
