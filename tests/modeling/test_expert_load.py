"""How often experts are chosen: the same counts for padded rows, packed rows, shared prefixes and any batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft.batching.layout import FlatCollator, PaddedCollator, model_inputs
from sft.configuration.schema import LoRAConfig
from sft.modeling.document_attention import isolated_documents
from sft.modeling.expert_load import ExpertLoad
from sft.modeling.text_adapters import add_text_adapters
from tests.support.architectures import build_architecture
from tests.support.layouts import layout_of, random_rows
from tests.support.small_models import build_model


def rows_with_a_prefix():
    """Rows that begin alike, one of them without a supervised token, which must not count."""
    rows = random_rows(lengths=(40, 31, 33, 25))
    for row in rows:
        row["input_ids"][:12] = np.arange(5, 17)
        row["labels"][:12] = -100
    rows[3]["labels"][:] = -100
    return rows


def chosen_by_hand(model, rows):
    """The counts `[L, E]` of rows that are computed one by one, read from the router's logits."""
    logits = [
        model(input_ids=torch.tensor(row["input_ids"])[None], output_router_logits=True).router_logits
        for row in rows
        if (row["labels"][1:] != -100).any()
    ]
    top = [torch.cat(of_layer).topk(2, dim=-1).indices.flatten() for of_layer in zip(*logits, strict=True)]
    return torch.stack([torch.bincount(each, minlength=4) for each in top]).double()


def counted(model, collator, batches, attention=None):
    load = ExpertLoad(model, "cpu")
    with torch.no_grad(), isolated_documents(model, attention):
        for rows in batches:
            batch = collator(rows)
            with load.recorded() as chosen:
                model(**model_inputs(batch), use_cache=False)
            load.add(load.counts_of(chosen, batch))
    return load


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_counts_do_not_depend_on_the_layout(name):
    model, rows = build_architecture(name), rows_with_a_prefix()
    attention = layout_of(model).attention
    with torch.no_grad():
        expected = chosen_by_hand(model, rows)
    assert "shared_prefixes" in FlatCollator(0, shares_prefixes=True)(rows)
    for load in (
        counted(model, PaddedCollator(0), [rows]),
        counted(model, PaddedCollator(0), [rows[:1], rows[1:]]),
        counted(model, FlatCollator(0), [rows], attention),
        counted(model, FlatCollator(0, fixed_tokens=160), [rows], attention),
        counted(model, FlatCollator(0, shares_prefixes=True), [rows], attention),
    ):
        assert torch.equal(load.counts, expected)


def test_figures_of_each_layer():
    load = ExpertLoad(build_architecture("mixtral"), "cpu")
    load.add(torch.tensor([[6.0, 2.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64))
    first = {"layer": 0, "experts": 4, "max_share": 0.75, "min_share": 0.0, "dead": 2}
    second = {"layer": 1, "experts": 4, "max_share": 0.25, "min_share": 0.25, "dead": 0}
    assert load.metrics() == {
        "expert_max_share": 0.75,
        "expert_min_share": 0.0,
        "dead_experts": 2,
        "expert_load": [first, second],
    }


def test_layers_without_experts_are_skipped_and_adapters_change_nothing():
    model, rows = build_architecture("deepseek_v3"), random_rows()
    plain = counted(model, PaddedCollator(0), [rows])
    assert [each["layer"] for each in plain.metrics()["expert_load"]] == [1]
    adapted = counted(add_text_adapters(model, LoRAConfig(r=2)).eval(), PaddedCollator(0), [rows])
    assert torch.equal(adapted.counts, plain.counts)


@pytest.mark.parametrize("name", ["llama4", "llama"])
def test_models_whose_experts_receive_no_choice_have_no_figures(name):
    model = build_architecture(name) if name == "llama4" else build_model(name)
    assert counted(model, PaddedCollator(0), [random_rows()]).metrics() == {}
