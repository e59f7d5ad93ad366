"""Texts on which models are compared."""

from __future__ import annotations

from sft.commands.export.sample_texts import tokenize_samples
from sft.reporting.run_record import RunRecord
from tests.support.small_models import build_tokenizer


def test_texts_are_the_runs_samples_in_the_chat_template():
    record = RunRecord(summary={"samples": [{"prompt": "Say hello.", "after": "Hello."}] * 20})
    tokenizer = build_tokenizer()
    rows = tokenize_samples(record, tokenizer)
    assert len(rows) == 8
    assert tokenizer.decode(rows[0]).startswith("<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nHello.")
    assert max(map(len, rows)) == 64
