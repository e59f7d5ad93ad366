"""The dimensions of a model."""

from __future__ import annotations

import pytest

from sft.configuration.schema import LoRAConfig
from sft.modeling.footprint import footprint
from sft.modeling.text_adapters import add_text_adapters
from tests.support.architectures import build_architecture
from tests.support.small_models import VOCABULARY, build_model


def test_footprint_counts_parameters():
    model = build_model("llama")
    size = footprint(model)
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.num_trainable_parameters == size.num_parameters
    assert size.head_size == model.config.head_dim
    assert (size.hidden_size, size.num_layers, size.vocab_size) == (32, 2, VOCABULARY)


@pytest.mark.parametrize(("name", "intermediate", "head"), [("gemma3n", 64, 8), ("gemma4", 64, 16)])
def test_the_largest_layer_counts_where_layers_differ(name, intermediate, head):
    found = footprint(build_architecture(name))
    assert (found.intermediate_size, found.head_size) == (intermediate, head)


def test_stacked_experts_are_counted_and_the_copies_that_their_adapters_make():
    model = build_architecture("mixtral")
    stacks = 2 * 4 * (3 * 32 * 64)  # layers, experts, gate, up and down
    plain = footprint(model)
    assert (plain.num_stacked_parameters, plain.adapted_stack_bytes) == (stacks, 0)
    assert plain.stacked_rank_parameters == 2 * 4 * ((2 * 64 + 32) + (32 + 64))
    adapted = footprint(add_text_adapters(model, LoRAConfig(r=3)))
    assert (adapted.num_stacked_parameters, adapted.adapted_stack_bytes) == (stacks, 4 * stacks)
    only = footprint(
        add_text_adapters(build_architecture("mixtral"), LoRAConfig(r=3, target_parameters=["experts.down_proj"]))
    )
    assert only.adapted_stack_bytes == 4 * stacks // 3
    assert footprint(build_model("llama")).num_stacked_parameters == 0
