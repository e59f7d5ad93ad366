"""Which rows each process sees, micro-batch by micro-batch: a pure function of (seed, epoch, sizes).

The rows of an optimizer step depend on the product batch x accumulation x processes alone, not on how it is split.
That is what makes 1 x 8 equal 8 x 1, two processes equal one, and a resumed run find its place by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sft.batching.packing import PackPlan

MEGA_BATCHES = 50
"""Global micro-batches sorted together by `group_by_length`: enough to find neighbours of like length, few enough to
keep the order random."""


def filler(row: int) -> int:
    """The index that stands for "a row in this shape, with nothing to train": see `SupervisedRows`."""
    return -row - 1


class RankBatchSampler:
    """The micro-batches (lists of row indices) of one process.

    Every process gets the same number of micro-batches, so that none waits for another for ever. Where the last rows
    do not go round, a process gets a filler: a row whose labels are all ignored. No row is trained twice.
    """

    def __init__(
        self,
        num_rows: int,
        micro_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        strategy: str = "random",
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ):
        """Args:
        num_rows: rows in the dataset.
        micro_batch_size: rows in a micro-batch of one process.
        rank, world_size: this process among all.
        seed: of the order; unused for `sequential`.
        strategy: `random`, `sequential`, or `group_by_length` (needs `lengths`).
        lengths: tokens of each row.
        drop_last: leave out the last micro-batch of all processes if it is not full.
        """
        self.num_rows = num_rows
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.strategy = strategy
        self.lengths = lengths
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""
        self.epoch = epoch

    @property
    def _rows_together(self) -> int:
        """Rows of one micro-batch of all processes."""
        return self.micro_batch_size * self.world_size

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self._rows_together)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for index in range(len(self)):
            together = order[index * self._rows_together : (index + 1) * self._rows_together]
            own = together[self.rank :: self.world_size]
            yield [int(row) for row in own] or [filler(int(together[0]))]

    def order(self) -> np.ndarray:
        """All rows in this epoch's order, `[num_rows]`."""
        if self.strategy == "sequential":
            return np.arange(self.num_rows)
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.num_rows)
        if self.strategy == "group_by_length":
            return self._grouped_by_length(order, generator)
        return order

    def _grouped_by_length(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Rows of like length side by side within stretches of the random order; the stretches' batches shuffled."""
        lengths = np.asarray(self.lengths)
        stretch = MEGA_BATCHES * self._rows_together
        grouped: list[np.ndarray] = []
        for start in range(0, len(order), stretch):
            rows = order[start : start + stretch]
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
            batches = [rows[i : i + self._rows_together] for i in range(0, len(rows), self._rows_together)]
            # A short batch may only stand at the very end, or rows would shift across batches.
            shuffled = [
                batches[i] for i in generator.permutation(len(batches)) if len(batches[i]) == self._rows_together
            ]
            grouped += shuffled + [batch for batch in batches if len(batch) < self._rows_together]
        return np.concatenate(grouped)


class PackedBatchSampler(RankBatchSampler):
    """Micro-batches of packs: as `RankBatchSampler` deals out rows, this deals out packs.

    Each row of a pack comes with the place of its pack in the micro-batch.
    """

    def __init__(self, packs: PackPlan, micro_batch_size: int, **options: object):
        """Args:
        packs: the pattern of the packs; each epoch deals the rows out to it anew.
        micro_batch_size: packs in a micro-batch of one process.
        options: as for `RankBatchSampler`.
        """
        super().__init__(packs.num_packs, micro_batch_size, **options)
        self._packs = packs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        packs = self._packs.deal(self.seed, self.epoch, shuffle=self.strategy != "sequential")
        for batch in super().__iter__():
            # A filler stands for a pack of fillers.
            rows = [(pack, packs[pack if pack >= 0 else filler(pack)].tolist()) for pack in batch]
            yield [
                (row if pack >= 0 else filler(row), place)
                for place, (pack, of_pack) in enumerate(rows)
                for row in of_pack
            ]
