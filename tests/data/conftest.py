"""Fixtures of the tests of data."""

import pytest

from sft.configuration.schema import DataConfig, DatasetSource
from tests.support.data_files import pairs, write
from tests.support.small_models import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def leaking(tmp_path):
    """Ten validation rows, of which the third and the ninth are also training rows."""
    train = [write(tmp_path / "a.jsonl", pairs(5, 100)), write(tmp_path / "b.jsonl", pairs(5, 200))]
    rows = pairs(10)
    rows[2] = {"question": "Q 201", "answer": " a  201"}
    rows[8] = pairs(1, 104)[0]
    return DataConfig(
        datasets=[DatasetSource(path=path) for path in train],
        validation_file=write(tmp_path / "v.jsonl", rows),
    )
