"""The verdict on generated answers: `answer_scores`."""

from __future__ import annotations

from sft.common.text import counted
from sft.reporting.report.records import ReportRecords
from sft.reporting.report.verdicts.verdict import BAD, GOOD, WARN, Verdict, as_sentence

_RULE = (
    "The first score of answer_scores, on the same rows of each validation set before and after training: it learned "
    "the job if the 95 % interval after training lies above the one before in every set, and not if it lies below in "
    "any."
)


def answers_verdict(records: ReportRecords) -> Verdict | None:
    """Whether generated answers became better; None without scores before and after training."""
    result = records.result
    before = result.eval_before.answers if result is not None and result.eval_before is not None else {}
    after = result.eval_after.answers if result is not None and result.eval_after is not None else {}
    names = [
        name for name in after if name in before and after[name].get("intervals") and before[name].get("intervals")
    ]
    if not names:
        return None
    rises, falls, figures = [], [], []
    for name in names:
        metric = next(iter(after[name]["intervals"]))
        old, new = before[name]["intervals"].get(metric), after[name]["intervals"][metric]
        if old is None:
            continue
        rises.append(new["low"] > old["high"])
        falls.append(new["high"] < old["low"])
        label = "" if name == "validation" else f"{name}: "
        figures.append(
            f"{label}{metric} {before[name][metric]:.3f} -> {after[name][metric]:.3f} "
            f"(95 % interval {new['low']:.3f} to {new['high']:.3f}, {counted(after[name]['rows'], 'row')})"
        )
    if not rises:
        return None
    if any(falls):
        state, sentence = BAD, "No. Answers are worse than before training."
    elif all(rises):
        state, sentence = GOOD, "Yes. Answers are better than before training."
    else:
        state, sentence = WARN, "Not clearly. The intervals before and after training overlap."
    return Verdict(
        question="Did it learn the job?", state=state, sentence=sentence, figures=as_sentence(figures), rule=_RULE
    )
