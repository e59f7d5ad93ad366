"""Mixtures of sources: how often an epoch takes the rows of each source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sft.common.errors import ConfigError
from sft.data.prepared import Split
from sft.data.store import PreparedRows

MAX_ROWS = 1_000_000_000
"""Rows of an epoch that may be drawn: eight bytes of memory each."""
_DRAWS = 1 << 16
"""Sources that are drawn together."""


def rows_of_epoch(train: Split, seed: int, *, all_exhausted: bool = False) -> PreparedRows:
    """The rows of one epoch: each row as often as the `weight` of its source, a fractional rest chosen by seed.

    Where sources have probabilities, the source of each row is drawn instead (see `drawn_sources`). A source whose rows
    are used only in part, or once more in part, has them chosen by seed.
    """
    source_of_row = train.rows.source_indices()
    rows_of_source = [np.flatnonzero(source_of_row == number) for number in range(len(train.prepared))]
    if all(source.probability is not None for source in train.prepared):
        probabilities = [source.probability or 0.0 for source in train.prepared]
        sizes = [len(own) for own in rows_of_source]
        drawn = drawn_sources(probabilities, sizes, seed=seed, all_exhausted=all_exhausted)
        chosen = np.empty(len(drawn), dtype=np.int64)
        for number, own in enumerate(rows_of_source):
            places = np.flatnonzero(drawn == number)
            if len(own):
                chosen[places] = _repeated(own, len(places), [seed, number])
        return train.rows.select(chosen)
    if all(source.weight == 1 for source in train.prepared):
        return train.rows
    taken = [
        _repeated(own, int(source.weight) * len(own) + round(source.weight % 1 * len(own)), [seed, number])
        for number, (source, own) in enumerate(zip(train.prepared, rows_of_source, strict=True))
    ]
    return train.rows.select(np.concatenate(taken))


def drawn_sources(
    probabilities: Sequence[float], sizes: Sequence[int], *, seed: int, all_exhausted: bool
) -> np.ndarray:
    """The source of each row of an epoch, int64 `[N]`: a function of its arguments alone.

    The epoch ends with the last row of the source that is used up first, or last (`all_exhausted`). Sources without
    rows are not drawn.

    Raises:
        ConfigError: If the epoch would be too long.
    """
    shares = np.where(np.asarray(sizes) > 0, probabilities, 0.0)
    if not shares.sum():
        return np.zeros(0, dtype=np.int64)
    shares /= shares.sum()
    longest = max(
        (size / share, number) for number, (size, share) in enumerate(zip(sizes, shares, strict=True)) if size
    )
    if all_exhausted and longest[0] > MAX_ROWS:
        raise ConfigError(
            f"datasets_stop: all_exhausted needs about {longest[0]:,.0f} rows per epoch to use up "
            f"datasets[{longest[1]}] by its probability. Raise that probability, or set first_exhausted."
        )
    generator = np.random.default_rng([seed, len(sizes)])
    wanted = {number: size for number, size in enumerate(sizes) if size}
    counts = np.zeros(len(sizes), dtype=np.int64)
    blocks: list[np.ndarray] = []
    while True:
        block = generator.choice(len(sizes), _DRAWS, p=shares)
        counts += np.bincount(block, minlength=len(sizes))
        blocks.append(block)
        done = [counts[number] >= size for number, size in wanted.items()]
        if all(done) if all_exhausted else any(done):
            break
    drawn = np.concatenate(blocks)
    used_up = [(number, size) for number, size in wanted.items() if counts[number] >= size]
    ends = [int(np.flatnonzero(drawn == number)[size - 1]) + 1 for number, size in used_up]
    return drawn[: max(ends) if all_exhausted else min(ends)]


def _repeated(rows: np.ndarray, count: int, seed: list[int]) -> np.ndarray:
    """`count` of these rows: all of them as often as it goes, and a rest that is chosen by seed, in order."""
    repeats, num_extra = divmod(count, len(rows)) if len(rows) else (0, 0)
    extra = np.random.default_rng(seed).permutation(len(rows))[:num_extra]
    return np.concatenate([*[rows] * repeats, rows[np.sort(extra)]])
