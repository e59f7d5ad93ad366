"""Tests of the tiny chat model, its generator and the demo data in ``examples/``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = EXAMPLES / "tiny-chat"
KEYS = ["item", "count", "colour", "day"]


def load(name: str) -> ModuleType:
    """Imports a script of the examples folder, which is no package."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def read_rows(split: str) -> list[dict]:
    """Reads one file of the demo data."""
    lines = (EXAMPLES / "data" / f"orders_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def torch_settings():
    """Puts back the process-wide settings that a build changes, for the sake of other tests."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_corpus_is_deterministic() -> None:
    corpus = load("tiny_corpus")
    first, again, other = (list(corpus.generate(200, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert {key for document in first for key in document} == {"text", "messages"}


def test_corpus_does_not_contain_the_demo_task() -> None:
    corpus = load("tiny_corpus")
    assert not any('"colour":' in str(document) or '"item":' in str(document) for document in corpus.generate(3_000, 7))


def test_smoke_build_is_loadable_and_deterministic(tmp_path: Path, torch_settings: None) -> None:
    build = load("build_tiny_model")
    for name in ("a", "b"):
        build.main(["--smoke", "--steps", "2", "--output_dir", str(tmp_path / name)])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert model.config.vocab_size == len(tokenizer)
    assert "{" not in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


def test_the_shipped_sentencepiece_file_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    path = tmp_path / "tokenizer.model"
    load("sentencepiece_file").write_sentencepiece_file(path, tokenizer.get_vocab(), tokenizer.all_special_tokens)
    assert path.read_bytes() == (MODEL / "tokenizer.model").read_bytes()
    generation = json.loads((MODEL / "generation_config.json").read_text(encoding="utf-8"))
    assert "max_new_tokens" not in generation  # fine-tunes inherit it, and other programs would cut their answers


def test_shipped_model_answers_in_prose_and_stops() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert 1e6 < model.num_parameters() < 3e6
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = read_rows("validation")[0]["messages"][:1]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = tokenizer.decode(output, skip_special_tokens=True)
    assert output[-1] == tokenizer.eos_token_id
    assert all(word in answer for word in ("three", "red apples", "Anna", "Friday"))
    assert "{" not in answer


def test_shipped_files_are_small() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 8 * 1024 * 1024


def test_chat_template_renders_literally() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>\u00e9"},
        {"role": "assistant", "content": "Hello!"},
    ]
    full = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi <b>\u00e9<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(turns, tokenize=False) == full
    prompt = tokenizer.apply_chat_template(turns[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHi <b>\u00e9<|im_end|>\n<|im_start|>assistant\n"
    # No token is added, and every byte comes back.
    assert tokenizer.decode(tokenizer(full)["input_ids"]) == full


def test_splits_do_not_overlap_and_hold_back_names() -> None:
    prompts = {}
    for split in ("train", "validation"):
        prompts[split] = [row["messages"][0]["content"] for row in read_rows(split)]
        assert len(set(prompts[split])) == len(prompts[split])
    assert not set(prompts["train"]) & set(prompts["validation"])
    unseen = load("make_demo_data").UNSEEN_NAMES
    assert not any(name in str(row) for row in read_rows("train") for name in unseen)


@pytest.mark.parametrize(("split", "size"), [("train", 2_000), ("validation", 200)])
def test_answers_are_json_with_the_same_keys(split: str, size: int) -> None:
    rows = read_rows(split)
    assert len(rows) == size
    for row in rows:
        roles = [turn["role"] for turn in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for turn in row["messages"][1::2]:
            assert list(json.loads(turn["content"])) == KEYS
    assert 0.05 <= sum(len(row["messages"]) > 2 for row in rows) / size <= 0.10


def test_shipped_data_is_what_the_script_makes(tmp_path: Path) -> None:
    load("make_demo_data").main(["--output_dir", str(tmp_path)])
    for split in ("train", "validation"):
        name = f"orders_{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (EXAMPLES / "data" / name).read_bytes()
