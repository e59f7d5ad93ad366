"""Rules that a declared type may carry beside it: `Annotated[int, Range(minimum=1)]`."""

from __future__ import annotations

from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """Bounds of a number, both ends allowed unless `above` (lower) or `below` (upper) say otherwise."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None


class WholeOrShare(NamedTuple):
    """A whole number of steps from `least` up, or a share of all steps between 0 and 1."""

    least: int = 1


class StepLimit(NamedTuple):
    """A whole number from 1 up, or -1 for no limit."""


class IsPath(NamedTuple):
    """A place on disk: a leading `~` is the home folder."""


class CommaSeparated(NamedTuple):
    """A list of names that may also be written `a,b`."""

    null_is_empty: bool = False
    """Whether null stands for no name at all."""


PositiveInt = Annotated[int, Range(minimum=1)]
NonNegativeInt = Annotated[int, Range(minimum=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(minimum=0)]
Share = Annotated[float, Range(minimum=0, below=1)]
WholeShare = Annotated[float, Range(minimum=0, maximum=1)]
Steps = Annotated[float, WholeOrShare()]
PathText = Annotated[str, IsPath()]
Names = Annotated[list[str], CommaSeparated()]
