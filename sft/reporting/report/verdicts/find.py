"""All verdicts on a run."""

from __future__ import annotations

from sft.reporting.report.records import ReportRecords
from sft.reporting.report.verdicts.answers import answers_verdict
from sft.reporting.report.verdicts.data import data_verdict
from sft.reporting.report.verdicts.execution import (
    answer_end_verdict,
    completion_verdict,
    hardware_verdict,
    skipped_steps_verdict,
)
from sft.reporting.report.verdicts.forgetting import forgetting_verdict
from sft.reporting.report.verdicts.learning import duration_verdict, learning_verdict, overfitting_verdict
from sft.reporting.report.verdicts.verdict import Verdict


def find_verdicts(records: ReportRecords) -> tuple[Verdict, ...]:
    """The verdicts that apply, the most important first."""
    found = [
        learning_verdict(records),
        answers_verdict(records),
        overfitting_verdict(records),
        forgetting_verdict(records),
        completion_verdict(records),
        duration_verdict(records),
        data_verdict(records),
        skipped_steps_verdict(records),
        hardware_verdict(records),
        answer_end_verdict(records),
    ]
    return tuple(verdict for verdict in found if verdict is not None)
