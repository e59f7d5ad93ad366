"""Runs on pieces of texts, token ids, shortened chats and mixed sources: counted, and resumed to the bit."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from safetensors.torch import load_file

from tests.support.data_files import texts, write
from tests.support.small_models import build_tokenizer


@pytest.fixture
def sources(tmp_path):
    """Texts of which some are too long, and rows of token ids, drawn with equal probability."""
    tokenizer = build_tokenizer()
    rows = [{"input_ids": tokenizer(f"{i} one two<|im_end|>")["input_ids"]} for i in range(30)]
    files = [texts(tmp_path / "a.txt", [5 + 37 * i % 90 for i in range(30)]), write(tmp_path / "b.jsonl", rows)]
    return json.dumps([{"path": path, "probability": 0.5} for path in files])


@pytest.mark.parametrize("settings", [{"streaming": True}, {"packing": True, "order": "given"}], ids=str)
def test_pieces_and_ids_of_drawn_sources_are_resumed_to_the_bit(short_run, tmp_path, sources, settings):
    settings = {**settings, "train_file": None, "datasets": sources, "max_seq_length": 32}
    settings |= {"on_too_long": "split", "split_overlap": 3, "per_device_train_batch_size": 2}
    whole = short_run(**settings)
    assert whole.status == 0, whole.err
    counts = whole.summary["data"]["train"]
    assert counts["rows_read"] == counts["rows_used"] == 60
    assert 0 < counts["rows_split"] < counts["pieces"]
    assert counts["sources"][1]["probability"] == 0.5
    checkpoint = whole.output_dir / "checkpoint-2"
    again = short_run(**settings, resume_from_checkpoint=str(checkpoint), output_dir=str(tmp_path / "again"))
    assert again.status == 0, again.err
    first, second = (load_file(run.output_dir / "model.safetensors") for run in (whole, again))
    assert all(first[name].equal(second[name]) for name in first)
    other = short_run(
        **settings | {"split_overlap": 4}, resume_from_checkpoint=str(checkpoint), output_dir=str(tmp_path / "other")
    )
    assert other.status == 2
    assert "split_overlap: checkpoint-2 was trained with 3, and now it is 4" in other.err


def test_chats_are_shortened_in_order_of_length(short_run, tmp_path):
    def chat(exchanges):
        turns = [("user", "Hi"), ("assistant", "Yes")] * exchanges
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    file = write(tmp_path / "chats.jsonl", [chat(1 + i % 7) for i in range(28)])
    run = short_run(train_file=file, on_too_long="keep_last_turns", order="by_length", max_seq_length=48)
    assert run.status == 0, run.err
    counts = run.summary["data"]["train"]
    assert counts["rows_read"] == counts["rows_used"] == 28
    assert 0 < counts["rows_shortened"] < 28
    (changed,) = counts["changed_rows"].values()
    assert changed["rows"] == counts["rows_shortened"]
    seen = [0, *(event["tokens_seen"] for event in run.metrics if "tokens_seen" in event)]
    of_steps = [after - before for before, after in pairwise(seen)]
    assert of_steps == sorted(of_steps)
    assert of_steps[0] < of_steps[-1]
