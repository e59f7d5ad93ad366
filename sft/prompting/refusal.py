"""Why a row is refused, and how its values are named in the message."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from sft.common.data_records import RowProblem


class RowRefused(Exception):
    """A row cannot be used, for the reason in `problem`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.problem = RowProblem(reason=reason, message=message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with both arguments: by default an exception is rebuilt from its message only."""
        return type(self), (self.problem.reason, self.problem.message)


def kind_of(value: Any) -> str:
    """The name of a JSON type in a message."""
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "a number"
    return {list: "a list", dict: "an object", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """A value in a message, shortened to one line."""
    text = repr(value) if isinstance(value, str | int | float | None) else kind_of(value)
    return text if len(text) <= 40 else text[:37] + "..."


def weight_of(value: Any, where: str) -> float:
    """A weight in the loss; 1 if it is missing.

    Raises:
        RowRefused: `bad_weight` if it is not a finite number from 0.
    """
    if value is None:
        return 1.0
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    try:
        weight = float(value) if is_number else math.nan
    except (OverflowError, ValueError):  # an integer beyond all floats, a decimal that is a signaling NaN
        weight = math.inf
    if not 0 <= weight < math.inf:
        raise RowRefused("bad_weight", f"{where} must be a number from 0, found {shown(value)}")
    return weight
