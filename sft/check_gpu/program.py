"""Runs of the program in this process, and trainers that are built as in a run.

What makes a run stands at the root, above `sft/`, and nothing in `sft/` imports it. This command stands above it too:
it loads the modules there by their names, as the installed commands do (`sft.commands.console`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sft.batching.memory import estimate_memory
from sft.check_gpu.bench import Bench
from sft.check_gpu.random_model import build_random_model, save_random_model, save_without_weights, write_random_rows
from sft.check_gpu.shapes import Shape
from sft.common.machine_records import MemoryEstimate
from sft.modeling.text_adapters import add_text_adapters
from sft.training.arguments import build_training_arguments
from sft.training.batch_size_trials import memory_limits, resolve_batches
from sft.training.compile_trial import settle_layout
from sft.training.dry_run import memory_facts
from sft.training.model_preparation import prepare_model
from sft.training.run_identity import identify_run
from sft.training.run_setup import RunSetup

LORA_LAYERS = "[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"
LORA = {"lora_config.r": 16, "lora_config.lora_alpha": 32, "lora_config.target_modules": LORA_LAYERS}


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run left in its output folder."""

    output: Path

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """`run_summary.json`."""
        summary: Mapping[str, Any] = json.loads((self.output / "run_summary.json").read_text(encoding="utf-8"))
        return summary

    @property
    def losses(self) -> dict[int, float]:
        """Step -> training loss."""
        return self._metrics("loss")

    @property
    def seconds_per_step(self) -> list[float]:
        """Of the steps after the first two, by their speed."""
        speeds = self._metrics("tokens_per_second")
        seen = {0: 0.0, **self._metrics("tokens_seen")}
        return [(seen[step] - seen[step - 1]) / speed for step, speed in speeds.items() if step > 2 and speed]

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights."""
        return load_file(self.output / "model.safetensors")

    def _metrics(self, name: str) -> dict[int, float]:
        events = map(json.loads, (self.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return {event["step"]: event[name] for event in events if name in event}


class Failed(Exception):
    """A run that did not end as it should; its log is in the section's log."""


def run(bench: Bench, name: str, model: Path, rows: Path, **settings: Any) -> FinishedRun:
    """Run the program as `python sft_main.py` does.

    Args:
        bench: the device and the folder.
        name: of the output folder.
        model: folder of the model.
        rows: the training data.
        settings: change those of `_settings`; None omits one.

    Raises:
        Failed: if its exit status is not 0.
    """
    output = bench.folder / name
    arguments = _arguments(_settings(bench, model, rows, output) | settings)
    bench.release_memory()
    status = import_module("sft_main").main(arguments)
    bench.release_memory()
    if status:
        raise Failed(f"the run {name} ended with exit status {status}")
    return FinishedRun(output=output)


def save_small_model(bench: Bench) -> Path:
    """The folder of the small model."""
    folder = bench.folder / "model"
    if not folder.exists():
        save_random_model(bench.small_shape, folder, bench.device)
    return folder


def save_rows(bench: Bench, count: int, lengths: Sequence[int]) -> Path:
    """A file of random rows (see `write_random_rows`)."""
    path = bench.folder / f"rows-{count}-{'-'.join(map(str, lengths))}.jsonl"
    if not path.exists():
        write_random_rows(path, count, lengths)
    return path


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A run that is ready to train."""

    setup: RunSetup
    training: Any
    """As `trainer_utils.build_trainer` returns it."""

    @property
    def trainer(self) -> Any:
        return self.training.trainer

    def train(self) -> None:
        """Train to the end."""
        import_module("trainer_utils").train(self.training)

    def predicted_memory(self) -> MemoryEstimate:
        """By the arithmetic of the dry run."""
        setup = self.setup
        facts = memory_facts(
            setup.config,
            setup.data,
            setup.prepared,
            setup.plan,
            device=setup.context.device,
            process_bytes=setup.limits.process_bytes,
        )
        return estimate_memory(facts)


def assemble(bench: Bench, name: str, shape: Shape, rows: Path, **settings: Any) -> Assembled:
    """Build a run up to its trainer, as `sft_main.run` does, with a random model that is made on the device.

    Args:
        bench: the device and the folder.
        name: of the output folder.
        shape: of the model.
        rows: the training data.
        settings: as for `run`.
    """
    described, output = bench.folder / f"{name}-model", bench.folder / name
    save_without_weights(shape, described)
    all_settings = _settings(bench, described, rows, output) | {"save_strategy": "no"} | settings
    config = import_module("config_manager").load_config(None, _arguments(all_settings))
    context = import_module("distributed_utils").start_distributed(config.distributed, use_cpu=not bench.on_gpu)
    doors = import_module("model_manager")
    precision = doors.resolve_precision(config.model, config.training, context, adapters_only=config.lora is not None)
    tokenizer = doors.load_tokenizer(config.model)
    data = import_module("data_handler").prepare_data(config.data, tokenizer, seed=0, sample_prompts=[])
    limits = memory_limits(config.training, context)
    model: Any = build_random_model(shape, bench.device, getattr(torch, precision.weights))
    if config.lora is not None:
        model = add_text_adapters(model, config.lora)
        if config.training.gradient_checkpointing:
            model.enable_input_require_grads()
    prepared = prepare_model(config, model, tokenizer, precision, context, is_chat=data.is_chat)
    plan = resolve_batches(config, data, prepared, context, actual=context, limits=limits)
    prepared = settle_layout(config, data, prepared, plan, context)
    setup = RunSetup(
        config=config,
        context=context,
        data=data,
        prepared=prepared,
        plan=plan,
        limits=limits,
        identity=identify_run(config, data, prepared, context.device),
    )
    output.mkdir(parents=True, exist_ok=True)
    training = import_module("trainer_utils").build_trainer(setup, build_training_arguments(setup, context))
    return Assembled(setup=setup, training=training)


def _settings(bench: Bench, model: Path, rows: Path, output: Path) -> dict[str, Any]:
    """The settings of every run here."""
    return {
        "model_name_or_path": model,
        "train_file": rows,
        "output_dir": output,
        "data_cache_dir": bench.folder / "cache",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "sample_prompts": "[]",
        "seed": 0,
        "full_determinism": bench.full_determinism,
        "torch_compile": False,
        "use_cpu": not bench.on_gpu,
    }


def _arguments(settings: Mapping[str, Any]) -> list[str]:
    given = {name: value for name, value in settings.items() if value is not None}
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()]


def largest_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """The largest relative difference between tensors of the same name: of their difference's norm to the first's."""
    norms = [
        float((second[name].float() - tensor.float()).norm() / tensor.float().norm().clamp(min=1e-12))
        for name, tensor in first.items()
    ]
    return max(norms)


def largest_relative(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """The largest relative difference of losses of the same step; NaN if the first are not positive."""
    pairs = [(loss, second[step]) for step, loss in first.items() if step in second]
    return max((abs(other / loss - 1) if loss > 0 else math.nan for loss, other in pairs), default=math.nan)
