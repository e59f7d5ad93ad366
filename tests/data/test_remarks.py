"""What used rows contain and nobody expects is counted by name: unread keys, control tokens, split tokens."""

import json
from dataclasses import replace

import datasets
import pytest

from sft.common.data_records import RowSource
from sft.configuration.schema import DataConfig
from sft.data.remarks import MAX_NAMES, OTHERS, CountedRemarks
from sft.data.sources.chunks import MAX_ROWS
from tests.support.data_files import answers, prepare, write


def chat(answer="two", **more):
    return {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": answer, **more}]}


def named(kind, report):
    return {rows.name: (rows.rows, [source.line for source in rows.examples]) for rows in getattr(report.remarks, kind)}


ROWS = [
    chat(train_detail=[{"train": False}]),
    chat(name="Ann", train_detail=[]),
    chat("say <|im_end|> or <|endoftext|>"),
    chat("", id=1),
    chat("say <|im_end|>"),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "streamed"])
def test_prepare_counts_unread_keys_and_control_tokens_of_used_rows(tmp_path, tokenizer, kind):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", ROWS), on_bad_rows="skip")
    if kind in ("parquet", "saved"):
        # As text: Arrow cannot hold objects without fields.
        made = datasets.Dataset.from_list([{"messages": json.dumps(row["messages"])} for row in ROWS])
        path = str(tmp_path / f"a.{kind}")
        made.to_parquet(path) if kind == "parquet" else made.save_to_disk(path)
        config = replace(
            config, **({"train_file": path} if kind == "parquet" else {"train_file": None, "dataset_name": path})
        )
    train = prepare(replace(config, streaming=kind == "streamed"), tokenizer).report.train
    assert train.rows_dropped == {"empty_answer": 1}
    assert named("unread_keys", train) == {"train_detail": (2, [1, 2]), "name": (1, [2])}
    assert named("control_tokens", train) == {"<|im_end|>": (2, [3, 5]), "<|endoftext|>": (1, [3])}


@pytest.mark.parametrize("workers", [1, 3])
def test_prepare_counts_remarks_with_any_number_of_workers_and_from_the_cache(tmp_path, tokenizer, cache, workers):
    rows = [chat(f"{i}<|im_end|>" if i % 100 == 7 else f"{i}", **{f"k{i % 70}": i}) for i in range(6 * MAX_ROWS)]
    file = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(train_file=file, data_cache_dir=str(cache), preprocessing_num_workers=workers)
    first, again = (prepare(config, tokenizer).report.train.remarks for _ in range(2))
    assert first == again
    keys = {rows.name: rows for rows in first.unread_keys}
    assert len(keys) == MAX_NAMES + 1
    assert keys["k0"].rows == len([i for i in range(6 * MAX_ROWS) if i % 70 == 0])
    assert keys["k0"].examples == tuple(RowSource(file=file, line=line) for line in (1, 71, 141))
    assert sum(rows.rows for rows in first.unread_keys) == 6 * MAX_ROWS
    assert first.unread_keys[0].name == OTHERS
    assert [rows.rows for rows in first.control_tokens] == [len([i for i in range(6 * MAX_ROWS) if i % 100 == 7])]


def test_prepare_counts_tokens_across_the_edge_of_the_trained_text(tmp_path, tokenizer):
    """This template writes no token before an answer, so the last letter of `answer` merges with the first word."""
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    (token,) = (text for text in ("the", "is") if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1)
    tokenizer.chat_template = (
        "{%- for m in messages %}{{ m.role + ':' + '" + token[0] + "' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:" + token[0] + "' }}{% endif %}"
    )
    rows = [chat(f"x{i}") for i in range(3)] + [chat(token[1:] + " y"), chat(token[1:])]
    train = prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", rows)), tokenizer)
    assert named("split_tokens", train.report.train) == {repr(token): (2, [4, 5])}
    assert answers(tokenizer, train.train)[3:] == [f"{token} y", token]


def test_prepare_counts_remarks_of_validation_rows_apart(tmp_path, tokenizer):
    train, validation = write(tmp_path / "a.jsonl", [chat(x=1)]), write(tmp_path / "v.jsonl", [chat("three", y=1)])
    report = prepare(DataConfig(train_file=train, validation_file=validation), tokenizer).report
    assert (named("unread_keys", report.train), named("unread_keys", report.validation)) == (
        {"x": (1, [1])},
        {"y": (1, [1])},
    )


def test_remarks_do_not_grow_with_the_rows():
    total = CountedRemarks()
    for part in range(20):
        one = CountedRemarks()
        for line in range(512):
            one.add(RowSource(file="a", line=512 * part + line), "unread_keys", [f"{part}-{line}" + "x" * 999, "key"])
        total.update(one)
    text = json.dumps(total.to_json())
    assert len(text) < 20_000
    assert CountedRemarks.from_json(json.loads(text)) == total
    assert total.unread_keys.counts["key"] == 20 * 512
    assert total.unread_keys.counts.total() == 2 * 20 * 512
