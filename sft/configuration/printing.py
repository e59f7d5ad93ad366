"""The resolved configuration for a person: every key, its value in force, and where that was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from sft.configuration.batch_sizes import AUTO, with_accumulation
from sft.configuration.keys import keys_of
from sft.configuration.reading import COMMAND_LINE
from sft.configuration.schema import FLAT_SECTIONS, NESTED_SECTIONS, SFTConfig

_WIDEST = 64
"""Values up to so many columns have their comments in line."""


def yaml_with_origins(values: Mapping[str, Any], config: SFTConfig) -> str:
    """YAML text that `load_config` reads back to the same settings.

    Args:
        values: every key that may be shown, in the file's order.
        config: what they are from, with the origins of its keys.
    """
    lines: list[tuple[str, str]] = []
    left = dict(values)
    for section in FLAT_SECTIONS.values():
        lines += [("", ""), (f"# {(section.__doc__ or '').strip()}", "")]
        for name in keys_of(section):
            lines += _lines_of(name, left.pop(name), config)
    further = [name for name in left if name not in NESTED_SECTIONS]
    if further:
        lines += [("", ""), ("# Passed on to transformers' TrainingArguments.", "")]
        for name in further:
            lines += _lines_of(name, left.pop(name), config)
    lines += [("", ""), ("# Sections of their own.", "")]
    for name, value in left.items():
        lines += _lines_of(name, value, config)
    widths = [len(text) for text, comment in lines if comment and len(text) <= _WIDEST]
    column = max(widths, default=0)
    return "\n".join(f"{text:<{column}}  # {comment}" if comment else text for text, comment in lines).lstrip("\n")


def _lines_of(key: str, value: Any, config: SFTConfig, name: str | None = None) -> Iterator[tuple[str, str]]:
    """A key as lines of text, each with the place it comes from; sections and entries of `datasets` key by key."""
    name = name or key
    is_section = key in NESTED_SECTIONS and isinstance(value, Mapping)
    is_records = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    if is_section:
        yield f"{name}:", _origin(key, config)
        for inner, inner_value in value.items():
            yield from _lines_of(f"{key}.{inner}", inner_value, config, f"  {inner}")
    elif is_records:
        yield f"{name}:", _origin(key, config)
        for number, record in enumerate(value):
            for place, (inner, inner_value) in enumerate(record.items()):
                mark = "  - " if place == 0 else "    "
                yield from _lines_of(f"{key}[{number}].{inner}", inner_value, config, f"{mark}{inner}")
    else:
        yield f"{name}: {_scalar(value)}", _origin(key, config)


def _origin(key: str, config: SFTConfig) -> str:
    origin = config.origins.get(key)
    if origin is None:
        return _default(key, config)
    file, _, line = origin.rpartition(":")
    place = origin if origin == COMMAND_LINE else f"{file} line {line}"
    return f"{place}, translated from {config.written[key]}" if key in config.written else place


def _accumulation(config: SFTConfig) -> str:
    training, count = config.training, config.distributed.num_gpus or 1
    if training.per_device_train_batch_size == AUTO:
        return "default; in the run what global_batch_size and the size that is found make"
    steps = with_accumulation(training, count).gradient_accumulation_steps
    return f"default; in the run {steps}, by global_batch_size on {count} process{'es' * (count > 1)}"


def _default(key: str, config: SFTConfig) -> str:
    """`default`, or what the value follows from although it was not given, or what takes its place in the run."""
    if key == "gradient_accumulation_steps" and config.training.global_batch_size is not None:
        return _accumulation(config)
    section = next((name for name, kind in FLAT_SECTIONS.items() if key in keys_of(kind)), None)
    if section is not None and getattr(getattr(config, section), key) != keys_of(FLAT_SECTIONS[section])[key].default:
        chief = "auto_batch_size" if config.training.auto_batch_size else "global_batch_size"
        return f"follows from {chief}"
    return "default"


def _scalar(value: Any) -> str:
    """A value on one line, as YAML that comes back the same."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    if "\n" in text:  # a text of several lines, in quotes that keep it on one
        text = yaml.safe_dump(value, default_style='"', width=10**9).strip()
    return text
