"""Times of training steps: as a run makes them, part by part, and against a bare PyTorch loop; the device's peak."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import torch
from transformers import TrainerCallback

from sft.batching.layout import model_inputs
from sft.batching.transfer import to_device
from sft.modeling.document_attention import isolated_documents

COUNTS = ("supervised", "tokens", "rows", "computed")


class StepTimer(TrainerCallback):
    """Seconds, FLOPs and counts of each step."""

    def __init__(self, trainer: Any) -> None:
        self.steps: list[dict[str, float]] = []
        self._trainer = trainer
        self._before = (0.0, [0.0] * len(trainer.progress.counts), 0.0)

    def _now(self) -> tuple[float, list[float], float]:
        counts = self._trainer.progress.counts.tolist()  # synchronizes with the device
        return time.perf_counter(), counts, self._trainer.state.total_flos + self._trainer.current_flos

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._before = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        before, now = self._before, self._now()
        difference = [new - old for new, old in zip(now[1], before[1], strict=True)]
        self.steps.append(
            {"seconds": now[0] - before[0], "flops": now[2] - before[2]} | dict(zip(COUNTS, difference, strict=False))
        )
        self._before = now


def against_bare_loop(trainer: Any, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step by Trainer and by a bare loop, which take turns on the same batches."""
    model, device = trainer.model, trainer.args.device
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    bare = torch.optim.AdamW(weights, lr=1e-5, fused=True)

    def bare_step(batch: dict[str, Any]) -> None:
        batch = to_device(batch, device)
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            logits = model(**model_inputs(batch), use_cache=False).logits.flatten(0, 1)
            logits = logits.index_select(0, batch["label_positions"]).float()
            loss = torch.nn.functional.cross_entropy(logits, batch["targets"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        bare.step()
        bare.zero_grad()

    def own_step(batch: dict[str, Any]) -> None:
        (batch,), tokens = trainer.get_batch_samples(iter([batch]), 1, device)
        trainer.training_step(trainer.model_wrapped, batch, num_items_in_batch=tokens)
        trainer.accelerator.clip_grad_norm_(weights, 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    seconds: dict[str, list[float]] = {"own": [], "bare": []}
    model.train()
    with isolated_documents(model, trainer.layout.attention):
        for batch in list(trainer.get_train_dataloader())[: options.steps]:
            for name, step in (("own", own_step), ("bare", bare_step)):
                started = synchronized_time(options.device)
                step(batch)
                seconds[name].append(synchronized_time(options.device) - started)
    medians = {name: statistics.median(values[options.warm :]) for name, values in seconds.items()}
    return {
        "own_step_seconds": round(medians["own"], 4),
        "bare_step_seconds": round(medians["bare"], 4),
        "times_the_bare_loop": round(medians["bare"] / medians["own"], 3),
    }


def breakdown(trainer: Any, device: str) -> dict[str, float]:
    """Median seconds of the parts of a step; the device is synchronized after each part."""
    parts: dict[str, list[float]] = {"batch": [], "forward": [], "backward": [], "clip": [], "optimizer": []}
    batches = iter(trainer.get_train_dataloader())
    model, optimizer = trainer.model_wrapped, trainer.optimizer
    model.train()
    with isolated_documents(trainer.model, trainer.layout.attention):
        for _ in range(4):
            times = [synchronized_time(device)]
            (batch,), tokens = trainer.get_batch_samples(batches, 1, trainer.args.device)
            times.append(synchronized_time(device))
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, batch, num_items_in_batch=tokens)
            times.append(synchronized_time(device))
            trainer.accelerator.backward(loss)
            times.append(synchronized_time(device))
            trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
            times.append(synchronized_time(device))
            optimizer.step()
            optimizer.zero_grad()
            times.append(synchronized_time(device))
            for name, (start, end) in zip(parts, itertools.pairwise(times), strict=True):
                parts[name].append(end - start)
    return {name: round(statistics.median(seconds[1:]), 4) for name, seconds in parts.items()}


def synchronized_time(device: str) -> float:
    """The time after the device has finished its work, in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measured_peak(device: str, precision: Any) -> float:
    """FLOPs per second of a large matrix product in the run's dtype; the best of several."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.mixed) or getattr(torch, precision.weights)
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = synchronized_time(device)
        left @ right
        best = min(best, synchronized_time(device) - started)
    return 2 * size**3 / best


def device_name(device: str) -> str:
    """The GPU's name, or `cpu` with the number of threads."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
