"""What settings add to conversations, from every kind of file: arguments of the template, and a system prompt."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from datasets import Dataset

from data_handler import prepare_data
from sft.common.errors import ConfigError
from sft.configuration.schema import DataConfig, DatasetSource
from tests.prompting.test_template_kwargs import THINKING
from tests.support.small_models import build_tokenizer

ROWS = [
    {"question": "Hi", "answer": "Hello.", "chat_template_kwargs": {"enable_thinking": False}},
    {"question": "Bye", "answer": "See you.", "chat_template_kwargs": None},
    {"question": "What?", "answer": "That.", "chat_template_kwargs": {"style": "short"}},
]
TEMPLATE = (
    "{% if style %}[{{ style }}]\n{% endif %}{% if enable_thinking is false %}[no thoughts]{% endif %}" + THINKING
)


def write(folder, kind):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        rows = [{**row, "chat_template_kwargs": json.dumps(row["chat_template_kwargs"] or {})} for row in ROWS]
        pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), path)
    elif kind == "parquet":  # every row has all fields, null where it has none
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        Dataset.from_list(ROWS).save_to_disk(str(path))
    return str(path)


def prepared(folder, path, **settings):
    config = DataConfig(train_file=path, data_cache_dir=str(folder / "cache"), **settings)
    return prepare_data(config, build_tokenizer(TEMPLATE), seed=0)


def texts(data):
    tokenizer = build_tokenizer(TEMPLATE)
    return [tokenizer.decode(data.train[index]["input_ids"]) for index in range(len(data.train))]


def tokens(data):
    rows = [data.train[index] for index in range(len(data.train))]
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in rows]


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "saved"])
def test_rows_are_the_same_from_every_kind_of_file(tmp_path, kind):
    expected = prepared(tmp_path, write(tmp_path, "jsonl"), chat_template_kwargs={"style": "long"})
    found = prepared(tmp_path, write(tmp_path, kind), chat_template_kwargs={"style": "long"})
    assert tokens(found) == tokens(expected)
    assert [text.partition("<|im")[0] for text in texts(found)] == ["[long]\n[no thoughts]", "[long]\n", "[short]\n"]
    names = {one.name: one.rows for one in found.report.train.remarks.template_kwargs}
    assert names == {'{"enable_thinking": false, "style": "long"}': 1, '{"style": "long"}': 1, '{"style": "short"}': 1}
    assert found.report.train.sources[0].unused_columns == ()


def test_a_source_has_arguments_and_a_system_prompt_of_its_own(tmp_path):
    path = write(tmp_path, "jsonl")
    (tmp_path / "prompt.txt").write_text("  Answer.\n")
    config = DataConfig(
        datasets=[
            DatasetSource(path=path, max_rows=1, system_prompt=f"file:{tmp_path / 'prompt.txt'}"),
            DatasetSource(path=path, chat_template_kwargs={"style": "own"}),
        ],
        system_prompt="Be kind.",
        data_cache_dir=str(tmp_path / "cache"),
    )
    data = prepare_data(config, build_tokenizer(TEMPLATE), seed=0)
    found = texts(data)
    assert "<|im_start|>system\nAnswer.<|im_end|>" in found[0]
    assert all("<|im_start|>system\nBe kind.<|im_end|>" in text for text in found[1:])
    assert [text.startswith("[own]") for text in found] == [False, True, True, False]
    assert data.sample_prompts[0].messages[0] == {"role": "system", "content": "Answer."}


@pytest.mark.parametrize(
    ("policy", "contents", "changes"),
    [
        ("if_missing", ["Old.", "New."], {"system prompt added": 1}),
        ("replace", ["New.", "New."], {"system prompt added": 1, "system prompt replaced": 1}),
    ],
)
def test_system_prompts_are_added_or_replaced_and_counted(tmp_path, policy, contents, changes):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "weight": 0}]
    turns += [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "B"}]
    rows = [{"messages": [{"role": "system", "content": "Old."}, *turns]}, {"messages": turns}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepared(tmp_path, str(path), system_prompt="New.", system_prompt_policy=policy)
    for text, content in zip(texts(data), contents, strict=True):
        assert text.startswith(f"<|im_start|>system\n{content}<|im_end|>")
    assert {one.name: one.rows for one in data.report.train.remarks.changes} == changes
    tokenizer = build_tokenizer(TEMPLATE)
    for ids, labels in tokens(data):  # the weight stays with its turn
        assert tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != -100]) == "B<|im_end|>"


def test_the_cache_notices_a_changed_prompt_and_changed_arguments(tmp_path):
    path, file = write(tmp_path, "jsonl"), tmp_path / "prompt.txt"
    seen = set()
    for prompt, style in (("One.", "a"), ("Two.", "a"), ("Two.", "b")):
        file.write_text(prompt)
        data = prepared(tmp_path, path, system_prompt=f"file:{file}", chat_template_kwargs={"style": style})
        seen.add(texts(data)[1])
    assert len(seen) == 3


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"does not read 'enable_thinkng'.* Did you mean 'enable_thinking'"):
        prepared(tmp_path, write(tmp_path, "jsonl"), chat_template_kwargs={"enable_thinkng": True})


def test_an_argument_of_a_row_that_the_template_does_not_read_is_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROWS[0], "chat_template_kwargs": {"colour": "red"}}) + "\n")
    (only,) = prepared(tmp_path, str(path)).report.train.remarks.unread_keys
    assert (only.name, only.rows) == ("chat_template_kwargs.colour", 1)


def test_rows_with_other_arguments_are_no_duplicates(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{**ROWS[0], "chat_template_kwargs": {"enable_thinking": thinks}} for thinks in (True, False, True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepared(tmp_path, str(path)).report.train.duplicates == 1


@pytest.mark.parametrize(("choice", "is_trained"), [("train", True), ("mask", False)])
def test_tokens_across_the_edge_of_the_supervised_text(tmp_path, choice, is_trained):
    tokenizer = build_tokenizer(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Hi", "answer": "::Hello"}) + "\n")
    tokenizer.add_tokens(["t:::"])  # the end of the prompt with the beginning of the answer
    config = DataConfig(train_file=str(path), data_cache_dir=str(tmp_path / "cache"), boundary_tokens=choice)
    data = prepare_data(config, tokenizer, seed=0)
    row = data.train[0]
    (edge,) = (row["input_ids"] == tokenizer.convert_tokens_to_ids("t:::")).nonzero()[0]
    assert bool(row["labels"][edge] != -100) is is_trained
    assert (row["labels"] != -100).sum() > 2
    (only,) = data.report.train.remarks.split_tokens
    assert only.name == "'t:::'"
