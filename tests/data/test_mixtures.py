"""Mixtures of sources by weight."""

from data_handler import prepare_data
from sft.configuration.schema import DataConfig, DatasetSource
from tests.support.data_files import answers, pairs, prepare, write


def test_prepare_mixes_sources_by_weight(tmp_path, tokenizer):
    files = [
        write(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("a", pairs(4)), ("b", [*pairs(10, 100), "[]"]), ("c", pairs(3, 200)))
    ]
    weights = (2.0, 0.5, 1.0)
    sources = [DatasetSource(path=path, weight=weight) for path, weight in zip(files, weights, strict=True)]
    config = DataConfig(datasets=sources, on_bad_rows="skip")
    data = prepare(config, tokenizer)
    got = answers(tokenizer, data.train)
    assert sorted(got[:8]) == sorted(f"a {i}" for i in [0, 1, 2, 3] * 2)
    half = [int(answer[2:]) for answer in got[8:13]]
    assert (len(set(half)), half) == (5, sorted(half))
    assert set(half) < set(range(100, 110))
    assert got[13:] == ["a 200", "a 201", "a 202"]
    report = data.report.train
    assert [
        (source.name, source.rows_read, source.rows_used, source.rows_dropped, source.weight, source.rows_an_epoch)
        for source in report.sources
    ] == [
        (files[0], 4, 4, {}, 2.0, 8),
        (files[1], 11, 10, {"not_an_object": 1}, 0.5, 5),
        (files[2], 3, 3, {}, 1.0, 3),
    ]
    assert (report.rows_read, report.rows_used, report.duplicates) == (18, 17, 0)
    assert report.files == tuple(files)
    again = prepare_data(config, tokenizer, seed=0)
    assert answers(tokenizer, again.train) == got
    others = {tuple(answers(tokenizer, prepare_data(config, tokenizer, seed=seed).train)) for seed in range(6)}
    assert len(others) > 1


def test_prepare_reads_each_source_by_its_own_settings(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("some text\n")
    first = DatasetSource(
        path=write(tmp_path / "a.jsonl", [{"ask": f"q{i}", "reply": f"r{i}", "x": 1} for i in range(9)]),
        columns={"ask": "question", "reply": "answer"},
        max_rows=3,
    )
    second = DatasetSource(
        path=write(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "c", "text": "t"}]), format="text"
    )
    config = DataConfig(datasets=[first, second, DatasetSource(path=str(tmp_path / "c.txt"))])
    data = prepare(config, tokenizer)
    assert answers(tokenizer, data.train) == ["r0", "r1", "r2", "t", "some text"]
    assert [(s.format_name, s.rows_read, s.unused_columns) for s in data.report.train.sources] == [
        ("question_answer", 3, ("x",)),
        ("text", 1, ("completion", "prompt")),
        ("text", 1, ()),
    ]
