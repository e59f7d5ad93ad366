"""RoPE that depends on the length of a row: a row in a batch is computed as alone, whatever the batch before it."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as t

from sft.batching.layout import model_inputs
from sft.modeling.document_attention import isolated_documents
from sft.modeling.rope_by_row import give_rows_their_own_rope, unknown_rope
from tests.support.layouts import layout_of, random_rows
from tests.support.small_models import build_model

LIMIT = 16
LENGTHS = (7, 40, 16, 17, 3, 29, 40)
SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 9.0, 40.0],
    "factor": 8.0,
    "original_max_position_embeddings": LIMIT,
}
BUILDERS = {
    "phi3": lambda: t.Phi3ForCausalLM(
        t.Phi3Config(
            **SIZE, max_position_embeddings=128, original_max_position_embeddings=LIMIT, rope_parameters={**LONG}
        )
    ),
    "longrope llama": lambda: t.LlamaForCausalLM(
        t.LlamaConfig(**SIZE, max_position_embeddings=128, rope_parameters={**LONG})
    ),
    "dynamic llama": lambda: t.LlamaForCausalLM(
        t.LlamaConfig(**SIZE, max_position_embeddings=LIMIT, rope_parameters={**DYNAMIC})
    ),
    "dynamic qwen2": lambda: t.Qwen2ForCausalLM(
        t.Qwen2Config(**SIZE, max_position_embeddings=LIMIT, rope_parameters={**DYNAMIC})
    ),
    "by type of layer": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(
            **SIZE,
            head_dim=8,
            max_position_embeddings=LIMIT,
            sliding_window=100,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {**DYNAMIC},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        )
    ),
}


def build(name):
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)  # so that attention matters
    return model


def alone(name, rows):
    """The loss sum of each row in a new model, by transformers alone."""
    losses, new = [], build(name)
    for row in rows:
        ids = torch.tensor(row["input_ids"])[None]
        with torch.no_grad():
            logits = copy.deepcopy(new)(input_ids=ids).logits[0]
        targets = torch.tensor(row["labels"])[1:]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum"))
    return torch.stack(losses)


def losses_of(model, layout, rows):
    batch = layout.evaluation_collator(rows)
    with isolated_documents(model, layout.attention), torch.no_grad():
        losses, _ = layout.output.losses_and_hits(model, model_inputs(batch), batch)
    return torch.zeros(len(rows)).index_add(0, batch["target_rows"], losses)


@pytest.mark.parametrize("padding_free", ["auto", False])
@pytest.mark.parametrize("name", BUILDERS)
def test_each_row_is_computed_as_alone(name, padding_free):
    rows, model = random_rows(lengths=LENGTHS), build(name)
    layout = layout_of(model, padding_free=padding_free)
    kind = "longrope" if name in ("phi3", "longrope llama") else "dynamic"
    assert layout.own_rope == f"{kind} beyond {LIMIT} tokens"
    assert layout.is_padding_free == (padding_free == "auto")
    expected = alone(name, rows)
    for _ in range(2):  # dynamic NTK keeps what it computed for the longest row
        torch.testing.assert_close(losses_of(model, layout, rows), expected, rtol=1e-5, atol=1e-3)
    one_by_one = torch.cat([losses_of(model, layout, [row]) for row in rows])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["phi3", "dynamic llama"])
def test_a_plain_batch_would_differ(name):
    """What the tests above would show without the hooks."""
    rows, model = random_rows(lengths=LENGTHS), build(name)
    layout = layout_of(model, padding_free=False)
    for module in model.modules():
        module._forward_hooks.clear()
    assert (losses_of(model, layout, rows) - alone(name, rows)).abs().max() > 0.05


def test_leading_tokens_are_not_shared():
    shared = {"share_prefixes": True}
    assert layout_of(build_model("llama"), **shared).collator.shares_prefixes
    layout = layout_of(build("dynamic llama"), **shared)
    assert not layout.collator.shares_prefixes
    assert "leading tokens are computed for each row: positions depend on the length" in layout.describe()


@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_changes_within_the_limit(name):
    model = build(name)
    assert give_rows_their_own_rope(model, LIMIT) is None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["phi3", "dynamic llama"])
def test_generation_is_that_of_the_model(name):
    prompts = [torch.arange(3, 3 + length)[None] for length in (5, 30)]  # the first one crosses the limit
    settings = {"max_new_tokens": 13, "do_sample": False, "eos_token_id": None}
    expected = [build(name).generate(prompt, **settings) for prompt in prompts]
    model = build(name)
    give_rows_their_own_rope(model, 64)
    for prompt, answer in zip(prompts, expected, strict=True):
        assert torch.equal(model.generate(prompt, **settings), answer)


@pytest.mark.parametrize(
    ("settings", "limit", "found"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 127, None),
        ({"rope_type": "dynamic", "factor": 2.0}, 129, "dynamic"),
        ({"type": "su", "original_max_position_embeddings": 16}, 64, "su"),
        ({"rope_type": "default"}, 1000, None),
        (None, 1000, None),
    ],
)
def test_rope_of_a_models_own_code_is_reported(settings, limit, found):
    model = build_model("llama")
    for module in model.modules():
        if hasattr(module, "rope_type"):
            del module.rope_type
    model.config.rope_parameters = settings
    assert unknown_rope(model, limit) == found
    assert unknown_rope(build("dynamic llama"), 1000) is None
