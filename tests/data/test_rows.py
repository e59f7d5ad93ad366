"""Rows to tokens: what is trained, by the settings and by the rows themselves."""

from dataclasses import replace

import pytest

from sft.configuration.schema import DataConfig
from sft.data.rows import NOTE_FLAGS
from sft.prompting.turns import NOTES
from tests.support.data_files import TWO_TURNS, answers, prepare, write


def test_prepare_trains_all_turns_or_the_last(tmp_path, tokenizer):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [TWO_TURNS]))
    trained = {
        train_on: answers(tokenizer, prepare(replace(config, train_on=train_on), tokenizer).train)
        for train_on in ("all", "last")
    }
    assert trained == {"all": ["two<|im_end|>four"], "last": ["four"]}


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"weight": 0.0}], ids=str)
def test_prepare_does_not_train_excluded_turns(tmp_path, tokenizer, mark):
    def marked(*indices):
        return {"messages": [{**m, **mark} if i in indices else m for i, m in enumerate(TWO_TURNS["messages"])]}

    file = write(tmp_path / "a.jsonl", [marked(), marked(1), marked(3), marked(1, 3)])
    config = DataConfig(train_file=file, on_bad_rows="skip")
    data = prepare(config, tokenizer)
    assert answers(tokenizer, data.train) == ["two<|im_end|>four", "four", "two"]
    assert data.report.train.rows_dropped == {"no_answer": 1}
    last = prepare(replace(config, train_on="last"), tokenizer)
    assert answers(tokenizer, last.train) == ["four", "four"]
    assert last.report.train.rows_dropped == {"no_answer": 2}


def test_every_note_has_its_own_flag_bit():
    assert list(NOTE_FLAGS) == list(NOTES)
    assert sorted(NOTE_FLAGS.values()) == [8, 16, 32, 64]
