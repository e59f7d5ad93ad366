"""Reasons why data cannot be trained on. A dry run lists them, a training run stops at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sft.common.data_records import DataReport, SplitReport
from sft.configuration.data_sections import SKIP
from sft.configuration.schema import DataConfig
from sft.data.row_functions import DELIBERATE_DROPS
from sft.prompting.formats import UNANSWERABLE

LISTED_ROWS = 10
"""Dropped rows of a split that are listed."""
_ANSWER_THEM = (
    'For questions without an answer, set unanswerable: skip to skip and count them, or unanswerable: "I don\'t know." '
    "(any text) to train that answer."
)

_FIXES = {
    "nothing_left_after_truncation": "raise max_seq_length",
    "tool_calls_left_out": "choose a chat_template that writes tool calls",
}
"""Reason -> what to do about all of its rows at once."""


def find_problems(report: DataReport, config: DataConfig) -> list[str]:
    """Every reason not to train on this data, one line each. Empty if there is none."""
    problems: list[str] = []
    for name, split in report.splits.items():
        problems += _split_problems(name, split, config)
    problems += _unanswerable(report, config)
    train = report.train
    if train.rows_used and not train.rows_with_trained_end:
        problems.append(_end_never_trained(train, config))
    for number, source in enumerate(train.sources):
        if source.probability is not None and not source.rows_used:
            problems.append(
                f"datasets[{number}].probability: none of the rows of {source.name} can be used, so none can be drawn. "
                "Remove the source."
            )
        elif source.rows_used and not source.rows_an_epoch:
            problems.append(
                f"datasets[{number}].weight: with {source.weight:g}, an epoch takes none of the {source.rows_used:,} "
                f"rows of {source.name}. Raise the weight or remove the source."
            )
    validation = report.validation
    # Compare the quotient: it is the float nearest to the exact share, as the setting is. A product may differ.
    if validation is not None and report.leakage and report.leakage / validation.rows_used > config.max_leakage_share:
        first = "; ".join(f"{leak} is {original}" for leak, original in report.leakage_examples[:3])
        problems.append(
            f"{report.leakage:,} of {validation.rows_used:,} validation rows are also in the training data ({first}): "
            f"more than max_leakage_share {config.max_leakage_share:g} allows. Remove them or raise max_leakage_share."
        )
    for one in report.sets:
        if one.kind == "test" and one.leakage and one.leakage / one.split.rows_used > config.max_leakage_share:
            first = "; ".join(f"{leak} is {original}" for leak, original in one.leakage_examples[:3])
            problems.append(
                f"{one.leakage:,} of {one.split.rows_used:,} {one.title} rows are also in the training data ({first}): "
                f"more than max_leakage_share {config.max_leakage_share:g} allows. Remove them or raise "
                "max_leakage_share."
            )
    return problems


def stops_run(reason: str, config: DataConfig) -> bool:
    """Whether a single row dropped for this reason stops a run."""
    if reason in DELIBERATE_DROPS or (reason == UNANSWERABLE and config.unanswerable == SKIP):
        return False
    return (config.on_too_long if reason == "too_long" else config.on_bad_rows) == "error"


def is_dropped_on_request(reason: str, config: DataConfig) -> bool:
    """Whether rows dropped for this reason do not count as bad: a setting asks for it."""
    is_skipped = reason == UNANSWERABLE and config.unanswerable == SKIP
    return reason == "too_long" or reason in DELIBERATE_DROPS or is_skipped


def bad_row_lines(report: DataReport, config: DataConfig) -> list[str]:
    """The first rows that stop a run, each with its location and what is wrong with it."""
    lines = []
    for split in report.splits.values():
        bad = _stopping(split, config)
        bad.pop(UNANSWERABLE, None)  # one line names them all
        rows = [row for row in split.dropped_examples if row.problem.reason in bad]
        lines += [f"{row.source}: {row.problem.message} ({row.problem.reason})." for row in rows[:LISTED_ROWS]]
        if sum(bad.values()) > LISTED_ROWS:
            lines.append(f"... and {sum(bad.values()) - LISTED_ROWS:,} more.")
    return lines


def _split_problems(name: str, split: SplitReport, config: DataConfig) -> Iterator[str]:
    bad = _stopping(split, config)
    too_long = bad.pop("too_long", 0)
    unanswerable = bad.pop(UNANSWERABLE, 0)
    if too_long:
        assert split.lengths is not None  # too long rows were tokenized
        yield (
            f"{too_long:,} of {split.rows_read:,} {name} rows are longer than max_seq_length "
            f"{config.max_seq_length:,}, and on_too_long is error. The longest has {split.lengths.longest:,} tokens: "
            "raise max_seq_length, or set on_too_long to truncate or drop."
        )
    if bad:
        count = sum(bad.values())
        yield f"{count:,} of {split.rows_read:,} {name} rows cannot be used ({_counted(bad)}). " + _remedy(
            bad, split, config
        )
    elif split.rows_used == 0 and not unanswerable:
        yield (
            f"{split.files[0]}: none of its {split.rows_read:,} rows can be used, so there is no supervised token: "
            f"{_counted(split.rows_dropped)}."
        )
    elif not unanswerable:
        yield from _too_many_dropped(name, split, config)


def _remedy(bad: Mapping[str, int], split: SplitReport, config: DataConfig) -> str:
    """What to do about rows that stop a run. Skipping them is only proposed where rows are left."""
    fixes = ["Fix them", *(fix for reason, fix in _FIXES.items() if reason in bad)]
    if not split.rows_used:
        return f"{_or(fixes)}: no row is left."
    dropped = sum(count for reason, count in split.rows_dropped.items() if not is_dropped_on_request(reason, config))
    share = dropped / split.rows_read
    remedy = f"{', '.join(fixes)}, or set on_bad_rows to skip, which drops and counts them."
    if share > config.max_bad_row_share:
        remedy += f" To skip {share:.1%} of the rows, raise max_bad_row_share (now {config.max_bad_row_share:g}), too."
    return remedy


def _or(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, or {items[-1]}"


def _stopping(split: SplitReport, config: DataConfig) -> dict[str, int]:
    """Reason -> dropped rows, for the reasons that stop a run."""
    return {reason: count for reason, count in split.rows_dropped.items() if stops_run(reason, config)}


def _too_many_dropped(name: str, split: SplitReport, config: DataConfig) -> Iterator[str]:
    dropped = {
        reason: count for reason, count in split.rows_dropped.items() if not is_dropped_on_request(reason, config)
    }
    count = sum(dropped.values())
    if count / split.rows_read > config.max_bad_row_share:
        yield (
            f"{count:,} of {split.rows_read:,} {name} rows ({count / split.rows_read:.1%}) are dropped "
            f"({_counted(dropped)}): more than max_bad_row_share {config.max_bad_row_share:g} allows. Fix the data or "
            f"raise max_bad_row_share.{f' {_ANSWER_THEM}' if UNANSWERABLE in dropped else ''}"
        )


def _unanswerable(report: DataReport, config: DataConfig) -> Iterator[str]:
    """One line for all questions without an answer that stop a run: there are many of them, all meant."""
    found = []
    for name, split in report.splits.items():
        count = _stopping(split, config).get(UNANSWERABLE, 0)
        rows = [row.source for row in split.dropped_examples if row.problem.reason == UNANSWERABLE]
        if count:
            found.append(f"{count:,} of {split.rows_read:,} {name} rows (the first is {rows[0]})")
    if found:
        yield f"{' and '.join(found)} are questions without an answer (unanswerable). {_ANSWER_THEM}"


def _end_never_trained(split: SplitReport, config: DataConfig) -> str:
    if config.on_too_long == "truncate" and split.rows_that_lose_the_end == split.rows_used:
        assert split.lengths is not None  # used rows were tokenized
        return (
            f"the end token is never trained: max_seq_length truncates it in all {split.rows_used:,} train rows, so "
            f"the model would not learn to stop. Raise max_seq_length; {split.lengths.longest:,} truncates no row."
        )
    if all(source.format_name == "input_ids" for source in split.sources):
        return (
            f"the end token is never trained: none of {split.rows_used:,} train rows of token ids trains a known end "
            "token, so the model would not learn to stop. Add it to the rows, or set add_end_token to true."
        )
    return (
        "the end token is never trained: the chat template writes no known end token after an answer in "
        f"{split.rows_used:,} train rows, so the model would not learn to stop. Set add_end_token to true, or choose "
        "another chat_template."
    )


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
