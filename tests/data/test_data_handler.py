"""From files to counted, masked datasets: every row is used, or dropped with a reason."""

import gzip
import json
import logging
import random
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_handler import prepare_data
from sft.common.errors import ConfigError, DataError
from sft.configuration.schema import DataConfig
from sft.data.checks import bad_row_lines, find_problems
from sft.data.sources.streams import zstd
from tests.support import messages

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def data_backend():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is four", "what is the question"] * 4, trainer)
    return tokenizer


@pytest.fixture
def data_tokenizer(data_backend):
    """A base model's tokenizer: no chat template, the pad token is the end of text."""
    return PreTrainedTokenizerFast(tokenizer_object=data_backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture
def data_chat_tokenizer(data_tokenizer):
    data_tokenizer.chat_template = CHATML
    return data_tokenizer


def _write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def _pairs(count, **more):
    return [{"question": f"q{i}", "answer": f"a{i}", **more} for i in range(count)]


def _trained(tokenizer, dataset):
    return [tokenizer.decode([token for token in row["labels"] if token != -100]) for row in dataset]


def _prompted(tokenizer, dataset):
    return [
        tokenizer.decode([i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100])
        for row in dataset
    ]


def _assert_counted(report):
    for split in report.splits.values():
        assert split.rows_read == split.rows_used + sum(split.rows_dropped.values())
        assert split.rows_read == sum(source.rows_read for source in split.sources)
        assert split.rows_used == sum(source.rows_used for source in split.sources)
        assert split.num_dropped == sum(sum(source.rows_dropped.values()) for source in split.sources)
        named = Counter(row.problem.reason for row in split.dropped_examples)
        assert named == {reason: min(count, 10) for reason, count in split.rows_dropped.items()}


def test_prepare_data_gives_literal_ids_and_labels(tmp_path, data_chat_tokenizer):
    file = _write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    row = prepare_data(DataConfig(train_file=file), data_chat_tokenizer, seed=0).train[0]
    line_end, a, b = data_chat_tokenizer.convert_tokens_to_ids(["Ċ", "a", "b"])
    u = data_chat_tokenizer("user", add_special_tokens=False)["input_ids"]
    s = data_chat_tokenizer("assistant", add_special_tokens=False)["input_ids"]
    assert row["input_ids"].tolist() == [2, *u, line_end, a, 3, line_end, 2, *s, line_end, b, 3, line_end]
    assert row["labels"].tolist() == [-100] * (len(row["input_ids"]) - 3) + [b, 3, -100]
    assert (row["input_ids"].dtype, row["labels"].dtype) == (np.int32, np.int32)


def test_prepare_data_gives_a_base_model_the_plain_template(tmp_path, data_tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="sft.data")
    data = prepare_data(DataConfig(train_file=_write(tmp_path / "a.jsonl", _pairs(2))), data_tokenizer, seed=0)
    assert _trained(data_tokenizer, data.train) == ["a0</s>", "a1</s>"]
    assert _prompted(data_tokenizer, data.train)[0] == "User:\nq0\n\nAssistant:\n\n\n"
    assert messages.PLAIN_TEMPLATE.format(end="</s>") in caplog.text


def test_prepare_data_trains_every_token_of_text(tmp_path, data_chat_tokenizer):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    data = prepare_data(DataConfig(train_file=str(tmp_path / "a.txt")), data_chat_tokenizer, seed=0)
    assert [row["labels"].tolist() for row in data.train] == [row["input_ids"].tolist() for row in data.train]
    assert _trained(data_chat_tokenizer, data.train) == ["one</s>", " two </s>"]
    assert data.sample_prompts[0].text == "one"


def test_prepare_data_of_text_does_not_use_the_chat_template(tmp_path, data_tokenizer):
    data_tokenizer.chat_template = "{{ broken"
    (tmp_path / "a.txt").write_text("one\n")
    assert prepare_data(DataConfig(train_file=str(tmp_path / "a.txt")), data_tokenizer, seed=0).report.rows_used == 1


def test_prepare_data_logs_used_files_and_unused_columns(tmp_path, data_chat_tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="sft.data")
    rows = [
        {"instruction": "i", "output": "o", "system": "s", "source": "x"},
        {"instruction": "i", "output": "o", "id": 1},
    ]
    file = _write(tmp_path / "a.jsonl", rows)
    prepare_data(DataConfig(train_file=file), data_chat_tokenizer, seed=0)
    assert [record.getMessage() for record in caplog.records] == [
        f"Train: {file}, read as instruction (+ input) + output.",
        "Train: unused columns: id, source.",
    ]


@pytest.mark.parametrize("ending", ["\\n", " ###\\n"])
def test_prepare_data_of_a_template_without_an_end_marker_trains_no_end(tmp_path, data_tokenizer, ending):
    data_tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + ending + "{% endfor %}"
    config = DataConfig(train_file=_write(tmp_path / "a.jsonl", _pairs(2)))
    data = prepare_data(config, data_tokenizer, seed=0)
    assert (data.report.rows_used, data.report.train.rows_with_trained_end) == (2, 0)
    assert find_problems(data.report, config) == [
        "the end token is never trained: the chat template writes no known end token after an answer in 2 train rows, "
        "so the model would not learn to stop. Set add_end_token to true, or choose another chat_template."
    ]


def test_prepare_data_adds_an_end_on_request(tmp_path, data_tokenizer):
    data_tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = DataConfig(train_file=_write(tmp_path / "a.jsonl", _pairs(2)), add_end_token=True)
    data = prepare_data(config, data_tokenizer, seed=0)
    assert [text[-4:] for text in _trained(data_tokenizer, data.train)] == ["</s>", "</s>"]
    assert find_problems(data.report, config) == []


def test_prepare_data_maps_columns(tmp_path, data_chat_tokenizer):
    rows = [{"query": "q", "reply": "r", "text": "t"}]
    config = DataConfig(
        train_file=_write(tmp_path / "a.jsonl", rows), dataset_columns={"query": "question", "reply": "answer"}
    )
    assert _trained(data_chat_tokenizer, prepare_data(config, data_chat_tokenizer, seed=0).train) == ["r<|im_end|>"]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"a": 1, "b": 2}], {}, r"its columns \(a, b\) match no known format\. Known formats: .*messages: "),
        (
            [{"asked": "q", "reply": "r"}],
            {"aksed": "question"},
            r"names the column 'aksed', which does not exist\. Columns: asked, reply\. Did you mean 'asked'",
        ),
        (
            [{"q": "x", "question": "y", "answer": "z"}],
            {"q": "question"},
            "both q and question are named 'question'. Choose",
        ),
        ([{"a": "x", "b": "z"}], {"a": "text", "b": "text"}, "both a and b are named 'text'. Choose one"),
        (
            ["[1]", "2"],
            {},
            r":1: expected an object with named fields, found a list\. No row of this source can be used",
        ),
        (["{}"], {}, r":1: an object without fields\. No row of this source can be used"),
        ([{f"c{i}": 1 for i in range(30)}], {}, r"c25, c26 and 10 more\) match no known format"),
    ],
)
def test_prepare_data_reports_why_columns_match_no_format(tmp_path, data_chat_tokenizer, rows, columns, message):
    config = DataConfig(train_file=_write(tmp_path / "a.jsonl", rows), dataset_columns=columns, on_bad_rows="skip")
    with pytest.raises(DataError, match=message) as caught:
        prepare_data(config, data_chat_tokenizer, seed=0)
    assert len(caught.value.problems) == 1


