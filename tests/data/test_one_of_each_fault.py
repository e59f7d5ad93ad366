"""A file with one row of each fault, among good ones: the dry run counts exactly those."""

from __future__ import annotations

import json

from sft.prompting.formats import FORMATS

CHATS = {
    "bad_template_kwargs": {"chat_template_kwargs": [1]},
    "bad_weight": {"weight": -1},
    "control_token": {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "A"}]},
    "empty_answer": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]},
    "missing_field": {"messages": None, "text": "x"},
    "no_answer": {"messages": [{"role": "user", "content": "Q"}]},
    "no_prompt": {"messages": [{"role": "assistant", "content": "A"}]},
    "nothing_to_train": {"weight": 0},
    "not_unicode": {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "A"}]},
    "nul_character": {"messages": [{"role": "user", "content": "\0"}, {"role": "assistant", "content": "A"}]},
    "two_system_prompts": {"system": "Other.", "first": "system"},
    "two_thoughts": {"thoughts": True},
    "unknown_role": {"messages": [{"role": "king", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    "wrong_type": {"messages": 7},
}
"""Reason -> what is special about its row. Other reasons belong to formats and settings of their own."""
IDS = {
    "ids_beyond_vocabulary": {"input_ids": [1, 10**6]},
    "labels_differ": {"input_ids": [1, 2, 3], "labels": [-100, 5, 3]},
    "lengths_differ": {"input_ids": [1, 2, 3], "labels": [1, 2]},
    "nothing_to_train": {"input_ids": [1, 2, 3], "labels": [-100, -100, -100]},
    "padding_inside": {"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]},
    "wrong_type": {"input_ids": "abc"},
}


def chat(number, special):
    messages = [{"role": "user", "content": f"Question {number}"}, {"role": "assistant", "content": "A"}]
    special = dict(special)
    if special.pop("first", None):
        messages.insert(0, {"role": "system", "content": "One."})
    if special.pop("thoughts", None):
        messages[-1] |= {"reasoning_content": "One.", "thinking": "Two."}
    return {"messages": messages, **special}


def write(path, rows, *raw):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(f"{line}\n" for line in raw))
    return str(path)


def dropped(run_sft, path, **settings):
    run = run_sft("--dry_run", train_file=path, on_bad_rows="skip", max_bad_row_share=1, **settings)
    document = json.loads((run.output_dir / "preflight.json").read_text())
    assert document["rows_read"] == document["rows_used"] + sum(document["rows_dropped"].values())
    return document


def test_one_chat_of_each_fault(run_sft, tmp_path):
    rows = [chat(number, special) for number, special in enumerate([{}, {}, *CHATS.values(), {}])]
    path = write(tmp_path / "rows.jsonl", rows, "{broken", "[1]")
    document = dropped(run_sft, path, control_tokens_in_content="error")
    assert document["rows_used"] == 3
    assert document["rows_dropped"] == dict.fromkeys((*CHATS, "invalid_json", "not_an_object"), 1)
    named = {row["reason"]: row["source"] for row in document["train"]["dropped_examples"]}
    assert named["bad_weight"] == f"{path}:4"


def test_one_row_of_ids_of_each_fault(run_sft, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"input_ids": [1, 5, 6, 2]}, *IDS.values()])
    document = dropped(run_sft, path)
    assert document["rows_used"] == 1
    assert document["rows_dropped"] == dict.fromkeys(IDS, 1)


def test_formats_are_known():
    assert {"messages", "input_ids"} <= {one.name for one in FORMATS}
