"""Folders of models that are odd in one place: they can be used, or one line names the folder and mostly the file."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.common.errors import UserError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig
from sft.modeling.answering import answer_prompt
from sft.modeling.fitting import fit_to_tokenizer, set_generation_defaults
from sft.modeling.loading import load_pretrained_model
from sft.modeling.saving import save_final_model
from sft.modeling.tokenizer import load_tokenizer
from sft.training.model_trials import ModelTrials
from tests.support import messages
from tests.support.paths import REPOSITORY

FLOAT32 = Precision(weights="float32", mixed="no")
SOURCE = REPOSITORY / "examples" / "tiny-chat"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json")
JSON_FILES = (*SETTINGS, "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
CONTENTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "cut": b'{"model_type": "llama", "hidden',
    "deep": b"[" * 50_000,
    "deep mapping": b'{"a":' * 50_000,
    "list": b"[]",
    "number": b"5",
    "null": b"null",
    "text": b'"x"',
    "digits": b'{"hidden_size": ' + b"9" * 5_000 + b"}",
}
VALUES = ("x", 5, -1, 0, 10**12, 1.5, None, True, [], {}, ["x"], {"a": 1}, [[[[]]]])
MORE_KEYS = {
    "config.json": "quantization_config auto_map text_config sliding_window torch_dtype rope_scaling id2label"
    " num_labels layer_types _attn_implementation attn_implementation output_hidden_states"
    " use_return_dict is_encoder_decoder return_dict transformers_weights base_model_tp_plan"
    " pruned_heads name_or_path tokenizer_class problem_type",
    "tokenizer_config.json": "chat_template auto_map extra_special_tokens padding_side truncation_side unk_token"
    " model_input_names pad_token bos_token additional_special_tokens added_tokens_decoder"
    " add_bos_token split_special_tokens model_max_length legacy use_fast init_inputs backend"
    " add_prefix_space tokenizer_file name_or_path max_length",
    "generation_config.json": "temperature top_p top_k num_beams do_sample max_length max_new_tokens min_length"
    " repetition_penalty no_repeat_ngram_size cache_implementation num_return_sequences penalty_alpha"
    " guidance_scale stop_strings suppress_tokens forced_eos_token_id bad_words_ids sequence_bias"
    " watermarking_config early_stopping use_cache cache_config compile_config"
    " prompt_lookup_num_tokens dola_layers return_dict_in_generate output_scores"
    " exponential_decay_length_penalty typical_p min_p eos_token_id pad_token_id custom_generate"
    " max_time",
    "special_tokens_map.json": "eos_token bos_token pad_token unk_token additional_special_tokens",
    "added_tokens.json": "x",
}


def use(folder: Path, saved: Path) -> None:
    """What every command does with a model's folder: load, try, generate, save."""
    config = ModelConfig(model_name_or_path=str(folder))
    tokenizer = load_tokenizer(config)
    model = load_pretrained_model(config, None, None, FLOAT32, DistributedContext())
    fit_to_tokenizer(model, tokenizer, 32, adapters_only=False)
    trials = ModelTrials(model, FLOAT32)
    trials.check_is_causal()
    trials.obstacle(None, 32)
    ends = set_generation_defaults(model, tokenizer, is_chat=bool(tokenizer.chat_template))
    answer_prompt(model, tokenizer, "a b", max_new_tokens=2, eos_token_ids=ends, add_special_tokens=True)
    save_final_model(model, tokenizer, str(saved))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model with few weights, in links: tests replace what they change."""
    path = tmp_path / "m"
    path.mkdir()
    for each in SOURCE.iterdir():
        (path / each.name).symlink_to(each)
    return path


def check(folder: Path) -> list[str]:
    """The problem of a folder; none if it can be used."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    try:
        use(folder, folder.parent / "saved")
    except UserError as error:
        (problem,) = error.problems
        assert "\n" not in problem
        assert str(folder) in problem or "chat_template" in problem, problem
        return [problem]
    return []


