"""A term of the model's own loss that training leaves out is reported; a model without one is not."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from sft.modeling.extra_loss import untrained_loss_line
from tests.support import messages
from tests.support.small_models import ARCHITECTURES, build_model

SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BUILDERS = {
    "mixtral": lambda **router: t.MixtralForCausalLM(t.MixtralConfig(**SIZE, num_local_experts=4, **router)),
    "qwen3": lambda **router: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**SIZE, head_dim=8, num_experts=4, moe_intermediate_size=16, **router)
    ),
    "granite": lambda **router: t.GraniteMoeForCausalLM(t.GraniteMoeConfig(**SIZE, num_local_experts=4, **router)),
    "olmoe": lambda **router: t.OlmoeForCausalLM(t.OlmoeConfig(**SIZE, num_experts=4, **router)),
    "gpt-oss": lambda **router: t.GptOssForCausalLM(t.GptOssConfig(**SIZE, head_dim=8, num_local_experts=4, **router)),
}


@pytest.mark.parametrize(("asks", "coefficient"), [(True, 0.02), (True, 0.001), (True, 0.0), (False, 0.02)])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_router_loss_that_config_json_asks_for_is_reported(name, asks, coefficient):
    torch.manual_seed(0)
    line = untrained_loss_line(BUILDERS[name](output_router_logits=asks, router_aux_loss_coef=coefficient).train())
    assert (line is not None) == (asks and coefficient > 0)
    if line is not None:
        assert messages.ROUTER_LOSS.format(coefficient=coefficient) in line
        assert messages.LOSS_NOT_TRAINED in line
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "not shifted"])
def test_a_loss_without_another_term_is_not_reported(name, dtype):
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    model = (
        t.BartForCausalLM(t.BartConfig(vocab_size=200, d_model=32, encoder_layers=1, decoder_layers=1, **heads))
        if name == "not shifted"
        else build_model(name)
    )
    assert untrained_loss_line(model.to(dtype)) is None


def test_another_term_is_reported_without_a_name():
    model = build_model("llama")
    original = model.forward

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        if output.loss is not None:
            output.loss = output.loss + output.logits.float().logsumexp(-1).square().mean()  # a z-loss
        return output

    model.forward = forward
    line = untrained_loss_line(model)
    assert messages.ANOTHER_LOSS in line
    assert messages.LOSS_NOT_TRAINED in line


def test_a_router_loss_that_the_model_cannot_compute_is_reported_by_its_configuration():
    model = build_model("llama")
    model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.01
    expected = "config.json asks for a router loss (router_aux_loss_coef: 0.01). It is not trained: "
    assert untrained_loss_line(model).startswith(expected)
