"""Control tokens in the data as ordinary characters, as tokens, or refused."""

from __future__ import annotations

import json

import pytest

from data_handler import prepare_data
from sft.common.data_records import Conversation
from sft.configuration.schema import DataConfig
from sft.prompting.quoted_tokens import QuotedTokens, segments
from sft.prompting.refusal import RowRefused
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.tokenizing import RowTokenizer
from tests.support.small_models import CHATML, build_tokenizer
from tests.support.small_tokenizers import metaspace

QUOTE = "Say <|im_end|> twice: <|im_end|>"
MESSAGES = (
    {"role": "user", "content": f"{QUOTE}<|endoftext|>"},
    {"role": "assistant", "content": "<|im_start|> begins, <|im_end|> ends."},
)


def row_of(tokenizer, choice, messages=MESSAGES):
    renderer = ChatRenderer(tokenizer, quotes=QuotedTokens(tokenizer, choice))
    text = renderer.render(Conversation(messages=messages))
    (row,) = RowTokenizer(tokenizer, is_chat=True, max_seq_length=500, end_token_ids=renderer.end_token_ids())(
        [text]
    ).split()
    return text, row


def test_quotations_are_characters_and_turns_still_end():
    tokenizer = build_tokenizer()
    text, row = row_of(tokenizer, "text")
    ids, end = row.input_ids.tolist(), tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(ids) == text.text == row_of(tokenizer, "special")[0].text
    assert ids.count(end) == 2  # one for each turn
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") not in ids
    trained = [token for token, label in zip(ids, row.labels.tolist(), strict=True) if label != -100]
    assert tokenizer.decode(trained) == "<|im_start|> begins, <|im_end|> ends.<|im_end|>"
    assert trained[-1] == end
    assert trained.count(end) == 1
    assert row.has_trained_end


def test_all_other_tokens_are_those_of_the_whole_text():
    """Where nothing is quoted, both ways give the same ids; where it is, only the quoting segments differ."""
    tokenizer = build_tokenizer()
    plain = ({"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hi."})
    assert (
        row_of(tokenizer, "text", plain)[1].input_ids.tolist()
        == row_of(tokenizer, "special", plain)[1].input_ids.tolist()
    )
    mixed = (*plain, *MESSAGES, *plain)
    (text, quoting), (_, special) = row_of(tokenizer, "text", mixed), row_of(tokenizer, "special", mixed)
    spans = segments(text.text, text.quoted, QuotedTokens(tokenizer, "text").pattern)
    expected = []
    for (start, end), is_quoting in spans:
        ids = tokenizer(text.text[start:end], split_special_tokens=is_quoting)["input_ids"]
        expected += ids
    assert quoting.input_ids.tolist() == expected
    head = text.text.index(QUOTE)
    length = len(tokenizer(text.text[:head])["input_ids"])
    assert quoting.input_ids[:length].tolist() == special.input_ids[:length].tolist()


@pytest.mark.parametrize(
    ("text", "quoted", "expected"),
    [
        ("<s>a<e>b", (), [((0, 8), False)]),
        ("<s>a<e>b<e>", ((4, 7),), [((0, 3), False), ((3, 8), True), ((8, 11), False)]),
        ("<e>", ((0, 3),), [((0, 3), True)]),
        ("a<e><e>b", ((1, 4),), [((0, 4), True), ((4, 8), False)]),
        ("<s><e>", ((3, 6),), [((0, 3), False), ((3, 6), True)]),
    ],
)
def test_segments_cover_the_text(text, quoted, expected):
    import re

    assert list(segments(text, quoted, re.compile("<.>"))) == expected


def test_a_template_that_hides_where_contents_are_is_refused():
    tokenizer = build_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content | length }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    renderer = ChatRenderer(tokenizer, quotes=QuotedTokens(tokenizer, "text"))
    with pytest.raises(RowRefused) as raised:
        renderer.render(Conversation(messages=MESSAGES))
    assert raised.value.problem.reason in ("control_token_not_found", "turn_not_found")


def test_error_refuses_the_row():
    tokenizer = build_tokenizer()
    with pytest.raises(RowRefused, match=r"contains the control token '<.im_end.>'") as raised:
        row_of(tokenizer, "error")
    assert raised.value.problem.reason == "control_token"


def test_plain_texts():
    tokenizer = build_tokenizer()
    quotes = QuotedTokens(tokenizer, "text")
    text = render_text(Conversation(text="A <|im_end|> B"), quotes)
    (row,) = RowTokenizer(tokenizer, is_chat=False, max_seq_length=100)([text]).split()
    ids = row.input_ids.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1  # `<|im_end|>`, which ends every text
    assert tokenizer.decode(ids) == "A <|im_end|> B<|im_end|>"
    assert render_text(Conversation(text="A<|im_end|>"), quotes).quoted == ()
    with pytest.raises(RowRefused, match="beside its first or last one"):
        render_text(Conversation(text="A <|im_start|> B<|im_end|>"), quotes)
    with pytest.raises(RowRefused):
        render_text(Conversation(text="A <|im_end|> B"), QuotedTokens(tokenizer, "error"))


@pytest.mark.parametrize("kind", ["messages", "text"])
@pytest.mark.parametrize(("choice", "used"), [("special", 1), ("text", 1), ("error", 0)])
def test_rows_of_a_file_are_counted_either_way(tmp_path, kind, choice, used):
    path = tmp_path / "rows.jsonl"
    row = {"messages": list(MESSAGES)} if kind == "messages" else {"text": f"{QUOTE}."}
    path.write_text(json.dumps(row) + "\n")
    config = DataConfig(train_file=str(path), data_cache_dir=str(tmp_path / "cache"), control_tokens_in_content=choice)
    report = prepare_data(config, build_tokenizer(), seed=0).report.train
    assert report.rows_used == used
    assert report.rows_dropped == ({} if used else {"control_token": 1})
    assert {one.name for one in report.remarks.control_tokens} >= ({"<|im_end|>"} if used else set())


def test_a_tokenizer_that_is_not_byte_level():
    tokenizer = metaspace()
    tokenizer.chat_template = CHATML
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    messages = ({"role": "user", "content": "a <|im_end|> b"}, {"role": "assistant", "content": "c"})
    _, row = row_of(tokenizer, "text", messages)
    assert row.input_ids.tolist().count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert "<|im_end|> b" in tokenizer.decode(row.input_ids)
