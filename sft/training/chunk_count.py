"""Into how many chunks a micro-batch is split: more after a shortage of memory, and none again some time later.

A shortage may have a cause that passes: fragmented memory, another program, an unusually long row. So after some steps
the whole micro-batch is tried again, and if that fails, again after twice as many steps, a few times in all. What is
tried when depends on the shortages alone, so it is the same on all processes and, kept in checkpoints, after a resume.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sft.batching.chunks import next_num_chunks

logger = logging.getLogger("sft.train")
FIRST_WAIT = 100
"""Steps from a shortage to the first attempt with whole micro-batches."""
MOST_ATTEMPTS = 5


@dataclass(kw_only=True, slots=True)
class ChunkCount:
    """The number of chunks, and when a whole micro-batch is tried again."""

    micro_batch_size: int
    """Rows, or packs, of a whole micro-batch."""
    num_chunks: int = 1
    shortages: int = 0
    """How often memory ran out and the number of chunks was raised; of this process, not of the run."""
    chunks_that_fit: int = 1
    """The number after the last shortage."""
    attempts: int = 0
    """How often whole micro-batches were tried again."""
    next_attempt: int | None = None
    """Step of the next attempt; None if there is none."""

    def begin_step(self, step: int) -> None:
        """Returns to whole micro-batches, if it is time to try them again."""
        if self.next_attempt is None or step < self.next_attempt:
            return
        self.num_chunks, self.next_attempt = 1, None
        self.attempts += 1
        logger.info(
            "Step %d: trying whole micro-batches again since the last shortage of memory (attempt %d of %d).",
            step,
            self.attempts,
            MOST_ATTEMPTS,
        )

    def raise_after_shortage(self, step: int) -> None:
        """Splits micro-batches further, at once as far as was necessary before."""
        self.shortages += 1
        further = next_num_chunks(self.micro_batch_size, self.num_chunks)
        self.num_chunks = self.chunks_that_fit = max(further, self.chunks_that_fit)
        can_try = self.attempts < MOST_ATTEMPTS
        self.next_attempt = step + FIRST_WAIT * 2**self.attempts if can_try else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: value for name, value in asdict(self).items() if name != "shortages"}

    def resume_from(self, saved: Mapping[str, Any] | None) -> None:
        """Continues where a checkpoint was saved, if this run uses its batch plan."""
        now = {"micro_batch_size": self.micro_batch_size, "num_chunks": self.num_chunks}
        if saved is None or any(saved.get(name) != value for name, value in now.items()):
            return
        for field in fields(self):
            if field.name in saved:
                setattr(self, field.name, saved[field.name])
