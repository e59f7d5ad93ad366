"""The resolved configuration as commented YAML: every key, its effective value, and where it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from sft.common.text import counted, printable, visible
from sft.configuration.batch_sizes import AUTO, with_accumulation
from sft.configuration.keys import keys_of
from sft.configuration.reading import COMMAND_LINE
from sft.configuration.schema import FLAT_SECTIONS, NESTED_SECTIONS, SFTConfig

_WIDEST = 64
"""Comments of lines up to this width are aligned."""


def yaml_with_origins(values: Mapping[str, Any], config: SFTConfig) -> str:
    """Format settings as YAML that `load_config` reads back to the same configuration.

    Args:
        values: effective values by key, without secrets.
        config: the configuration that they belong to; gives the origins of its keys.
    """
    lines: list[tuple[str, str]] = []
    remaining = dict(values)
    for section in FLAT_SECTIONS.values():
        lines += [("", ""), (f"# {(section.__doc__ or '').strip()}", "")]
        for name in keys_of(section):
            lines += _lines_of(name, remaining.pop(name), config)
    passed_on = [name for name in remaining if name not in NESTED_SECTIONS]
    if passed_on:
        lines += [("", ""), ("# Passed on to transformers' TrainingArguments.", "")]
        for name in passed_on:
            lines += _lines_of(name, remaining.pop(name), config)
    lines += [("", ""), ("# Nested sections.", "")]
    for name, value in remaining.items():
        lines += _lines_of(name, value, config)
    widths = [len(text) for text, comment in lines if comment and len(text) <= _WIDEST]
    column = max(widths, default=0)
    return "\n".join(f"{text:<{column}}  # {comment}" if comment else text for text, comment in lines).lstrip("\n")


def _lines_of(key: str, value: Any, config: SFTConfig, name: str | None = None) -> Iterator[tuple[str, str]]:
    """Lines of YAML for a key, each with its origin; nested sections and entries of `datasets` take a line per key."""
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
            for index, (inner, inner_value) in enumerate(record.items()):
                mark = "  - " if index == 0 else "    "
                yield from _lines_of(f"{key}[{number}].{inner}", inner_value, config, f"{mark}{inner}")
    else:
        yield f"{name}: {_scalar(value)}", _origin(key, config)


def _origin(key: str, config: SFTConfig) -> str:
    origin = config.origins.get(key)
    if origin is None:
        return _default(key, config)
    file, _, line = origin.rpartition(":")
    where = origin if origin == COMMAND_LINE else f"{printable(file)} line {line}"
    return f"{where}, given as {config.written[key]}" if key in config.written else where


def _accumulation(config: SFTConfig) -> str:
    training, count = config.training, config.distributed.num_gpus or 1
    if training.per_device_train_batch_size == AUTO:
        return "default; set by global_batch_size and the batch size that is found"
    steps = with_accumulation(training, count).gradient_accumulation_steps
    return f"default; set to {steps} by global_batch_size with {counted(count, 'process')}"


def _default(key: str, config: SFTConfig) -> str:
    """Origin of a value that was not given: `default`, or the key that sets it."""
    if key == "gradient_accumulation_steps" and config.training.global_batch_size is not None:
        return _accumulation(config)
    section = next((name for name, kind in FLAT_SECTIONS.items() if key in keys_of(kind)), None)
    if section is not None and getattr(getattr(config, section), key) != keys_of(FLAT_SECTIONS[section])[key].default:
        source = "auto_batch_size" if config.training.auto_batch_size else "global_batch_size"
        return f"set by {source}"
    return "default"


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    if visible(text) != text:  # YAML's own escapes, which are read back
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    if "\n" in text:  # quotes keep a string of several lines on one
        text = yaml.safe_dump(value, default_style='"', width=10**9).strip()
    return text
