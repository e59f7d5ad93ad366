"""Verdicts on the rows."""

from __future__ import annotations

import pytest

from sft.common.data_records import DroppedRow, RowProblem, RowSource
from sft.reporting.report.verdicts.verdict import BAD, WARN
from tests.support.report_records import data, split
from tests.support.verdicts import DATA, verdict_on

EMPTY = RowProblem(reason="empty_answer", message="'answer' is empty")


def dropped(count):
    row = DroppedRow(source=RowSource(file="train.jsonl", line=3), problem=EMPTY)
    return split(rows_read=100 + count, rows_dropped={"empty_answer": count}, dropped_examples=(row,))


@pytest.mark.parametrize(
    ("changed", "state", "words"),
    [
        ({"train": dropped(5)}, WARN, "5 of 105 training rows dropped (4.8%): 5 empty_answer"),
        ({"train": dropped(50)}, BAD, "50 of 150 training rows dropped"),
        ({"leakage": 2}, BAD, "2 validation rows are also in the training data"),
        ({"train": split(duplicates=1)}, WARN, "1 duplicate training row"),
        ({"train": split(rows_that_lose_the_end=3)}, WARN, "3 training rows truncated inside the supervised tokens"),
        ({"train": split(rows_with_trained_end=98)}, WARN, "2 training rows without a trained end token"),
        ({"train": split(rows_with_trained_end=0)}, BAD, "no training row trains an end token"),
        ({"train": split(notes={"tools_left_out": 4})}, WARN, "the tools of 4 rows"),
        ({"is_complete": False}, WARN, "streamed"),
    ],
)
def test_data_with_problems(changed, state, words):
    found = verdict_on(DATA, data=data(**changed))
    assert found.state == state
    assert words.lower() in f"{found.sentence} {found.figures}".lower()
