"""Times of training steps: as a run makes them, and by a bare PyTorch loop; the device's peak."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from sft.batching.layout import model_inputs
from sft.batching.transfer import to_device

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


class BareLoop:
    """A bare PyTorch loop over a trainer's model: all logits of supervised positions at once, torch's loss and AdamW.

    Call it while the trainer's attention is active (`isolated_documents`), on the collator's batches.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=1e-5, fused=True)

    def step(self, batches: Sequence[dict[str, Any]]) -> None:
        """Train on the sum of micro-batches."""
        trainer = self._trainer
        for batch in batches:
            batch = to_device(batch, trainer.args.device)
            with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
                logits = trainer.model(**model_inputs(batch), use_cache=False).logits.flatten(0, 1)
                logits = logits.index_select(0, batch["label_positions"]).float()
                loss = torch.nn.functional.cross_entropy(logits, batch["targets"]) / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def synchronized_time(device: str) -> float:
    """The time after the device has finished its work, in seconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_product_flops(device: str, dtype: torch.dtype) -> float:
    """FLOPs per second of the product of two large matrices; the best of several."""
    size = 8192 if device.startswith("cuda") else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = synchronized_time(device)
        left @ right
        best = min(best, synchronized_time(device) - started)
    return 2 * size**3 / best
