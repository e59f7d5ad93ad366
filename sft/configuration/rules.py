"""Rules attached to a declared type: `Annotated[int, Range(minimum=1)]`."""

from __future__ import annotations

from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """Bounds of a number: `minimum` and `maximum` are inclusive, `above` and `below` exclusive."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )


class WholeOrShare(NamedTuple):
    """A number of steps (an integer of at least `least`), or a share of all steps between 0 and 1."""

    least: int = 1


MAX_STEPS = 10**15
"""Far more than any run has: steps are also computed in 64 bits."""


class StepLimit(NamedTuple):
    """A positive integer, or -1 for no limit."""


class IsPath(NamedTuple):
    """A path: a leading `~` is expanded to the home folder."""


class CommaSeparated(NamedTuple):
    """A list of names, which may also be written `a,b`."""

    null_is_empty: bool = False
    """Whether null means an empty list."""


PositiveInt = Annotated[int, Range(minimum=1)]
NonNegativeInt = Annotated[int, Range(minimum=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(minimum=0)]
Share = Annotated[float, Range(minimum=0, below=1)]
WholeShare = Annotated[float, Range(minimum=0, maximum=1)]
Steps = Annotated[float, WholeOrShare()]
PathText = Annotated[str, IsPath()]
Names = Annotated[list[str], CommaSeparated()]
