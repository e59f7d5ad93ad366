"""Times of training steps part by part, and against a bare PyTorch loop; the device's peak."""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

import torch

from sft.check_gpu.step_timing import BareLoop, matrix_product_flops, synchronized_time
from sft.modeling.document_attention import isolated_documents


def against_bare_loop(trainer: Any, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step by Trainer and by a bare loop, which take turns on the same batches."""
    model, device = trainer.model, trainer.args.device
    bare = BareLoop(trainer)

    def own_step(batch: dict[str, Any]) -> None:
        (batch,), tokens = trainer.get_batch_samples(iter([batch]), 1, device)
        trainer.training_step(trainer.model_wrapped, batch, num_items_in_batch=tokens)
        trainer._clip_grad_norm(model)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    seconds: dict[str, list[float]] = {"own": [], "bare": []}
    model.train()
    with isolated_documents(model, trainer.layout.attention):
        for batch in list(trainer.get_train_dataloader())[: options.steps]:
            for name, step in (("own", own_step), ("bare", lambda batch: bare.step([batch]))):
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
            trainer._clip_grad_norm(trainer.model)
            times.append(synchronized_time(device))
            optimizer.step()
            optimizer.zero_grad()
            times.append(synchronized_time(device))
            for name, (start, end) in zip(parts, itertools.pairwise(times), strict=True):
                parts[name].append(end - start)
    return {name: round(statistics.median(seconds[1:]), 4) for name, seconds in parts.items()}


def measured_peak(device: str, precision: Any) -> float:
    """FLOPs per second of a large matrix product in the run's dtype; the best of several."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.mixed) or getattr(torch, precision.weights)
    return matrix_product_flops(device, dtype)


def device_name(device: str) -> str:
    """The GPU's name, or `cpu` with the number of threads."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
