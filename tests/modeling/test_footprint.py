"""The dimensions of a model."""

from __future__ import annotations

import pytest

from sft.modeling.footprint import footprint
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
