"""All verdicts on a run."""

from __future__ import annotations

from sft.reporting.report.verdicts.find import find_verdicts
from sft.reporting.report.verdicts.verdict import GOOD
from tests.support.report_records import records
from tests.support.verdicts import COMPLETE, DATA, HARDWARE, LEARN, LONG, OVERFIT, STEPS, STOPS


def test_a_run_that_learned_has_no_problems():
    found = find_verdicts(records())
    assert [each.question for each in found] == [LEARN, OVERFIT, COMPLETE, LONG, DATA, STEPS, HARDWARE, STOPS]
    assert {each.state for each in found} == {GOOD}
    assert all(each.figures and each.rule for each in found)
