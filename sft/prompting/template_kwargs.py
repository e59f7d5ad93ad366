"""Arguments of chat templates (`enable_thinking`): of the run, of a source and of a row, which comes first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sft.common.chat_arguments import RESERVED_KWARGS
from sft.common.did_you_mean import did_you_mean
from sft.common.errors import ConfigError
from sft.prompting.refusal import RowRefused, kind_of

KWARGS_COLUMN = "chat_template_kwargs"
"""The column with a row's own arguments: an object, or JSON text of one."""
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def row_kwargs(record: Mapping[str, Any], inherited: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a row: its own before those of its source. A null counts as missing.

    Raises:
        RowRefused: `bad_template_kwargs` if the column is not an object, or names what the program itself passes.
    """
    value = record.get(KWARGS_COLUMN)
    if value is None or value == "":
        return inherited
    if isinstance(value, str):  # of CSV, or of Parquet where rows have different names
        try:
            value = json.loads(value)
        except ValueError:
            raise RowRefused("bad_template_kwargs", f"{KWARGS_COLUMN!r} is not JSON: {value[:60]!r}") from None
    if not isinstance(value, Mapping):
        raise RowRefused("bad_template_kwargs", f"{KWARGS_COLUMN!r} must be an object, found {kind_of(value)}")
    taken = sorted(set(value) & RESERVED_KWARGS)
    if taken:
        raise RowRefused("bad_template_kwargs", f"{KWARGS_COLUMN!r}: {taken[0]!r} is given by the program")
    return {**inherited, **{name: inner for name, inner in value.items() if inner is not None}}


def kwargs_key(kwargs: Mapping[str, Any]) -> str:
    """Equal for equal arguments; empty without any."""
    return json.dumps(kwargs, sort_keys=True, ensure_ascii=False, default=str) if kwargs else ""


def unread_kwargs(kwargs: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Names that the program text of a template does not contain, so that they cannot have an effect."""
    return tuple(name for name in kwargs if not re.search(rf"\b{re.escape(name)}\b", source))


def check_kwargs(kwargs: Mapping[str, Any], source: str, key: str) -> None:
    """Refuse arguments of the settings that the template does not read.

    Args:
        kwargs: the arguments.
        source: program text of the template.
        key: of the settings.

    Raises:
        ConfigError: naming the first.
    """
    unread = unread_kwargs(kwargs, source)
    if unread:
        hint = did_you_mean(unread[0], set(_IDENTIFIER.findall(source)))
        raise ConfigError(f"{key}: the chat template does not read {unread[0]!r}, so it has no effect.{hint}")
