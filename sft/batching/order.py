"""Which rows each process sees, micro-batch by micro-batch: a pure function of (seed, epoch, sizes).

The rows of an optimizer step depend on the product batch x accumulation x processes alone, not on the factors. That is
why 1 x 8 equals 8 x 1, two processes equal one, and a resumed run finds its position by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sft.batching.packing import PackPlan

MEGA_BATCHES = 50
"""Global micro-batches sorted together by `group_by_length`: enough to find rows of similar length, few enough to keep
the order random."""

RowIndex = int | tuple[int, int]
"""A row's number (negative for a filler), or that and the index of its pack in the micro-batch."""


def filler(row: int) -> int:
    """The index of a row with all labels ignored: same shape as `row`, nothing to train (see `SupervisedRows`)."""
    return -row - 1


class RankBatchSampler:
    """The micro-batches (lists of row indices) of one process.

    Every process gets the same number of micro-batches, so that no process waits for another forever. Where the last
    rows do not suffice for all processes, a process gets a filler: a row whose labels are all ignored. No row is
    trained twice.
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
        lengths: Sequence[int] | np.ndarray | None = None,
        drop_last: bool = False,
    ):
        """
        Args:
            num_rows: rows in the dataset.
            micro_batch_size: rows in a micro-batch of one process.
            rank, world_size: this process among all.
            seed: of the order; unused for `sequential`.
            strategy: `random`, `sequential`, `by_length` (short rows first, those of equal length at random) or
                `group_by_length`; the last two need `lengths`.
            lengths: tokens of each row.
            drop_last: omit the last global micro-batch if it is not full.
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
        """Select the epoch whose order the next iteration follows."""
        self.epoch = epoch

    @property
    def _rows_together(self) -> int:
        """Rows of one global micro-batch: of all processes together."""
        return self.micro_batch_size * self.world_size

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self._rows_together)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[Sequence[RowIndex]]:
        return self._own_batches()

    def order(self) -> np.ndarray:
        """All rows in this epoch's order, int64 `[num_rows]`."""
        if self.strategy == "sequential":
            return np.arange(self.num_rows)
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.num_rows)
        if self.strategy == "by_length":
            return order[np.argsort(np.asarray(self.lengths)[order], kind="stable")]
        if self.strategy == "group_by_length":
            return self._grouped_by_length(order, generator)
        return order

    def _own_batches(self) -> Iterator[list[int]]:
        """This process's micro-batches: every `world_size`-th row of each global one."""
        order = self.order()
        for index in range(len(self)):
            together = order[index * self._rows_together : (index + 1) * self._rows_together]
            own = together[self.rank :: self.world_size]
            yield [int(row) for row in own] or [filler(int(together[0]))]

    def _grouped_by_length(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Rows sorted by length within sections of the random order, and each section's batches shuffled."""
        lengths = np.asarray(self.lengths)
        section = MEGA_BATCHES * self._rows_together
        grouped: list[np.ndarray] = []
        for start in range(0, len(order), section):
            rows = order[start : start + section]
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
            batches = [rows[i : i + self._rows_together] for i in range(0, len(rows), self._rows_together)]
            # A short batch must stay at the very end, or rows would shift between batches.
            shuffled = [
                batches[i] for i in generator.permutation(len(batches)) if len(batches[i]) == self._rows_together
            ]
            grouped += shuffled + [batch for batch in batches if len(batch) < self._rows_together]
        return np.concatenate(grouped)


class PackedBatchSampler(RankBatchSampler):
    """Micro-batches of packs: assigns packs to processes as `RankBatchSampler` assigns rows.

    Each row comes with the index of its pack in the micro-batch.
    """

    def __init__(
        self,
        packs: PackPlan,
        micro_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        strategy: str = "random",
        drop_last: bool = False,
    ):
        """
        Args:
            packs: the pattern of the packs; each epoch reassigns the rows to it.
            micro_batch_size: packs in a micro-batch of one process.
            rank, world_size, seed, drop_last: as for `RankBatchSampler`.
            strategy: `sequential`, or random order.
        """
        super().__init__(
            packs.num_packs,
            micro_batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
            strategy=strategy,
            drop_last=drop_last,
        )
        self._packs = packs

    def __iter__(self) -> Iterator[Sequence[RowIndex]]:
        packs = self._packs.deal(self.seed, self.epoch, shuffle=self.strategy != "sequential")
        for batch in self._own_batches():
            # A filler represents a pack of fillers.
            rows = [(pack, packs[pack if pack >= 0 else filler(pack)].tolist()) for pack in batch]
            yield [
                (row if pack >= 0 else filler(row), index)
                for index, (pack, of_pack) in enumerate(rows)
                for row in of_pack
            ]
