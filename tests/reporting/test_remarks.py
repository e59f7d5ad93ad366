"""Remarks on rows are shown wherever rows are counted, and nothing in them acts on a terminal."""

import json
from dataclasses import replace

import pytest

from sft.common.data_records import DataReport, NamedRows, RowRemarks
from sft.reporting.log_lines import data_lines
from sft.reporting.preflight.document import preflight_document
from sft.reporting.preflight.text import preflight_lines
from sft.reporting.report.verdicts.data import data_findings
from tests.support.preflight_records import preflight, row_source, train_report

EVIL = "key\x1b[31m\n"
KINDS = {
    "unread_keys": ("unread_message_keys", "keys of messages that are not used"),
    "control_tokens": ("control_tokens", "control tokens in the data"),
    "split_tokens": ("split_tokens", "tokens across the edge of the supervised text"),
    "changes": ("changed_rows", "changed rows"),
}


def report_with(**remarks):
    return DataReport(train=train_report(remarks=RowRemarks(**remarks)))


@pytest.mark.parametrize("kind", KINDS)
def test_remarks_are_shown_with_their_first_rows(kind):
    places = tuple(row_source(line) for line in (3, 5, 8))
    named = tuple(NamedRows(name=name, rows=rows, examples=places[:rows]) for name, rows in (("first", 12), (EVIL, 1)))
    report = report_with(**{kind: named})
    key, words = KINDS[kind]
    facts = replace(preflight(), report=report)
    assert preflight_document(facts)["train"][key] == {
        "first": {"rows": 12, "examples": ["a.jsonl:3", "a.jsonl:5", "a.jsonl:8"]},
        EVIL: {"rows": 1, "examples": ["a.jsonl:3"]},
    }
    for lines in (preflight_lines(facts, colour=False), data_lines(report)):
        text = " ".join("\n".join(lines).split())
        assert f"{words}" in text
        assert "first (12 rows: a.jsonl:3, a.jsonl:5, a.jsonl:8, ...), key\\x1b[31m" in text
        assert "\x1b" not in text
    assert any(words in finding.text for finding in data_findings(report))


def test_remarks_that_include_held_out_rows_say_so():
    named = (NamedRows(name="first", rows=1, examples=(row_source(3),)),)
    train = train_report(remarks=RowRemarks(**dict.fromkeys(KINDS, named)), remarks_include_validation=True)
    lines = data_lines(DataReport(train=train))
    assert sum(" (counted with the rows held out for validation): first" in line for line in lines) == len(KINDS)


def test_remarks_without_rows_are_not_shown():
    report = report_with()
    assert not any(words in " ".join(data_lines(report)) for _, words in KINDS.values())
    document = preflight_document(replace(preflight(), report=report))
    assert [document["train"][key] for key, _ in KINDS.values()] == [{}] * len(KINDS)
    json.dumps(document)
