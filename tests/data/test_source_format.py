"""The record format of a source."""

import pytest

from sft.common.errors import DataError
from sft.configuration.schema import RECORD_FORMATS, DataConfig, DatasetSource
from sft.prompting.formats import FORMATS
from tests.support.data_files import pairs, prepare, write


def test_record_formats_of_the_settings_are_the_existing_ones():
    assert tuple(known.name for known in FORMATS) == RECORD_FORMATS


def test_prepare_refuses_a_format_whose_columns_are_not_there(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(1))
    config = DataConfig(datasets=[DatasetSource(path=file, format="alpaca")])
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer)
    assert caught.value.problems == (
        f"{file}: format alpaca needs the columns instruction, output. Found: answer, question. Rename yours with "
        "columns: {their_name: our_name}.",
    )
