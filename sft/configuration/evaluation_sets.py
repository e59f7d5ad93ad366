"""Named evaluation sets in the settings: `validation_file: {chats: a.jsonl, code: b.jsonl}`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sft.configuration.data_sections import DataConfig

SETS_OF_FILES = ("validation_file", "test_file", "forgetting_check")
"""Keys whose value is a file, or a mapping of names to files."""
UNNAMED = {"validation_file": "validation", "test_file": "test", "forgetting_check": "forgetting"}
"""Key -> how its only set is called in records, where it has no name."""
HELD_OUT = "held_out"
"""Name of the set that `validation_split` makes beside named files."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TAKEN = {
    *UNNAMED.values(),
    HELD_OUT,
    *("loss", "loss_unweighted", "perplexity", "token_accuracy", "sequence_accuracy", "expert", "dead_experts"),
    *("runtime", "samples_per_second", "steps_per_second", "samples_ended", "total", "mean", "all", "before", "after"),
}
"""Names of figures, or of sets without a name."""


def files_of_sets(value: str | Mapping[str, str] | None) -> dict[str | None, str]:
    """Name of each set -> its file, as one of `SETS_OF_FILES` gives them. A single file has the name None."""
    if value is None:
        return {}
    return {None: value} if isinstance(value, str) else dict(value.items())


def validation_set_names(data: DataConfig) -> tuple[str, ...]:
    """Names of the validation sets, in order; none where the only one has no name."""
    if not isinstance(data.validation_file, Mapping):
        return ()
    return (*data.validation_file, *([HELD_OUT] if data.validation_split else []))


def set_name_problem(name: str) -> str | None:
    """Why a set cannot have a name, as the end of a line; None if it can."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a name of a set: use letters, digits, _ and -, at most 64."
    if name.lower() in _TAKEN:
        return f"{name!r} is the name of a figure or of another set; choose another."
    return None
