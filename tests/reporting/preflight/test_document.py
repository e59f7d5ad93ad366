"""`preflight.json`."""

from __future__ import annotations

import json

from sft.reporting.preflight.document import preflight_document, write_preflight
from tests.support.preflight_records import GIB, preflight


def test_preflight_document_has_the_contract_keys():
    document = preflight_document(preflight())
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["sound"], document["problems"]) == (True, [])
    assert (document["rows_read"], document["rows_used"], document["rows_dropped"]) == (15, 11, {"empty_answer": 4})
    assert (document["duplicates"], document["leakage"], document["supervised_share"]) == (1, 1, 0.4)
    assert document["lengths"] == {
        "median": 20,
        "p90": 40,
        "p95": 60,
        "p99": 80,
        "max": 1100,
        "max_seq_length": 32,
        "too_long": 3,
        "lose_answer": 0,
        "lose_end": 2,
        "lose_only_prompt": 1,
        "keep_95": 60,
        "keep_99": 80,
        "keep_100": 1100,
    }
    whole, dropped = document["samples"]
    assert whole == {
        "number": 1,
        "source": "a.jsonl:1",
        "tokens": 9,
        "supervised_tokens": 4,
        "truncated": False,
        "changes": [],
        "segments": [{"text": "user: hi\n", "trained": False}, {"text": "hello<end>", "trained": True}],
    }
    assert dropped["problem"] == {"reason": "empty_answer", "message": "'answer' is empty"}
    plan = document["plan"]
    assert (plan["global_batch_size"], plan["steps_per_epoch"], plan["total_steps"]) == (2, 3, 9)
    assert (plan["tokens_per_epoch"], plan["supervised_tokens_per_epoch"]) == (1200, 480)
    assert plan["memory"]["total_bytes"] == 5 * GIB
    assert (plan["memory"]["slack_bytes"], plan["memory"]["advice"]) == (GIB // 4, [])
    assert document["environment"]["needed_disk_bytes"] == 7 * GIB


def test_preflight_document_of_an_unsound_run():
    document = preflight_document(preflight(problems=("why",), plan=None, memory=None, environment=None))
    assert (document["sound"], document["problems"], document["plan"]) == (False, ["why"], None)


def test_write_preflight_creates_the_folder_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "preflight.json"
    write_preflight({"a": "é \x1b"}, path)
    write_preflight({"a": 2}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["preflight.json"]