BAD = [
    {"question": "q", "answer": "a"},
    {"question": "q", "answer": ""},
    '{"question": "q", "answer"',
    {"question": "q", "answer": 4},
    {"question": "q"},
    "[]",
    {"question": "long " * 40, "answer": "a"},
    {"question": "q", "answer": "a\ud800"},
    {"question": "q", "answer": "b"},
]
REASONS = {
    "empty_answer": 1,
    "invalid_json": 1,
    "wrong_type": 1,
    "missing_field": 1,
    "not_an_object": 1,
    "nothing_left_after_truncation": 1,
    "not_unicode": 1,
}


def test_prepare_data_skips_and_counts_bad_rows(tmp_path, data_chat_tokenizer):
    file = _write(tmp_path / "a.jsonl", BAD)
    config = DataConfig(train_file=file, on_bad_rows="skip", max_seq_length=60)
    data = prepare_data(config, data_chat_tokenizer, seed=0)
    report = data.report.train
    assert (report.rows_read, report.rows_used, report.rows_dropped) == (9, 2, REASONS)
    assert [row.source.line for row in report.dropped_examples] == [2, 3, 4, 5, 6, 7, 8]
    assert _trained(data_chat_tokenizer, data.train) == ["a<|im_end|>", "b<|im_end|>"]
    _assert_counted(data.report)


