"""The verdict on what fine-tuning cost elsewhere: `forgetting_check`."""

from __future__ import annotations

import math

from sft.common.text import change_text
from sft.reporting.report.records import ReportRecords
from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN, Verdict, as_sentence

NOTICEABLE, MUCH = 0.05, 0.25
"""Rise of the perplexity, as a share."""


def forgetting_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the model lost what it could do before; None without `forgetting_check`, or before the end."""
    result = records.result
    if result is None:
        return None
    before, after = (result.at_ends.get(f"forgetting_{when}") for when in ("before", "after"))
    if after is None:
        return None
    changes, figures = [], []
    for name, one in after.sets.items():
        earlier = before.sets.get(name) if before is not None else None
        if earlier is None or not all(map(math.isfinite, (earlier.perplexity, one.perplexity))):
            continue
        change = one.perplexity / earlier.perplexity - 1
        changes.append(change)
        label = "" if name == "forgetting" else f"{name}: "
        figures.append(f"{label}perplexity {earlier.perplexity:,.2f} -> {one.perplexity:,.2f}, {change_text(change)}")
    if not changes:
        state, sentence = UNKNOWN, "Not known: there is no finite perplexity before and after training."
    elif max(changes) > MUCH:
        state, sentence = BAD, "Yes, much. Lower learning_rate, train for fewer steps, use LoRA, or mix such data in."
    elif max(changes) > NOTICEABLE:
        state, sentence = WARN, "Yes, noticeably."
    else:
        state, sentence = GOOD, "No."
    return Verdict(
        question="Did it forget what it could do before?",
        state=state,
        sentence=sentence,
        figures=as_sentence(figures),
        rule=f"Perplexity on the data of forgetting_check, after training against before. A rise of more than "
        f"{NOTICEABLE:.0%} in any set is noticeable, of more than {MUCH:.0%} it is much.",
    )
