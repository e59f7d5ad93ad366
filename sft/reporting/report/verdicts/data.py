"""Whether the rows are usable as intended, from their counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sft.common.data_records import FEW_VALIDATION_ROWS, DataReport, SplitReport
from sft.common.run_records import TrainingResult
from sft.common.text import counted, note_text, percent, share_text
from sft.reporting.remarks import remark_lines, split_remark_lines
from sft.reporting.report.records import ReportRecords
from sft.reporting.report.verdicts.verdict import BAD, GOOD, WARN, Verdict, as_sentence

MANY_DROPPED = 0.1
"""Share of the rows read; if more are dropped, the run trains on a different data set than intended."""
_RULE = (
    "Sound: no row is dropped, truncated inside its supervised tokens, duplicated, or in both training and validation "
    f"data, each row trains an end token, and validation data has {FEW_VALIDATION_ROWS} rows or more. Not sound: "
    f"leaked rows, more than {MANY_DROPPED:.0%} dropped, or no trained end token at all."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about the rows that the user should know."""

    text: str
    is_serious: bool = False


def data_verdict(records: ReportRecords) -> Verdict:
    """Whether the data has problems."""
    findings = data_findings(records.data, records.result)
    serious = [finding.text for finding in findings if finding.is_serious]
    if not findings:
        state = GOOD
        sentence = (
            f"Yes. All {records.data.rows_read:,} rows are usable in full; there are no duplicates"
            f"{' and no leakage' if records.data.validation is not None else ''}, and every row trains an end token."
        )
    elif serious:
        state, sentence = BAD, f"No: {'; '.join(serious)}."
    else:
        state, sentence = WARN, f"Mostly. {counted(len(findings), 'finding')}."
    minor = [finding.text for finding in findings if not finding.is_serious]
    share = f"{share_text(records.data.train.supervised_share)} of the training tokens are supervised"
    return Verdict(
        question="Is the data sound?",
        state=state,
        sentence=sentence,
        figures=as_sentence([*minor, share]),
        rule=_RULE,
    )


def data_findings(report: DataReport, result: TrainingResult | None = None) -> list[Finding]:
    """All findings, those that invalidate the results first.

    Args:
        report: the counts.
        result: of training, which counts the rows of a stream; None while it is not finished.
    """
    found = list(_findings(report, result))
    return sorted(found, key=lambda finding: not finding.is_serious)


def _findings(report: DataReport, result: TrainingResult | None) -> Iterator[Finding]:
    if report.leakage:
        verb = "is" if report.leakage == 1 else "are"
        rows = counted(report.leakage, "validation row")
        yield Finding(text=f"{rows} {verb} also in the training data, so validation is too optimistic", is_serious=True)
    for one in report.sets:
        if one.kind == "test" and one.leakage:
            verb = "is" if one.leakage == 1 else "are"
            rows = f"{counted(one.leakage, f'{one.title} row')} {verb} also in the training data"
            yield Finding(text=f"{rows}, so the test is too optimistic", is_serious=True)
    for name, split in report.splits.items():
        yield from _split_findings({"train": "training"}.get(name, name), split)
    validation = report.validation
    if validation is not None and validation.is_too_small_to_judge:
        yield Finding(text=f"only {counted(validation.rows_used, 'validation row')}, too few to judge by")
    if result is not None and result.rows_dropped:
        yield Finding(text=f"{counted(result.rows_dropped, 'row')} of the stream dropped")
    for _, text in remark_lines(result.remarks) if result is not None else ():
        yield Finding(text=f"streamed rows: {text}")
    if not report.is_complete:
        yield Finding(text="the training rows are streamed, and only the first ones were counted")


def _split_findings(name: str, split: SplitReport) -> Iterator[Finding]:
    dropped = split.num_dropped
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in split.rows_dropped.items())
        yield Finding(
            text=f"{dropped:,} of {split.rows_read:,} {name} rows dropped ({percent(dropped, split.rows_read)}): "
            f"{reasons}",
            is_serious=dropped > MANY_DROPPED * split.rows_read,
        )
    truncated = split.rows_that_lose_the_end
    if truncated:
        yield Finding(
            text=f"{counted(truncated, f'{name} row')} truncated inside the supervised tokens (max_seq_length)"
        )
    without = split.rows_used - split.rows_with_trained_end
    if without and split.rows_used:
        if without == split.rows_used:
            yield Finding(text=f"no {name} row trains an end token", is_serious=name == "training")
        else:
            yield Finding(text=f"{counted(without, f'{name} row')} without a trained end token")
    if split.duplicates:
        yield Finding(text=counted(split.duplicates, f"duplicate {name} row"))
    for note, count in split.notes.items():
        yield Finding(text=f"{name}: {note_text(note, count)}")
    for _, text in split_remark_lines(split):
        yield Finding(text=f"{name}: {text}")
