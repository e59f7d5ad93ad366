"""Whether a run may resume from a checkpoint: which changes are logged, and which would corrupt the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROBABILITIES = "datasets[].probability"
"""A key of flat configurations: `probability` of all entries of `datasets`."""
ORDER_KEYS = (
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "packing",
    "tokens_per_batch",
    "streaming",
    "shuffle_block_rows",
    "order",
    "datasets_stop",
    PROBABILITIES,
    "row_function",
    "row_filter",
)
"""Settings that determine which rows a step trains on."""
TEXT_KEYS = (
    "max_seq_length",
    "split_overlap",
    "chat_template",
    "tokenizer_name_or_path",
    "tokenizer_revision",
    "unanswerable",
    "chat_template_kwargs",
    "system_prompt",
    "system_prompt_policy",
    "boundary_tokens",
    "control_tokens_in_content",
)
"""Settings that determine the tokens of a row."""
WEIGHT_KEYS = ("prompt_loss_weight",)
"""Settings that determine how much the tokens of a row count in the loss."""
STATE_KEYS = ("optim", "dequantize", "quantization_config", "lora_config")
"""Settings and sections that determine the meaning of the saved weights and optimizer state."""
BASE_KEYS = ("model_name_or_path", "model_revision", "gguf_file")
"""The base model of adapters."""
ALLOWED_STATE_KEYS = ("lora_config.lora_dropout",)
"""Keys of these sections that may change."""
STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose state contains the learning rate itself."""
IGNORED_KEYS = ("output_dir", "resume_from_checkpoint", "data_cache_dir")
"""Paths, which do not change what is trained."""
ENVIRONMENT_NAMES = {
    "num_threads": "threads",
    "cpu": "CPU",
    "gpu": "GPU",
    "instruction_set": "CPU instructions",
    "reuses_freed_memory": "reuse of freed memory",
    "gpu_allocator": "allocator of GPU memory",
}
"""What the entries of an environment are called in a message, where that is not their key."""
UNSET = "unset"


def find_changes(checkpoint: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare the run that saved a checkpoint with this one.

    Args:
        checkpoint: its folder.
        saved: its manifest.
        now: the same entries for this run: `configuration`, `data`, `batch_plan`.

    Returns:
        The reasons why it must not be resumed from, a line each; and the allowed changes, each `key before -> now`.
    """
    name = checkpoint.name
    before, after = (_with_probabilities(_flat(each.get("configuration") or {})) for each in (saved, now))
    refused, allowed = [], []
    for key in sorted(before.keys() & after.keys()):
        if before[key] == after[key] or key in IGNORED_KEYS:
            continue
        reason = _why_refused(key, before, after)
        if reason is None:
            allowed.append(f"{key} {_shown(before[key])} -> {_shown(after[key])}")
        else:
            refused.append(
                f"{key}: {name} was trained with {_shown(before[key])}, and now it is {_shown(after[key])}: {reason}. "
                f"{_way_out(key, before[key])}"
            )
    refused += _added_or_removed(name, before, after)
    if not refused:
        refused += _data_problems(name, saved.get("data") or {}, now.get("data") or {}, allowed)
    refused += _plan_problems(name, saved.get("batch_plan"), now.get("batch_plan"))
    return refused, allowed


def find_other_environment(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What computes this run and did not compute the one that saved a checkpoint, each `name before -> now`.

    Args:
        saved: the `environment` of its manifest (`sft.common.machine_records.ComputeEnvironment`).
        now: of this run.
    """
    changes = []
    for key in saved.keys() & now.keys():
        before, after = saved[key], now[key]
        if not isinstance(before, Mapping):
            before, after = {ENVIRONMENT_NAMES.get(key, key): before}, {ENVIRONMENT_NAMES.get(key, key): after}
        changes += [
            f"{name} {_shown(before.get(name, UNSET))} -> {_shown(after.get(name, UNSET))}"
            for name in before.keys() | after.keys()
            if before.get(name, UNSET) != after.get(name, UNSET)
        ]
    return sorted(changes)


def _why_refused(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    # The rows of a stream are not known in advance; stored rows are compared themselves.
    if key in ORDER_KEYS or (key == "on_too_long" and after.get("streaming")):
        return "each step would train on different rows"
    if key.partition(".")[0] in TEXT_KEYS:
        return "the tokens of the rows would differ"
    if key in WEIGHT_KEYS:
        return "the loss of the rows would differ"
    if key in ALLOWED_STATE_KEYS:
        return None
    if key.partition(".")[0] in STATE_KEYS:
        return "the saved weights or optimizer state would not fit"
    if key in BASE_KEYS and any(each.startswith("lora_config.") for each in after):
        return "the saved adapters were trained on that model"
    schedules = {before.get("lr_scheduler_type"), after.get("lr_scheduler_type")}
    if key in ("learning_rate", "lr_scheduler_type") and schedules & set(STATEFUL_SCHEDULES):
        return "the schedule continues from its saved state"
    return None


def _added_or_removed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Sections that only one of the two runs has."""
    lines = []
    for section in ("lora_config", "quantization_config"):
        had, has = (any(key.startswith(f"{section}.") for key in keys) for keys in (before, after))
        if had != has:
            which = ("with", "without") if had else ("without", "with")
            lines.append(
                f"{section}: {name} was trained {which[0]} it, and this run is {which[1]} it: the saved weights would "
                "not fit. Restore the section, or omit resume_from_checkpoint."
            )
    return lines


def _data_problems(name: str, before: Mapping[str, Any], now: Mapping[str, Any], allowed: list[str]) -> list[str]:
    if before.get("validation") != now.get("validation"):
        allowed.append("the validation data")
    if before.get("train") == now.get("train"):
        return []
    changed = f" (changed: {'; '.join(allowed)})" if allowed else ""
    return [
        f"resume_from_checkpoint: {name} was trained on other rows: {before.get('train_rows', 0):,} then, "
        f"{now.get('train_rows', 0):,} now, and they differ{changed}. Use the same data; to train the saved weights on "
        "other data, set model_name_or_path to the checkpoint's folder and omit resume_from_checkpoint."
    ]


def _plan_problems(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    if before is None or now is None or before["global_batch_size"] == now["global_batch_size"]:
        return []
    size, unit = before["global_batch_size"], "rows" if before.get("packs") is None else "packs"
    return [
        f"resume_from_checkpoint: {name} was trained with {size} {unit} a step, and this run has "
        f"{now['global_batch_size']}; it would continue at the wrong position in the data. Choose "
        f"per_device_train_batch_size x gradient_accumulation_steps x processes = {size}, or write "
        f"global_batch_size: {size}."
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of nested sections as `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _with_probabilities(flat: dict[str, Any]) -> dict[str, Any]:
    entries = flat.get("datasets") or []
    given = [entry.get("probability") for entry in entries if isinstance(entry, Mapping)]
    return {**flat, PROBABILITIES: given if any(given) else None}


def _shown(value: Any) -> str:
    text = " ".join(str("null" if value is None else value).split())
    return text if len(text) <= 60 else text[:56] + " ..."


def _way_out(key: str, value: Any) -> str:
    return f"Write {key}: {_shown(value)}, or omit resume_from_checkpoint."