def test_bad_row_lines_give_the_location_of_each_row(tmp_path, data_chat_tokenizer):
    file = _write(tmp_path / "a.jsonl", BAD)
    config = DataConfig(train_file=file, max_seq_length=60)
    report = prepare_data(config, data_chat_tokenizer, seed=0).report
    assert bad_row_lines(report, config) == [
        f"{file}:2: {messages.EMPTY_ANSWER}.",
        f"{file}:3: invalid JSON, expecting ':' delimiter at column 27 (invalid_json).",
        f"{file}:4: 'answer' must be text, found a number (wrong_type).",
        f"{file}:5: no field 'answer'; fields: question (missing_field).",
        f"{file}:6: expected an object with named fields, found a list (not_an_object).",
        f"{file}:7: its 219 tokens are truncated to max_seq_length 60, before the answer begins "
        "(nothing_left_after_truncation).",
        f"{file}:8: 'answer' {messages.UNPAIRED_SURROGATE}.",
    ]
    assert find_problems(report, config) == [
        "7 of 9 train rows cannot be used (1 empty_answer, 1 invalid_json, 1 wrong_type, 1 missing_field, "
        "1 not_an_object, 1 nothing_left_after_truncation, 1 not_unicode). Fix them, raise max_seq_length, or "
        "set on_bad_rows to skip, which drops and counts them. To skip 77.8% of the rows, raise max_bad_row_share "
        "(now 0.1), too."
    ]


def test_bad_row_lines_are_the_first_ten(tmp_path, data_chat_tokenizer):
    file = _write(tmp_path / "a.jsonl", [*_pairs(1), *["nonsense"] * 25])
    config = DataConfig(train_file=file)
    report = prepare_data(config, data_chat_tokenizer, seed=0).report
    lines = bad_row_lines(report, config)
    assert [line.split(":")[1] for line in lines[:-1]] == ["2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert lines[-1] == "... and 15 more."
    assert find_problems(report, config) == [
        "25 of 26 train rows cannot be used (25 invalid_json). Fix them, or set on_bad_rows to "
        "skip, which drops and counts them. To skip 96.2% of the rows, raise max_bad_row_share (now 0.1), too."
    ]


def test_find_problems_of_data_without_usable_rows(tmp_path, data_chat_tokenizer):
    file = _write(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}, {"question": "q", "answer": None}])
    config = DataConfig(train_file=file, on_bad_rows="skip")
    data = prepare_data(config, data_chat_tokenizer, seed=0)
    assert (len(data.train), data.sample_prompts) == (0, ())
    assert find_problems(data.report, config) == [
        f"{file}: none of its 2 rows can be used, so there is no supervised token: 2 empty_answer."
    ]
    assert bad_row_lines(data.report, config) == []


def test_prepare_data_counts_tokens_and_truncated_rows(tmp_path, data_tokenizer):
    (tmp_path / "a.txt").write_text("xxxx\nxx\nxxxxxxx\n")
    config = DataConfig(train_file=str(tmp_path / "a.txt"), max_seq_length=5)
    report = prepare_data(config, data_tokenizer, seed=0).report.train
    assert (report.tokens, report.supervised_tokens, report.longest_row) == (13, 10, 5)
    assert (report.rows_too_long, report.rows_that_lose_the_end, report.rows_that_lose_only_prompt) == (1, 1, 0)


def test_prepare_data_splits_validation_off_by_seed(tmp_path, data_chat_tokenizer):
    file = _write(tmp_path / "a.jsonl", [*_pairs(20), "nonsense"])

    def split(seed):
        config = DataConfig(train_file=file, validation_split=0.25, on_bad_rows="skip")
        data = prepare_data(config, data_chat_tokenizer, seed=seed)
        _assert_counted(data.report)
        assert (data.report.rows_read, data.report.train.rows_read, data.report.validation.rows_read) == (21, 16, 5)
        return [_trained(data_chat_tokenizer, part) for part in (data.train, data.validation)]

    train, validation = split(1)
    assert sorted(train + validation) == sorted(f"a{i}<|im_end|>" for i in range(20))
    assert (train, validation) == tuple(split(1))
    assert validation != split(2)[1]
    kept = [int(text[1:].partition("<")[0]) for text in train]
    assert kept == sorted(kept)


