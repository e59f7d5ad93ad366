"""The table of `docs/prepare_data.md`: each of its rows, in a file, prepared with the settings beside it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from data_handler import prepare_data
from sft.configuration.schema import DataConfig
from sft.data.checks import find_problems
from tests.support.paths import REPOSITORY
from tests.support.small_models import build_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content and enable_thinking is not false %}"
    "<think>{{ m.reasoning_content }}</think>{% elif m.role == 'assistant' and enable_thinking is false %}"
    "<think></think>{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FUNCTIONS = """
def keep(row):
    return row["status"] == "solved"


def to_messages(row):
    question, answer = row["thread"]
    return {"question": f"{row['subject']}: {question}", "answer": answer}
"""
GOOD = {"question": "2 + 2?", "answer": "4"}
"""Beside a row that is broken on purpose."""


def table():
    page = (REPOSITORY / "docs" / "prepare_data.md").read_text(encoding="utf-8")
    section = page.partition("## Your file looks like this")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `(\{.+\})` \| (?:`(.+)`|nothing) \|$", section, flags=re.MULTILINE)
    assert len(rows) == section.count("\n| ") - 1  # all but the header
    return rows


@pytest.mark.parametrize(("what", "row", "settings"), [pytest.param(*row, id=row[0]) for row in table()])
def test_a_row_is_prepared_with_the_settings_beside_it(tmp_path, monkeypatch, what, row, settings):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rows.py").write_text(FUNCTIONS)
    is_broken = what == "a few broken rows"
    rows = [json.loads(row), *([GOOD, GOOD] if is_broken else [])]
    if what == "rows to leave out":
        rows.append({**GOOD, "status": "solved"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    config = DataConfig(
        train_file="rows.jsonl",
        data_cache_dir=str(tmp_path / "cache"),
        max_seq_length=30 if "long" in what or what == "books" else 300,
        **(yaml.safe_load(settings) if settings else {}),
    )
    data = prepare_data(config, build_tokenizer(TEMPLATE), seed=0)
    assert find_problems(data.report, config) == []
    assert data.report.train.rows_used == (2 if is_broken else 1)
    labels = [label for index in range(len(data.train)) for label in data.train[index]["labels"] if label != -100]
    assert labels
    if settings:  # without them it is another result
        plain = DataConfig(
            train_file="rows.jsonl", data_cache_dir=str(tmp_path / "cache"), max_seq_length=config.max_seq_length
        )
        assert result_of(plain) != result_of(config)


def result_of(config):
    try:
        data = prepare_data(config, build_tokenizer(TEMPLATE), seed=0)
    except Exception as error:
        return type(error)
    rows = [{key: value.tolist() for key, value in data.train[i].items()} for i in range(len(data.train))]
    return rows, find_problems(data.report, config)
