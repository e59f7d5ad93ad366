"""A validation split held out of the training rows."""

import numpy as np

from data_handler import prepare_data
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.checks import find_problems
from tests.support.data_files import answers, pairs, prepare, write


def test_prepare_keeps_duplicates_on_one_side(tmp_path, tokenizer):
    rows = [row for i in range(40) for row in pairs(1, i) * (1 + i % 3)]
    order = np.random.default_rng(1).permutation(len(rows))
    file = write(tmp_path / "a.jsonl", [*(rows[i] for i in order), "[]", "[]"])
    for seed in range(5):
        config = DataConfig(train_file=file, validation_split=0.25, on_bad_rows="skip")
        data = prepare_data(config, tokenizer, seed=seed)
        train, held = set(answers(tokenizer, data.train)), set(answers(tokenizer, data.validation))
        assert not train & held
        assert len(train | held) == 40
        assert data.report.leakage == 0
        assert find_problems(data.report, config) == []
        report = data.report
        assert (report.validation.rows_read, report.validation.rows_used, report.validation.rows_dropped) == (
            20,
            20,
            {},
        )
        assert (report.train.rows_read, report.train.rows_used) == (61, 59)
        assert report.rows_read == 81
        assert report.train.duplicates + report.validation.duplicates == 79 - 40


def test_prepare_holds_out_rows_before_applying_weights(tmp_path, tokenizer):
    sources = [
        DatasetSource(path=write(tmp_path / "a.jsonl", pairs(10)), weight=3.0),
        DatasetSource(path=write(tmp_path / "b.jsonl", pairs(10, 100))),
    ]
    data = prepare(DataConfig(datasets=sources, validation_split=0.5), tokenizer)
    held = answers(tokenizer, data.validation)
    assert (len(held), len(set(held))) == (10, 10)
    trained = answers(tokenizer, data.train)
    assert not set(trained) & set(held)
    first = data.report.train.sources[0]
    assert first.rows_an_epoch == 3 * first.rows_used
    assert [source.rows_used for source in data.report.validation.sources] == [10 - first.rows_used, first.rows_used]
