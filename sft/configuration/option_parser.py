"""Options of an entry that reads no configuration file; a mistake is one line, as everywhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from sft.common.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all other mistakes are."""

    def error(self, message: str) -> NoReturn:
        """Raises:
        ConfigError: always.
        """
        raise ConfigError(f"command line: {message}. --help lists what there is.")


def number(kind: type, lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    """A type for `add_argument`: a number within limits.

    Args:
        kind: int or float.
        lowest: the smallest that is allowed.
        highest: the largest.
    """
    wanted = f"a {'whole ' if kind is int else ''}number from {lowest:g}" + (
        f" to {highest:g}" if highest < math.inf else " up"
    )

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest or value == math.inf:
            raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r}")
        return value

    return read
