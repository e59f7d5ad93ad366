"""Models inspected without their weights."""

from __future__ import annotations

import pytest
import transformers as t
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


ENCODERS = [
    t.BertConfig,
    t.RobertaConfig,
    t.XLMRobertaConfig,
    t.ElectraConfig,
    t.XLNetConfig,
    lambda: t.Gemma3TextConfig(hidden_size=64, head_dim=16, use_bidirectional_attention=True, num_hidden_layers=26),
]
DECODERS = [
    lambda: t.BertConfig(is_decoder=True),
    t.GPT2Config,
    t.GPTNeoConfig,
    lambda: t.GPTNeoXConfig(hidden_size=64, num_attention_heads=4),
    lambda: t.Gemma3TextConfig(hidden_size=64, head_dim=16),
    lambda: t.MambaConfig(hidden_size=64, num_hidden_layers=2),
    lambda: t.JambaConfig(hidden_size=64, intermediate_size=64, use_mamba_kernels=False),
]


@pytest.mark.parametrize("build", ENCODERS)
def test_inspect_model_refuses_a_model_that_is_not_causal(tmp_path, build):
    build().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"^model_name_or_path: .* {messages.NOT_CAUSAL}") as caught:
        inspect_model(str(tmp_path))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("build", DECODERS)
def test_inspect_model_accepts_causal_ones(tmp_path, build, caplog):
    build().save_pretrained(tmp_path)
    with caplog.at_level("INFO", "sft"):
        assert inspect_model(str(tmp_path)).footprint is not None
    assert messages.NOT_TRIED not in caplog.text
