"""Fixtures of the tests of prompting."""

import pytest

from tests.support.chat_templates import MARKERS
from tests.support.prompts import build_special_tokenizer
from tests.support.small_models import build_tokenizer


@pytest.fixture(scope="session")
def data_tokenizer():
    return build_special_tokenizer()


@pytest.fixture
def data_with_template(data_tokenizer):
    def build(template):
        data_tokenizer.chat_template = template
        return data_tokenizer

    yield build
    data_tokenizer.chat_template = None


@pytest.fixture(scope="module")
def tokenizers():
    """One that knows the templates' markers as special tokens, and one that does not."""
    own = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    knowing, other = build_tokenizer(None, **own), build_tokenizer(None, **own)
    knowing.add_special_tokens({"additional_special_tokens": MARKERS})
    return {"known": knowing, "unknown": other}


@pytest.fixture(params=["known", "unknown"])
def tokenizer_with(request, tokenizers):
    """A tokenizer by its template; all of them knowing its markers, or not."""

    def build(template):
        tokenizer = tokenizers[request.param]
        tokenizer.chat_template = template
        return tokenizer

    return build
