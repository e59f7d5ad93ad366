"""Counts of dropped rows."""

from sft.common.data_records import RowSource
from sft.data.dropped import DroppedRows
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import RowTooLong


def test_dropped_rows_do_not_grow_with_the_rows():
    total = DroppedRows()
    for part in range(300):
        one = DroppedRows()
        for line in range(512):
            source = RowSource(file="a.jsonl", line=512 * part + line + 1)
            one.add(source, RowTooLong("too_long", "it has", 1000 + line % 3, "end"))
            one.add(source, RowRefused(f"reason {part % 2}", "no"))
        total.update(one)
    assert total.counts == {"too_long": 153_600, "reason 0": 76_800, "reason 1": 76_800}
    assert total.full_lengths == {1000: 51_300, 1001: 51_300, 1002: 51_000}
    assert total.too_long == {"end": 153_600}
    named = {
        reason: [row.source.line for row in total.examples if row.problem.reason == reason] for reason in total.counts
    }
    assert named == {
        "too_long": list(range(1, 11)),
        "reason 0": list(range(1, 11)),
        "reason 1": list(range(513, 523)),
    }
