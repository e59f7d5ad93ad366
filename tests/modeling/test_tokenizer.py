"""Loading a tokenizer."""

from __future__ import annotations

import pytest

from sft.common.errors import ModelError
from sft.configuration.schema import ModelConfig
from sft.modeling.tokenizer import load_tokenizer
from tests.support import messages


def test_load_tokenizer_pads_with_the_end_token_where_there_is_no_pad(model_folder):
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=model_folder("gpt2")))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


@pytest.mark.parametrize("content", [None, "{}"])
def test_load_tokenizer_reports_missing_files_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert (messages.NO_CONFIG if content is None else "config.json: cannot be used") in str(caught.value)
