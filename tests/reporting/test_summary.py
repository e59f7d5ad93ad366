"""`run_summary.json`: counts of a split."""

from __future__ import annotations

import json

from sft.common.files import json_safe
from sft.reporting.summary import split_counts
from tests.support.preflight_records import train_report


def test_split_counts_are_ready_for_json():
    counts = split_counts(train_report())
    assert json.loads(json.dumps(json_safe(counts)))["sources"][0]["rows_an_epoch"] == 6
    assert {name: counts[name] for name in ("format", "files", "rows_read", "rows_used", "rows_dropped")} == {
        "format": "messages",
        "files": ["a.jsonl"],
        "rows_read": 10,
        "rows_used": 6,
        "rows_dropped": {"empty_answer": 4},
    }
    assert (counts["rows_too_long"], counts["rows_that_lose_the_end"], counts["duplicates"]) == (3, 2, 1)
    assert counts["duplicate_examples"] == [["a.jsonl:7", "a.jsonl:2"]]
