"""Mixtures of sources by weight and by probability."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from data_handler import prepare_data
from sft.common.errors import ConfigError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.checks import find_problems
from sft.data.mixtures import drawn_sources
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


def test_drawn_sources_end_with_the_last_row_of_a_source():
    generator = np.random.default_rng(0)
    for _ in range(300):
        sizes = generator.integers(1, 50, generator.integers(1, 5)).tolist()
        probabilities = generator.dirichlet(np.ones(len(sizes)) * 5).tolist()
        seed = int(generator.integers(100))
        first = drawn_sources(probabilities, sizes, seed=seed, all_exhausted=False)
        every = drawn_sources(probabilities, sizes, seed=seed, all_exhausted=True)
        assert every[: len(first)].tolist() == first.tolist()
        for drawn, is_enough in ((first, any), (every, all)):
            counts = np.bincount(drawn, minlength=len(sizes))
            assert is_enough(counts >= sizes)
            counts[drawn[-1]] -= 1
            assert not is_enough(counts >= sizes)


def test_drawn_sources_have_the_probabilities_and_leave_out_sources_without_rows():
    drawn = drawn_sources([0.6, 0.1, 0.3], [60_000, 60_000, 0], seed=1, all_exhausted=False)
    counts = Counter(drawn.tolist())
    assert counts[0] == 60_000
    assert counts[1] / counts[0] == pytest.approx(1 / 6, rel=0.05)
    assert counts[2] == 0
    with pytest.raises(
        ConfigError, match=r"^datasets_stop: all_exhausted needs about 10,000,000,000 rows .*datasets\[1\]"
    ):
        drawn_sources([1 - 1e-9, 1e-9], [5, 10], seed=1, all_exhausted=True)


@pytest.fixture
def drawn_config(tmp_path):
    files = [
        write(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("a", pairs(30)), ("b", pairs(60, 100)), ("c", pairs(400, 200)))
    ]
    sources = [DatasetSource(path=path, probability=share) for path, share in zip(files, (0.5, 0.3, 0.2), strict=True)]
    return DataConfig(datasets=sources)


def source_of(answer):
    return "abc"[np.searchsorted([100, 200], int(answer[2:]), side="right")]


def test_prepare_draws_sources_by_probability(drawn_config, tokenizer):
    data = prepare(drawn_config, tokenizer)
    got = answers(tokenizer, data.train)
    counts = Counter(map(source_of, got))
    assert counts["a"] == 30
    assert len(set(got)) == len(got)
    assert source_of(got[-1]) == "a"
    assert [int(answer[2:]) for answer in got if source_of(answer) == "a"] == list(range(30))
    assert [source.rows_an_epoch for source in data.report.train.sources] == [counts[name] for name in "abc"]
    assert data.report.train.sources[0].share == "probability 0.5"
    longer = Counter(answers(tokenizer, prepare(replace(drawn_config, datasets_stop="all_exhausted"), tokenizer).train))
    assert len(longer) == 490
    assert max(longer[f"a {i}"] for i in range(30)) - min(longer[f"a {i}"] for i in range(30)) <= 1
    assert longer["a 0"] > 20


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("block_rows", [1, 300])
def test_a_stream_draws_sources_by_probability_and_resumes_anywhere(drawn_config, tokenizer, stop, block_rows):
    config = replace(drawn_config, datasets_stop=stop, streaming=True, shuffle_block_rows=block_rows)
    read = prepare(config, tokenizer).stream

    def stream(start, count, is_mine=lambda slots: slots >= 0):
        return [(slot.slot, *answers(tokenizer, slot.rows)) for slot in islice(read(start, is_mine), count)]

    whole = stream(0, 1500)
    assert [slot for slot, _ in whole] == list(range(1500))
    assert stream(701, 300) == whole[701:1001]
    halves = [stream(0, 400, lambda slots, rank=rank: slots % 2 == rank) for rank in range(2)]
    assert sorted(halves[0] + halves[1]) == whole[:800]
    got = [answer for _, answer in whole]
    counts = Counter(map(source_of, got))
    assert counts["a"] / 1500 == pytest.approx(0.5, abs=0.05)
    assert counts["b"] / 1500 == pytest.approx(0.3, abs=0.05)
    if block_rows == 1:
        of_a = [int(answer[2:]) for answer in got if source_of(answer) == "a"]
        assert of_a == [number % 30 for number in range(len(of_a))]
        of_b = [int(answer[2:]) - 100 for answer in got if source_of(answer) == "b"]
        last_a = [place for place, answer in enumerate(got) if answer == "a 29"]
        if stop == "all_exhausted":
            assert of_b == [number % 60 for number in range(len(of_b))]
        else:
            # A pass ends with the last row of the first source; then the others begin again, too.
            after = [next(a for a in got[place + 1 :] if source_of(a) == "b") for place in last_a[:-2]]
            assert set(after) == {"a 100"}


def test_a_source_of_which_nothing_can_be_drawn_is_a_problem(tmp_path, tokenizer):
    files = [write(tmp_path / "a.jsonl", pairs(3)), write(tmp_path / "b.jsonl", [{"question": "q", "answer": ""}])]
    sources = [DatasetSource(path=path, probability=0.5) for path in files]
    config = DataConfig(datasets=sources, on_bad_rows="skip", max_bad_row_share=1.0)
    report = prepare(config, tokenizer).report
    assert [source.rows_an_epoch for source in report.train.sources] == [3, 0]
    (problem,) = find_problems(report, config)
    assert problem.startswith("datasets[1].probability: none of the rows of ")