def test_prepare_data_refuses_a_split_that_leaves_nothing(tmp_path, data_chat_tokenizer):
    config = DataConfig(train_file=_write(tmp_path / "a.jsonl", _pairs(3)), validation_split=0.1)
    with pytest.raises(DataError, match=messages.pattern(messages.NO_VALIDATION_ROWS, share=r"0\.1", rows=3)):
        prepare_data(config, data_chat_tokenizer, seed=0)


def test_prepare_data_reads_a_validation_file_in_another_format(tmp_path, data_chat_tokenizer):
    config = DataConfig(
        dataset_path=str(tmp_path),
        train_file=_write(tmp_path / "a.jsonl", _pairs(2)) and "a.jsonl",
        validation_file=_write(tmp_path / "b.jsonl", [{"input": "i", "output": "o"}]) and "b.jsonl",
    )
    data = prepare_data(config, data_chat_tokenizer, seed=0)
    assert (data.report.train.format_name, data.report.validation.format_name) == ("question_answer", "input_output")
    assert _trained(data_chat_tokenizer, data.validation) == ["o<|im_end|>"]
    assert data.sample_prompts[0].reference == "o"


def test_prepare_data_gives_the_same_from_several_processes(tmp_path, data_chat_tokenizer):
    rows = _pairs(5 * 512 + 1100)  # more chunks than are prepared without further processes
    rows[3] = rows[3600] = "nonsense"
    rows[512:3584:7] = [{"question": "q", "answer": ""}] * len(rows[512:3584:7])
    file = _write(tmp_path / "a.jsonl", rows)
    one, two = (
        prepare_data(
            DataConfig(
                train_file=file,
                on_bad_rows="skip",
                preprocessing_num_workers=workers,
                data_cache_dir=str(tmp_path / str(workers)),
            ),
            data_chat_tokenizer,
            seed=0,
        )
        for workers in (1, 2)
    )
    assert one.report == two.report
    assert [row["labels"].tolist() for row in one.train] == [row["labels"].tolist() for row in two.train]
    assert one.report.train.rows_dropped == {"invalid_json": 2, "empty_answer": 439}


def test_prepare_data_uses_given_prompts_as_turns_or_text(tmp_path, data_chat_tokenizer):
    chat = prepare_data(
        DataConfig(train_file=_write(tmp_path / "a.jsonl", _pairs(5))),
        data_chat_tokenizer,
        seed=0,
        sample_prompts=["x"],
    )
    assert [prompt.messages for prompt in chat.sample_prompts] == [({"role": "user", "content": "x"},)]
    first = prepare_data(DataConfig(train_file=str(tmp_path / "a.jsonl")), data_chat_tokenizer, seed=0).sample_prompts
    assert [(prompt.shown, prompt.reference) for prompt in first] == [("q0", "a0"), ("q1", "a1"), ("q2", "a2")]


@pytest.mark.parametrize(
    ("template", "message"),
    [("{% for %}", "chat_template: it cannot render"), ("hi", "chat_template: it does not write the assistant's")],
)
def test_prepare_data_refuses_a_broken_template_in_one_line(tmp_path, data_tokenizer, template, message):
    data_tokenizer.chat_template = template
    file = _write(tmp_path / "a.jsonl", _pairs(1))
    with pytest.raises(ConfigError, match=message):
        prepare_data(DataConfig(train_file=file), data_tokenizer, seed=0)


def test_prepare_data_refuses_a_tokenizer_without_offsets(tmp_path, data_chat_tokenizer, monkeypatch):
    monkeypatch.setattr(type(data_chat_tokenizer), "is_fast", False)
    with pytest.raises(ConfigError, match=messages.pattern(messages.NO_OFFSETS)):
        prepare_data(DataConfig(train_file="a.jsonl"), data_chat_tokenizer, seed=0)


