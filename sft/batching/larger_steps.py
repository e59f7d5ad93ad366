"""How much of a step's time the optimizer takes, and what more rows a step would save.

Forward and backward pass take time in proportion to the tokens of a step; the optimizer reads and writes every trained
weight once a step, however few tokens there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from sft.common.run_records import ModelFootprint

_TOKENS_OF_A_PASS = {"cpu": 40, "cuda": 500}
"""How many tokens are trained in the time of AdamW's pass over all weights: on CPU of SmolLM2-135M, measured
(benchmarks/RESULTS.md); on an H100 by arithmetic from its datasheet, not measured."""
_MUCH = 0.15
"""Share of a step from which on more rows are advised."""
_MOST_TIMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LargerStep:
    """A step of more rows."""

    optimizer_share: float
    """Of the time of a step as it is now."""
    times: int
    """How many times as many rows."""
    saved_share: float
    """Of the time of an epoch."""


def larger_step(
    footprint: ModelFootprint, num_tokens: float, device: str, *, sharded_over: int = 1
) -> LargerStep | None:
    """The step that is advised; None where the optimizer takes little of the time, or the device is not known.

    Args:
        footprint: of the model, adapters included.
        num_tokens: of one step in one process, on average.
        device: as torch spells it.
        sharded_over: processes that share the optimizer's pass.
    """
    trained = footprint.num_trainable_parameters / footprint.num_parameters
    pass_tokens = _TOKENS_OF_A_PASS.get(device.partition(":")[0], 0) * trained / sharded_over

    def share(times: int) -> float:
        return pass_tokens / (pass_tokens + times * num_tokens)

    if share(1) < _MUCH:
        return None
    times = 2
    while share(times) >= _MUCH / 2 and times < _MOST_TIMES:
        times *= 2
    return LargerStep(optimizer_share=share(1), times=times, saved_share=1 - (1 - share(1)) / (1 - share(times)))
