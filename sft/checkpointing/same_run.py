"""Whether a run may go on from a checkpoint: what has changed since, what of it only matters, what would corrupt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORDER_KEYS = (
    "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last", "packing", "tokens_per_batch", "streaming",
    "shuffle_block_rows",
)  # fmt: skip
"""Which rows a step trains on depends on them."""
TEXT_KEYS = ("max_seq_length", "chat_template", "tokenizer_name_or_path")
"""What a row is depends on them."""
STATE_KEYS = ("optim", "quantization_config", "lora_config")
"""What the checkpoint's weights and its optimizer's state mean depends on them, and on keys below them."""
BASE_KEYS = ("model_name_or_path", "gguf_file")
"""What adapters lie on."""
HARMLESS_BELOW_STATE = ("lora_config.lora_dropout",)
STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Schedules that keep the learning rate itself in their state."""
UNTOLD = ("output_dir", "resume_from_checkpoint", "data_cache_dir")
"""Where things lie is no part of what a run is."""


def find_changes(checkpoint: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compares a checkpoint's run with this one.

    Args:
        checkpoint: its folder.
        saved: its manifest.
        now: the same facts of this run: `configuration`, `data`, `batch_plan`.

    Returns:
        Why it must not go on, a line each; and what has changed but may, `key before -> now` each.
    """
    name = checkpoint.name
    before, after = _flat(saved.get("configuration", {})), _flat(now.get("configuration", {}))
    refused, told = [], []
    for key in sorted(before.keys() & after.keys()):
        if before[key] == after[key] or key in UNTOLD:
            continue
        reason = _why_refused(key, before, after)
        if reason is None:
            told.append(f"{key} {_shown(before[key])} -> {_shown(after[key])}")
        else:
            refused.append(
                f"{key}: {name} was trained with {_shown(before[key])}, and now it is {_shown(after[key])}: {reason}. "
                f"{_way_out(key, before[key])}"
            )
    refused += _added_or_removed(name, before, after)
    if not refused:
        refused += _data_problems(name, saved.get("data") or {}, now.get("data") or {}, told)
    refused += _plan_problems(name, saved.get("batch_plan"), now.get("batch_plan"))
    return refused, told


def _why_refused(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    if key in ORDER_KEYS:
        return "the rows of a step would be others"
    if key in TEXT_KEYS:
        return "the rows would be others"
    if key in HARMLESS_BELOW_STATE:
        return None
    if key.partition(".")[0] in STATE_KEYS:
        return "its weights or its optimizer's state would not fit"
    if key in BASE_KEYS and any(each.startswith("lora_config.") for each in after):
        return "its adapters were trained on that model"
    schedules = {before.get("lr_scheduler_type"), after.get("lr_scheduler_type")}
    if key in ("learning_rate", "lr_scheduler_type") and schedules & set(STATEFUL_SCHEDULES):
        return "its schedule goes on from its own state"
    return None


def _added_or_removed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A section that one of both runs has and the other has not."""
    lines = []
    for section in ("lora_config", "quantization_config"):
        had, has = (any(key.startswith(f"{section}.") for key in keys) for keys in (before, after))
        if had != has:
            which = ("with", "without") if had else ("without", "with")
            lines.append(
                f"{section}: {name} was trained {which[0]} it, and this run is {which[1]}: its weights would not fit. "
                "Write it as it was, or leave resume_from_checkpoint out."
            )
    return lines


def _data_problems(name: str, before: Mapping[str, Any], now: Mapping[str, Any], told: list[str]) -> list[str]:
    if before.get("validation") != now.get("validation"):
        told.append("the validation data")
    if before.get("train") == now.get("train"):
        return []
    changed = f" (changed: {'; '.join(told)})" if told else ""
    return [
        f"resume_from_checkpoint: {name} was trained on other rows: {before.get('train_rows', 0):,} then, "
        f"{now.get('train_rows', 0):,} now, and not the same ones{changed}. Give it the data that it had; to train its "
        "weights on other data, name its folder as model_name_or_path and leave resume_from_checkpoint out."
    ]


def _plan_problems(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    if before is None or now is None or before["global_batch_size"] == now["global_batch_size"]:
        return []
    size, unit = before["global_batch_size"], "rows" if before["packs"] is None else "packs"
    return [
        f"resume_from_checkpoint: {name} was trained with {size} {unit} a step, and this run has "
        f"{now['global_batch_size']}; it would go on in the wrong place of the data. Choose "
        f"per_device_train_batch_size x gradient_accumulation_steps x processes = {size}, or write "
        f"global_batch_size: {size}."
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of sections below as `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    text = " ".join(str("null" if value is None else value).split())
    return text if len(text) <= 60 else text[:56] + " ..."


def _way_out(key: str, value: Any) -> str:
    return f"Write {key}: {_shown(value)}, or leave resume_from_checkpoint out."
