"""Data inspected by its first rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sft.commands.init.data_inspection import inspect_data
from sft.common.errors import ConfigError, DataError
from tests.support import messages
from tests.support.init_data import MODEL, rows_file


def test_inspect_data_counts_rows_that_cannot_be_used():
    good = [{"question": "One?", "answer": "1"}] * 9
    facts = inspect_data(rows_file("rows.jsonl", [*good, {"question": "Two?", "answer": ""}]), None)
    assert (facts.num_rows, facts.num_bad_rows, facts.format_name) == (10, 1, "question_answer")
    assert facts.first_bad_row.startswith("rows.jsonl:10: ")
    assert not facts.are_tokens_counted


def test_inspect_data_reports_whether_tokens_are_counted_with_the_chat_template(tmp_path):
    rows = rows_file("rows.jsonl", [{"question": "One?", "answer": "1"}] * 300)
    counted = inspect_data(rows, str(Path(MODEL, "tokenizer.json")))
    (tmp_path / "tokenizer.json").write_bytes(Path(MODEL, "tokenizer.json").read_bytes())
    alone = inspect_data(rows, str(tmp_path / "tokenizer.json"))
    assert (counted.are_tokens_counted, alone.are_tokens_counted) == (True, False)
    assert counted.max_tokens < alone.max_tokens
    texts = inspect_data(rows_file("texts.jsonl", [{"text": "Some words."}]), str(Path(MODEL, "tokenizer.json")))
    assert texts.are_tokens_counted


def test_inspect_data_maps_columns_by_name():
    facts = inspect_data(rows_file("rows.jsonl", [{"id": 1, "user_query": "One?", "reply": "1"}]), None)
    assert facts.dataset_columns == {"user_query": "prompt", "reply": "completion"}
    with pytest.raises(DataError, match=messages.NO_FORMAT + r".*with dataset_columns\.$"):
        inspect_data(rows_file("odd.jsonl", [{"a": "1", "b": "2"}]), None)


def test_inspect_data_takes_an_unknown_name_for_a_dataset_on_the_hub():
    assert inspect_data("openai/gsm8k", None).key == "dataset_name"
    with pytest.raises(DataError, match=messages.pattern(messages.NO_FILE_OR_FOLDER, path="./openai/gsm8k")):
        inspect_data("./openai/gsm8k", None)


def model_with(tmp_path, template):
    """The tokenizer of a folder with another chat template."""
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    return str(tmp_path / "model" / "tokenizer.json")


LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
REFUSALS = {
    "system": "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + LOOP,
    "alternation": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}" + LOOP,
    "undefined": "{% if messages[0].role == 'system' %}{{ messages[0].a.b }}{% endif %}" + LOOP,
}
SYSTEM = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
    ]
}
PLAIN = {"messages": SYSTEM["messages"][1:]}


@pytest.mark.parametrize("name", REFUSALS)
def test_rows_that_the_chat_template_refuses_are_counted(tmp_path, name):
    tokenizer = model_with(tmp_path, REFUSALS[name])
    facts = inspect_data(rows_file("rows.jsonl", [PLAIN, SYSTEM, PLAIN, SYSTEM]), tokenizer)
    assert (facts.num_rows, facts.num_bad_rows, facts.are_tokens_counted) == (4, 2, True)
    assert facts.first_bad_row.startswith("rows.jsonl:2: the chat template raised an error: ")
    with pytest.raises(DataError, match=r"no row of all\.jsonl can be used: all\.jsonl:1: the chat template raised"):
        inspect_data(rows_file("all.jsonl", [SYSTEM] * 3), tokenizer)


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "{{ messages[0].a.b }}", "{% for m in"])
def test_a_chat_template_that_renders_nothing_is_the_line_of_a_run(tmp_path, template):
    with pytest.raises(ConfigError, match=r"^chat_template: .*cannot render a question and an answer") as caught:
        inspect_data(rows_file("rows.jsonl", [PLAIN]), model_with(tmp_path, template))
    assert len(caught.value.problems) == 1
