"""Typed access to the fields of transformers' `TrainingArguments` that a configuration passes through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PassedThrough:
    """Passed-through fields that this program also reads itself. Unset fields return their default."""

    fields: Mapping[str, Any]
    """Every passed-through field by name, checked by name and type."""

    @property
    def use_cpu(self) -> bool:
        return bool(self.fields.get("use_cpu", False))

    @property
    def tf32(self) -> bool:
        return bool(self.fields.get("tf32", False))

    @property
    def full_determinism(self) -> bool:
        return bool(self.fields.get("full_determinism", False))

    @property
    def optim_target_modules(self) -> Any | None:
        return self.fields.get("optim_target_modules")

    @property
    def eval_delay(self) -> float:
        """Steps or epochs (see `eval_strategy`) before which nothing is evaluated during training."""
        return self.fields.get("eval_delay") or 0

    @property
    def lr_scheduler_kwargs(self) -> Mapping[str, Any]:
        """Options of the schedule; empty if they are given as text that is not a JSON object."""
        given = self.fields.get("lr_scheduler_kwargs") or {}
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                given = {}
        return given if isinstance(given, Mapping) else {}

    @property
    def data_seed(self) -> int | None:
        return self.fields.get("data_seed")

    @property
    def ddp_timeout(self) -> int | None:
        """Seconds until a collective operation fails; None for torch's default."""
        return self.fields.get("ddp_timeout")

    @property
    def ddp_bucket_cap_mb(self) -> int | None:
        """MiB of gradients that DDP reduces in one call; None for torch's default."""
        return self.fields.get("ddp_bucket_cap_mb")

    @property
    def ddp_find_unused_parameters(self) -> bool:
        return bool(self.fields.get("ddp_find_unused_parameters", False))

    @property
    def ddp_broadcast_buffers(self) -> bool:
        return bool(self.fields.get("ddp_broadcast_buffers", False))

    @property
    def deepspeed(self) -> Any | None:
        """DeepSpeed's configuration: a file's name, or the settings themselves."""
        return self.fields.get("deepspeed")

    @property
    def push_to_hub(self) -> bool:
        """Our own code pushes: the field does not reach transformers."""
        return bool(self.fields.get("push_to_hub", False))

    @property
    def hub_token(self) -> str | None:
        """Does not reach transformers, which would write it into a pickle beside the model."""
        return self.fields.get("hub_token")

    @property
    def save_only_model(self) -> bool:
        return bool(self.fields.get("save_only_model", False))

    @property
    def save_strategy(self) -> str | None:
        return self.fields.get("save_strategy")

    @property
    def eval_strategy(self) -> str | None:
        return self.fields.get("eval_strategy")

    @property
    def saves_best(self) -> bool:
        """Whether a checkpoint is saved whenever the metric improves."""
        return self.save_strategy == "best"

    @property
    def asks_for_evaluation(self) -> bool:
        """Whether `eval_strategy` is set to anything but `no`."""
        return self.eval_strategy not in (None, "no")

    @property
    def metric_for_best_model(self) -> str | None:
        return self.fields.get("metric_for_best_model")

    @property
    def dataloader_drop_last(self) -> bool:
        return bool(self.fields.get("dataloader_drop_last", False))

    @property
    def dataloader_prefetch_factor(self) -> int | None:
        return self.fields.get("dataloader_prefetch_factor")

    @property
    def train_sampling_strategy(self) -> str:
        strategy: str = self.fields.get("train_sampling_strategy", "random")
        return strategy

    @property
    def torch_empty_cache_steps(self) -> int | None:
        return self.fields.get("torch_empty_cache_steps")

    @property
    def gradient_checkpointing_kwargs(self) -> Mapping[str, Any]:
        return self.fields.get("gradient_checkpointing_kwargs") or {}

    @property
    def use_liger_kernel(self) -> bool:
        return bool(self.fields.get("use_liger_kernel", False))

    @property
    def neftune_noise_alpha(self) -> float | None:
        return self.fields.get("neftune_noise_alpha")

    @property
    def torch_compile_backend(self) -> str | None:
        return self.fields.get("torch_compile_backend")

    @property
    def torch_compile_mode(self) -> str | None:
        return self.fields.get("torch_compile_mode")