VALUES = ["x", "", " ", None, 3, 10**400, True, [], {}, ["x"], {"text": ["x"]}, "\ud800", "\x00", "<|im_end|>", "<s>"]
VALUES += [
    [{"role": "assistant"}],
    [{"role": "user", "content": "x"}, {"from": "gpt", "value": "y"}],
    "[" * 5000,
    1e400,
]
SEEDS = {
    "messages": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "tools": []},
    "conversations": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    "alpaca": {"instruction": "do", "input": "this", "output": "done"},
    "squad": {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
    "text": {"text": "some text"},
    "tools": {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "5"},
            {"role": "assistant", "content": [{"type": "text", "text": "5"}]},
        ]
    },
}


def _mutated(value, choose):
    """The value with one part of it replaced, removed or doubled."""
    if isinstance(value, dict) and value and choose.random() < 0.8:
        key = choose.choice(list(value))
        changed = {**value, key: _mutated(value[key], choose)}
        if choose.random() < 0.1:
            del changed[key]
        return changed
    if isinstance(value, list) and value and choose.random() < 0.8:
        position = choose.randrange(len(value))
        changed = [*value[:position], _mutated(value[position], choose), *value[position + 1 :]]
        return changed + changed[:1] if choose.random() < 0.2 else changed
    return choose.choice(VALUES)


def _fuzzed_file(choose):
    """Name and bytes of a data file with broken values, broken bytes, or both."""
    name, seed = choose.choice(list(SEEDS.items()))
    rows = [_mutated(seed, choose) if choose.random() < 0.5 else seed for _ in range(5)]
    ending = choose.choice([".jsonl", ".json", ".csv", ".txt", ".json.gz", ".jsonl.zst"])
    if ending in (".jsonl", ".jsonl.zst", ".txt"):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif ending == ".csv":
        data = b"prompt,completion\n" + "".join(f'"{i}","{type(row)}"\n' for i, row in enumerate(rows)).encode()
    else:
        data = json.dumps(choose.choice([rows, {"data": rows}, rows[0]]), indent=choose.choice([None, 1])).encode()
    packed = {".gz": gzip.compress, ".zst": zstd.compress}.get(ending[-4:] if "zst" in ending else ending[-3:])
    if packed and choose.random() < 0.5:
        return name + ending, packed(_torn(data, choose))
    return name + ending, _torn(packed(data) if packed else data, choose)


def _torn(data, choose):
    data = bytearray(data)
    for _ in range(choose.choice([0, 0, 1, 3])):
        position = choose.randrange(len(data) + 1)
        cut = choose.choice([0, 0, 1, 8, len(data)])
        data[position : position + cut] = choose.choice(
            [b"", b"\xff", b"\x00", b'"', b"\n", b"{", b"]", b"\xef\xbb\xbf", b"\\"]
        )
    return bytes(data)


def _prepared_or_refused(config, tokenizer):
    """The data, or the lines in which it was refused; any other exception is a bug and fails the test."""
    try:
        return prepare_data(config, tokenizer, seed=0), ()
    except (DataError, ConfigError) as error:
        return None, error.problems


@pytest.mark.parametrize("part", range(5))
def test_prepare_data_survives_mutated_files(tmp_path, data_chat_tokenizer, part):
    choose = random.Random(part)
    used = refused = dropped = stopped = 0
    for number in range(100):
        name, content = _fuzzed_file(choose)
        path = tmp_path / f"{number}_{name}"
        path.write_bytes(content)
        config = DataConfig(
            train_file=str(path), on_bad_rows=choose.choice(["skip", "skip", "error"]), max_seq_length=200
        )
        data, problems = _prepared_or_refused(config, data_chat_tokenizer)
        assert [problem for problem in problems if len(problem.splitlines()) != 1] == []
        refused += bool(problems)
        if data is None:
            continue
        _assert_counted(data.report)
        assert len(data.train) == data.report.train.rows_used
        assert [line for line in find_problems(data.report, config) if len(line.splitlines()) != 1] == []
        assert [line for line in bad_row_lines(data.report, config) if len(line.splitlines()) != 1] == []
        stopped += bool(bad_row_lines(data.report, config))
        assert all((row["labels"][1:] != -100).any() for row in data.train)
        for row in data.train:
            assert ((row["labels"] == -100) | (row["labels"] == row["input_ids"])).all()
        used += data.report.rows_used
        dropped += sum(data.report.rows_dropped.values())
    assert min(used, refused, dropped, stopped) > 10, "the mutations must reach all four ends"
