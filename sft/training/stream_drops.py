"""Rows of a stream that cannot be used: counted, logged, and a reason to stop when there are too many."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sft.common.data_records import DroppedRow
from sft.common.errors import DataError
from sft.common.run_records import DistributedContext
from sft.configuration.schema import DataConfig
from sft.data.checks import is_dropped_on_request, stops_run
from sft.data.remarks import CountedRemarks, Remark
from sft.processes.agreement import gather_values

logger = logging.getLogger("sft.train")
LOGGED_DROPS = 10
"""Dropped rows of a stream that are named; all are counted."""
MIN_SLOTS_FOR_SHARE = 1000
"""Rows of a stream that must be read before the share of dropped rows is checked."""


class StreamDrops:
    """Counts and logs the rows of a stream that cannot be used, and ends the run if the settings require it."""

    @classmethod
    def for_data(cls, config: DataConfig) -> "StreamDrops":
        """By the same rules as for stored rows."""
        return cls(
            stops_run=partial(stops_run, config=config),
            is_on_request=partial(is_dropped_on_request, config=config),
            max_share=config.max_bad_row_share,
        )

    def __init__(self, *, stops_run: Callable[[str], bool], is_on_request: Callable[[str], bool], max_share: float):
        """
        Args:
            stops_run: whether a single row that is dropped for this reason ends the run.
            is_on_request: whether rows dropped for this reason do not count as bad.
            max_share: of the rows read: if more are dropped, the run ends (after the first `MIN_SLOTS_FOR_SHARE` rows).
        """
        self._stops_run = stops_run
        self._is_on_request = is_on_request
        self._max_share = max_share
        self.counts: Counter[str] = Counter()
        """Reason -> rows, of all processes."""
        self.remarks = CountedRemarks()
        """On the rows that were used, of all processes."""
        self._read = 0

    def add(self, dropped: Sequence[DroppedRow], num_rows: int) -> None:
        """Counts the rows that the next step lacks.

        Args:
            dropped: the rows, of all processes.
            num_rows: rows that were read for the step, or made of these, by all processes.

        Raises:
            DataError: if they end the run.
        """
        lines = [f"{row.source}: {row.problem.message} ({row.problem.reason})" for row in dropped]
        stopping = [line for line, row in zip(lines, dropped, strict=True) if self._stops_run(row.problem.reason)]
        if stopping:
            raise DataError(
                *(f"{line}." for line in stopping),
                "Fix the rows, or set on_bad_rows: skip (on_too_long: drop; unanswerable: skip) to skip and count "
                "them.",
            )
        for line in lines[: max(LOGGED_DROPS - self.counts.total(), 0)]:
            logger.info("dropped  %s.", line)
        self._read += num_rows
        self.counts.update(row.problem.reason for row in dropped)
        bad = sum(count for reason, count in self.counts.items() if not self._is_on_request(reason))
        if self._read >= MIN_SLOTS_FOR_SHARE and bad / self._read > self._max_share:
            raise DataError(
                f"{bad:,} of the {self._read:,} rows streamed so far are dropped ({bad / self._read:.1%}): more than "
                f"max_bad_row_share {self._max_share:g} allows. Fix the data, or raise max_bad_row_share."
            )

    def add_remarks(self, remarks: Sequence[Remark]) -> None:
        """Counts remarks on the rows of the next step."""
        step = CountedRemarks()
        for source, kind, names in remarks:
            step.add(source, kind, names)
        self.remarks.update(step)


def take_dropped(
    batches: list[dict[str, Any]], drops: StreamDrops, micro_batch_size: int, context: DistributedContext, group: Any
) -> int:
    """Removes the dropped rows from a stream's batches, on all processes together, and counts them.

    Every process receives the dropped rows of all, so that all stop together.

    Args:
        batches: the micro-batches of a step; their entries `dropped` are taken out.
        drops: receives the rows.
        micro_batch_size: rows that were read for each micro-batch.
        context: this process.
        group: of all processes, in main memory; None for one process.

    Returns:
        How many rows this process's batches lack.

    Raises:
        DataError: if the stream cannot be read any further, or a dropped row ends the run.
    """
    failed = [problem for batch in batches for problem in batch.get("failed", ())]
    dropped = [row for batch in batches for row in batch.pop("dropped", ())]
    remarks = [remark for batch in batches for remark in batch.pop("remarks", ())]
    made = sum(batch.pop("made", 0) for batch in batches)
    found = gather_values((failed, made, dropped, remarks), context, group)
    problems = list(dict.fromkeys(problem for failures, *_ in found for problem in failures))
    if problems:
        raise DataError(*problems)
    slots = micro_batch_size * len(batches) * context.world_size
    num_rows = slots + sum(made for _, made, *_ in found)
    drops.add([row for *_, rows, _ in found for row in rows], num_rows)
    drops.add_remarks([remark for *_, remarks in found for remark in remarks])
    return len(dropped)
