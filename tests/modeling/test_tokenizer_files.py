"""Tokenizers as models are published with: read, or refused with the package that reads them."""

from __future__ import annotations

import base64
import json

import pytest
import transformers as t

from sft.common.errors import ModelError
from sft.configuration.schema import ModelConfig
from sft.modeling import tokenizer_files
from sft.modeling.tokenizer import load_tokenizer
from tests.support.small_models import build_model, build_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]


def load(folder):
    return load_tokenizer(ModelConfig(model_name_or_path=str(folder)))


@pytest.fixture
def folder(tmp_path):
    config = build_model("llama").config
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, None
    config.save_pretrained(tmp_path)
    return tmp_path


def write_tekken(folder):
    """A token for each byte."""
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)
    ]
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL)]
    settings = {
        "pattern": r"[^\r\n\p{L}\p{N}]?[\p{L}]+|\p{N}| ?[^\s]+|\s+",
        "num_vocab_tokens": 256,
        "default_vocab_size": 256 + len(SPECIAL),
        "default_num_special_tokens": len(SPECIAL),
        "version": "v7",
    }
    content = {"config": settings, "vocab": vocabulary, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(content))


def test_a_tekken_file_is_read_with_the_special_tokens_of_config_json(folder, caplog):
    caplog.set_level("INFO", "sft")
    write_tekken(folder)
    tokenizer = load(folder)
    assert tokenizer("hi</s>")["input_ids"] == [ord("h") + len(SPECIAL), ord("i") + len(SPECIAL), 2]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert "those of config.json: bos <s>, eos </s>." in caplog.text


def test_an_ordinary_token_is_not_taken_for_the_end_of_text(folder):
    tokenizer = build_tokenizer()
    ordinary = tokenizer.convert_tokens_to_ids("a")
    config = t.AutoConfig.from_pretrained(folder)
    config.eos_token_id = ordinary
    config.save_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="no end-of-text token"):
        load(folder)


def test_a_tokenizer_of_mistral_common_is_replaced_by_a_fast_one(folder, monkeypatch, caplog):
    """mistral-common reads `tekken.json` where it is installed, without positions in the text."""
    caplog.set_level("INFO", "sft")
    write_tekken(folder)
    fast = t.AutoTokenizer.from_pretrained(folder)

    class MistralCommonBackend:
        is_fast = False
        eos_token_id = 2

        def __len__(self):
            return len(fast)

        def __call__(self, text):
            return {"input_ids": []}

    monkeypatch.setattr(t.AutoTokenizer, "from_pretrained", lambda *_, **__: MistralCommonBackend())
    assert load(folder).is_fast
    assert "is read by the tokenizers library, not by MistralCommonBackend" in caplog.text


@pytest.mark.parametrize(
    ("content", "package"),
    [(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "sentencepiece"), (b"IQ== 0\nIg== 1\n", "tiktoken")],
)
def test_the_package_that_a_file_needs_is_named(folder, monkeypatch, content, package):
    (folder / "tokenizer.model").write_bytes(content)
    monkeypatch.setattr(tokenizer_files, "is_installed", lambda _: False)
    with pytest.raises(ModelError, match=f"its tokenizer is a {package} file .*pip install {package}. Or set"):
        load(folder)
    build_tokenizer().save_pretrained(folder)
    assert load(folder).is_fast


def test_the_class_that_transformers_5_writes_is_read(folder):
    build_tokenizer().save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    assert load(folder).eos_token == build_tokenizer().eos_token
