"""Models inspected without their weights."""

from __future__ import annotations

import pytest
from transformers import T5Config

from sft.commands.init.model_inspection import inspect_model
from sft.common.errors import ModelError
from tests.support import messages


def test_inspect_model_counts_parameters_without_weights(model_folder):
    facts = inspect_model(model_folder("llama"))
    from tests.support.small_models import build_model

    assert facts.footprint.num_parameters == sum(p.numel() for p in build_model("llama").parameters())
    assert facts.context_length == 128
    with pytest.raises(ModelError, match=messages.pattern(messages.NO_MODEL_IN_FOLDER)):
        inspect_model(".")


def test_inspect_model_reports_a_missing_model():
    facts = inspect_model("nobody/nothing")
    assert facts.footprint is None
    assert messages.NOT_ON_HUB in facts.problem


def test_inspect_model_refuses_an_encoder_decoder_model(tmp_path):
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=messages.ENCODER_DECODER):
        inspect_model(str(tmp_path))