def replace(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", JSON_FILES)
def test_any_content_of_a_json_file(folder, name, content):
    replace(folder / name, CONTENTS[content])
    (problem,) = check(folder)
    assert str(folder / name) in problem


@pytest.mark.parametrize("name", [*JSON_FILES, WEIGHTS, "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_something_else_in_place_of_a_file(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir() if kind == "folder" else (folder / name).symlink_to("nowhere")
    assert name in check(folder)[0]


def _keys(document: Any, depth: int, prefix: tuple = ()) -> Iterator[tuple]:
    items = document.items() if isinstance(document, dict) else list(enumerate(document))[:1]
    for key, value in items:
        yield (*prefix, key)
        if depth and isinstance(value, dict | list):
            yield from _keys(value, depth - 1, (*prefix, key))


def _document(name: str) -> Any:
    path = SOURCE / name
    return json.loads(path.read_text()) if path.exists() else {}


def _paths(name: str) -> list[tuple]:
    own = list(_keys(_document(name), 2))[:200]
    return list(dict.fromkeys([*own, *((key,) for key in MORE_KEYS.get(name, "").split())]))


def _change(folder: Path, name: str, keys: tuple, value: Any) -> None:
    document = _document(name)
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    replace(folder / name, json.dumps(document))


SOME = [
    ("config.json", "hidden_size", "x"),
    ("config.json", "hidden_size", 64),
    ("config.json", "num_attention_heads", 3),
    ("config.json", "num_key_value_heads", 5),
    ("config.json", "rms_norm_eps", "x"),
    ("config.json", "max_position_embeddings", None),
    ("config.json", "vocab_size", -1),
    ("config.json", "intermediate_size", 10**12),
    ("config.json", "num_hidden_layers", 10**6),
    ("config.json", "num_hidden_layers", -1),
    ("config.json", "num_labels", 10**12),
    ("config.json", "sliding_window", 1.5),
    ("config.json", "hidden_act", "nope"),
    ("config.json", "pad_token_id", 1_000_000),
    ("config.json", "attention_dropout", 1.5),
    ("config.json", "dtype", "nope"),
    ("config.json", "dtype", ["x"]),
    ("config.json", "model_type", ["x"]),
    ("config.json", "architectures", 5),
    ("config.json", "quantization_config", "x"),
    ("config.json", "rope_parameters", {"rope_type": ["x"]}),
    ("config.json", "output_hidden_states", "x"),
    ("config.json", "sliding_window", ["x"]),
    ("config.json", "is_encoder_decoder", True),
    ("config.json", "id2label", [1]),
    ("tokenizer_config.json", "eos_token", 5),
    ("tokenizer_config.json", "model_max_length", "x"),
    ("tokenizer_config.json", "model_max_length", {}),
    ("tokenizer_config.json", "model_input_names", {}),
    ("tokenizer_config.json", "added_tokens_decoder", "x"),
    ("tokenizer_config.json", "tokenizer_class", [[]]),
    ("tokenizer_config.json", "tokenizer_class", "BertTokenizer"),
    ("tokenizer.json", "added_tokens", "x"),
    ("tokenizer.json", "model", {"type": "nope"}),
    ("generation_config.json", "min_length", [1]),
    ("generation_config.json", "penalty_alpha", 0.5),
    ("generation_config.json", "num_return_sequences", 4),
    ("generation_config.json", "suppress_tokens", 1.5),
    ("generation_config.json", "watermarking_config", "x"),
    ("generation_config.json", "cache_implementation", "nope"),
]


@pytest.mark.parametrize(("name", "key", "value"), SOME)
def test_a_value_that_cannot_be_used_is_one_line(folder, name, key, value):
    _change(folder, name, (key,), value)
    assert check(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("stop_strings", ["x"]), ("return_dict_in_generate", True), ("newer", [1]), ("repetition_penalty", 1.1)],
)
def test_generation_settings_that_can_be_used(folder, key, value):
    _change(folder, "generation_config.json", (key,), value)
    assert check(folder) == []


@pytest.mark.parametrize("value", [1e30, 10**30, None, 512])
def test_any_length_in_a_tokenizers_configuration(folder, value):
    _change(folder, "tokenizer_config.json", ("model_max_length",), value)
    assert check(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_FILES)
def test_every_value_of_every_key(folder, name):
    failures = []
    for keys, value in product(_paths(name), VALUES):
        try:
            _change(folder, name, keys, value)
            check(folder)
        except Exception as error:
            failures.append(f"{keys} = {value!r}: {error!r}"[:300])
    assert not failures


TENSORS = load_file(SOURCE / WEIGHTS)
FIRST = next(iter(TENSORS))


def _index(document: Any) -> Any:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / SHARD)
        replace(folder / INDEX, json.dumps(document))

    return change


def _tensors(change: dict[str, Any]) -> Any:
    def save(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        kept = {name: tensor for name, tensor in (TENSORS | change).items() if tensor is not None}
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    return save


def _bytes(name: str, content: Any) -> Any:
    def write(folder: Path) -> None:
        raw = (SOURCE / WEIGHTS).read_bytes()
        (folder / WEIGHTS).unlink()
        replace(folder / name, content(raw) if callable(content) else content)

    return write


MAP = dict.fromkeys(TENSORS, SHARD)
WEIGHT_FAULTS = {
    "missing": lambda folder: (folder / WEIGHTS).unlink(),
    "another shape": _tensors({FIRST: TENSORS[FIRST][:-1].clone()}),
    "no dimension": _tensors({FIRST: torch.tensor(1.0)}),
    "a tensor is missing": _tensors({FIRST: None}),
    "no tensor": _tensors(dict.fromkeys(TENSORS)),
    "cut in its header": _bytes(WEIGHTS, lambda raw: raw[:100]),
    "cut": _bytes(WEIGHTS, lambda raw: raw[: len(raw) // 2]),
    "of eight bytes": _bytes(WEIGHTS, lambda raw: raw[:8]),
    "with a huge header": _bytes(WEIGHTS, lambda raw: b"\xff" * 8 + raw[8:]),
    "empty": _bytes(WEIGHTS, b""),
    "pickled garbage": _bytes("pytorch_model.bin", b"garbage"),
    "pickled code": _bytes("pytorch_model.bin", pickle.dumps(Path("x"))),
    "empty pickle": _bytes("pytorch_model.bin", b""),
    "a shard is missing": _index({"metadata": {}, "weight_map": MAP | {FIRST: "model-00002-of-00002.safetensors"}}),
    "empty map": _index({"metadata": {}, "weight_map": {}}),
    "map as list": _index({"metadata": {}, "weight_map": []}),
    "map of numbers": _index({"metadata": {}, "weight_map": {FIRST: 5}}),
    "map of lists": _index({"metadata": {}, "weight_map": {FIRST: ["a"]}}),
    "no map": _index({"metadata": {}}),
    "no metadata": _index({"weight_map": MAP}),
    "metadata as text": _index({"metadata": "x", "weight_map": MAP}),
    "index as list": _index([]),
    "index as null": _index(None),
}


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_weights_that_cannot_be_used_are_one_line(folder, fault):
    WEIGHT_FAULTS[fault](folder)
    assert check(folder)


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda folder: _change(folder, "config.json", ("num_hidden_layers",), 2), "18 tensors"),
        (lambda folder: _change(folder, "config.json", ("num_hidden_layers",), 0), "36 tensors"),
        (_tensors({"further.weight": torch.ones(2)}), "1 tensor"),
    ],
    ids=["fewer layers", "no layers", "another tensor"],
)
def test_weights_that_the_model_does_not_have_are_reported(folder, caplog, change, number):
    change(folder)
    caplog.set_level(logging.INFO, logger="sft.model")
    load_pretrained_model(ModelConfig(model_name_or_path=str(folder)), None, None, FLOAT32, DistributedContext())
    assert f"{folder}: {messages.NOT_OF_THE_MODEL.format(number=number)}" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_weights_of_another_type_can_be_used(folder, dtype):
    _tensors({name: tensor.to(dtype) for name, tensor in TENSORS.items()})(folder)
    assert check(folder) == []
    shutil.rmtree(folder.parent / "saved")
