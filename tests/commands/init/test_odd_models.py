"""Odd folders of models: a first configuration, or one line."""

from __future__ import annotations

import json

import pytest

from sft.commands.init.data_inspection import inspect_data
from sft.commands.init.model_inspection import inspect_model
from sft.common.errors import ModelError
from tests.support import messages
from tests.support.paths import REPOSITORY

SOURCE = REPOSITORY / "examples" / "tiny-chat"
ODD = [
    *(
        (key, value)
        for key in ("hidden_size", "vocab_size", "dtype", "eos_token_id")
        for value in ("x", [], {}, -1, None)
    ),
    ("architectures", 5),
    ("architectures", [5]),
    ("model_type", ["x"]),
    ("model_type", "of a newer version"),
    ("num_key_value_heads", 0),
    ("quantization_config", True),
    ("rope_parameters", [[]]),
    ("id2label", 5),
    ("max_position_embeddings", "x"),
]


@pytest.mark.parametrize(("key", "value"), ODD)
def test_any_value_in_a_config(tmp_path, key, value):
    config = json.loads((SOURCE / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        problem = inspect_model(str(tmp_path)).problem
    except ModelError as error:
        (problem,) = error.problems
        assert str(tmp_path) in problem
    assert "\n" not in problem


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"model": {"type": "nope"}}', "\0"])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ModelError, match=rf"tokenizer\.json: {messages.CANNOT_BE_READ}"):
        inspect_data(str(data), str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("content", ["", "[]", '{"eos_token": 5}', '{"model_max_length": "x"}', '{"chat_template": 5}'])
def test_a_tokenizer_configuration_that_cannot_be_used_gives_an_estimate(tmp_path, content):
    (tmp_path / "config.json").symlink_to(SOURCE / "config.json")
    (tmp_path / "tokenizer.json").symlink_to(SOURCE / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(content)
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    assert not inspect_data(str(data), str(tmp_path / "tokenizer.json")).are_tokens_counted
