"""The questions of the verdicts, and the verdict on one of them."""

from __future__ import annotations

from sft.reporting.report.verdicts.find import find_verdicts
from sft.reporting.report.verdicts.verdict import Verdict
from tests.support.report_records import records

LEARN, OVERFIT, COMPLETE = "Did it learn?", "Does it overfit?", "Did it complete?"
LONG, DATA, STEPS = "Did it train long enough?", "Is the data sound?", "Did every step update the weights?"
HARDWARE, STOPS = "Was the hardware used well?", "Does it know when to stop?"


def verdict_on(question: str, **changed) -> Verdict | None:
    """The verdict on a run with some records changed; None where there is none."""
    return {each.question: each for each in find_verdicts(records(**changed))}.get(question)
