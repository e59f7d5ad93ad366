"""Leading tokens that rows share: found, computed once, without any effect on the results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from sft.batching.layout import FlatCollator, model_inputs
from sft.batching.prefixes import cut_into_pieces, find_owners
from sft.configuration.schema import LoRAConfig
from sft.modeling.adapters import add_adapters
from sft.modeling.document_attention import isolated_documents
from tests.support.layouts import assert_same, gradients, layout_of, padded_loss_and_gradients
from tests.support.small_models import ARCHITECTURES, build_model, with_random_adapters


def row(ids, first_target):
    """A row whose tokens from `first_target` on are trained."""
    ids = np.array(ids)
    return {"input_ids": ids, "labels": np.where(np.arange(len(ids)) < first_target, -100, ids)}


def rows(seed=0):
    """Two system prompts, shared by three and by two rows, and a row without one; with random contents."""
    generator = np.random.default_rng(seed)
    one, two = generator.integers(0, 400, 20), generator.integers(0, 400, 11)
    made = []
    for prefix, length in ((one, 9), (two, 15), (one, 4), ([], 30), (one, 22), (two, 3)):
        own = generator.integers(0, 400, length)
        made.append(row([*prefix, *own], len(prefix) + 2))
    return made


def test_find_owners_by_hand():
    alike = list(range(10, 20))
    made = [row([*alike, 1, 2, 3], 12), row([7] * 9, 5), row([*alike, 1, 4, 5], 12), row([*alike, 9], 10)]
    assert find_owners(made) == ([0, 1, 0, 0], [0, 0, 9, 9])  # the position that predicts the first target is not lent


def test_find_owners_shares_no_position_that_predicts_a_target():
    made = [row(list(range(30)), 9), row(list(range(30)), 25)]
    owners, borrowed = find_owners(made)
    assert (owners, borrowed) == ([0, 0], [0, 8])


@pytest.mark.parametrize(
    "made",
    [
        [row(range(20), 10)],
        [row(range(20), 10), row(range(1, 21), 10)],
        [row([*range(7), 8, 9], 8), row([*range(7), 9, 8], 8)],  # too few equal tokens
        [row(range(9), 5), row(range(9), 5)],
        [row([*range(9), *[1] * 600], 300), row([*range(9), *[2] * 600], 300)],  # saves too little
    ],
)
def test_find_owners_shares_nothing_where_it_saves_too_little(made):
    assert find_owners(made) == (list(range(len(made))), [0] * len(made))


def test_cut_into_pieces_by_hand():
    shared = cut_into_pieces([12, 5, 11], [0, 1, 0], [0, 0, 10])
    assert (shared.lengths, shared.order, shared.own) == ([10, 2, 5, 1], [0, 1, 2, 0, 3], [0, 1, 2, 4])


def test_flat_collator_lays_out_shared_tokens_once():
    alike = list(range(10, 20))
    batch = FlatCollator(0, shares_prefixes=True)([row([*alike, 1, 2, 3], 11), row([7, 8], 1), row([*alike, 4, 5], 11)])
    assert batch["input_ids"].tolist() == [[*alike, 1, 2, 3, 7, 8, 4, 5]]
    assert batch["position_ids"].tolist() == [[*range(13), 0, 1, 10, 11]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 13, 15, 27]
    assert batch["targets"].tolist() == [2, 3, 8, 5]
    assert batch["label_positions"].tolist() == [10, 11, 13, 15]
    squares, weights = 169 + 4 + 144, {"weight": 4.0, "weighted_rows": 0}
    assert batch["counts"] == {"rows": 3, "tokens": 27, "supervised": 4, "computed": 17, "squares": squares, **weights}


@pytest.mark.parametrize("with_adapters", [False, True])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "gpt2"])
def test_loss_and_gradients_equal_a_plain_padded_batch(architecture, with_adapters):
    model = build_model(architecture)
    if with_adapters:
        torch.manual_seed(1)
        model = add_adapters(model, LoRAConfig(r=4))
        with_random_adapters(model)
    expected = padded_loss_and_gradients(model, rows())
    layout = layout_of(model)
    batch = layout.collator(rows())
    assert batch["counts"]["computed"] == batch["counts"]["tokens"] - 2 * 20 - 11
    with isolated_documents(model, layout.attention):
        total = layout.output.loss_sum(model, model_inputs(batch), batch)
    loss = total / batch["counts"]["supervised"]
    loss.backward()
    assert_same((loss.detach(), gradients(model)), expected)


def test_a_documents_own_tokens_change_no_other_by_a_bit():
    model = build_model("llama").eval()
    layout = layout_of(model)
    before, after = rows(), rows()
    after[2]["input_ids"][-2] = (after[2]["input_ids"][-2] + 1) % 400
    batches = [layout.collator(batch) for batch in (before, after)]
    with torch.no_grad(), isolated_documents(model, layout.attention):
        scores = [model(**model_inputs(batch)).logits[0] for batch in batches]
    changed = (scores[0] != scores[1]).any(dim=1)
    ids = [batch["input_ids"][0] for batch in batches]
    place = int((ids[0] != ids[1]).nonzero())
    assert changed.nonzero().flatten().tolist() == [place, place + 1]


def test_prefixes_are_not_shared_where_dropout_would_be():
    shared = layout_of(build_model("llama"))
    assert shared.collator.shares_prefixes
    assert "for each row" not in shared.describe()
    adapted = add_adapters(build_model("llama"), LoRAConfig(r=4, lora_dropout=0.1))
    few = {"ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}
    # OPT's dropout is a function, which no module reveals.
    opt = transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=400, hidden_size=32, dropout=0.1, **few))
    for model in (build_model("gpt2"), adapted, opt):
        layout = layout_of(model)
        assert layout.is_padding_free
        assert not layout.collator.shares_prefixes
        assert "shared leading tokens are computed for each row: with dropout" in layout.describe()
    for settings in ({"share_prefixes": False}, {"padding_free": False}):
        layout = layout_of(build_model("llama"), **settings)
        assert not getattr(layout.collator, "shares_prefixes", False)
        assert "leading tokens" not in layout.describe()
