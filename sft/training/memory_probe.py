"""Measures the memory and time of a micro-batch before training, with the real model and the longest rows.

Side effects are undone: weights, gradients, random state and the order of rows are as before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft.batching.fit import Trial
from sft.batching.layout import FlatCollator, model_inputs
from sft.batching.optimizer_state import optimizer_bytes
from sft.batching.packing import PackPlan
from sft.batching.transfer import to_device
from sft.common.run_records import Precision
from sft.common.training_data import RowDataset
from sft.modeling.document_attention import isolated_documents
from sft.modeling.gradient_checkpointing import gradient_checkpointing_enabled
from sft.modeling.random_state import RandomState
from sft.processes.device_memory import PeakMemory
from sft.processes.heap import release_freed_memory
from sft.training.row_layout import RowLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedPass:
    """A training pass."""

    seconds: float
    loss: float
    gradient_norm: float


class MemoryProbe:
    """Runs training and evaluation passes without an update, on rows whose every token is supervised."""

    def __init__(
        self,
        model: "PreTrainedModel",
        precision: Precision,
        device: str,
        *,
        layout: RowLayout,
        optimizer: str,
        checkpointing: Mapping[str, Any] | None,
    ):
        """
        Args:
            model: on its device, with its adapters.
            precision: the types to compute in.
            device: this process's device.
            layout: how rows become a micro-batch.
            optimizer: name of the optimizer; its states are simulated by as many bytes.
            checkpointing: options of gradient checkpointing; None if activations are kept.
        """
        self._model = model
        self._layout = layout
        self._precision = precision
        self._device = device
        self._optimizer = optimizer
        self._checkpointing = checkpointing

    @contextmanager
    def simulated_training_memory(self) -> Iterator[None]:
        """Context in which memory is allocated as in training, except for a micro-batch; restored at its end."""
        state = RandomState.capture(self._device)
        was_training = self._model.training
        trained = [weight for weight in self._model.parameters() if weight.requires_grad]
        # Filled, since the system only allocates pages that are written to.
        states = [
            torch.full((size,), 1, dtype=torch.uint8, device=weight.device)
            for weight, size in ((weight, self._state_bytes(weight)) for weight in trained)
        ]
        try:
            with gradient_checkpointing_enabled(self._model, self._checkpointing):
                yield
        finally:
            for weight in trained:
                weight.grad = None
            self._model.train(was_training)
            states.clear()
            if self._device.startswith("cuda"):
                torch.cuda.empty_cache()
            else:
                release_freed_memory()
            state.restore()

    def _state_bytes(self, weight: torch.Tensor) -> int:
        return round(weight.numel() * optimizer_bytes(self._optimizer, weight.element_size()))

    def train(self, rows: Sequence[Row]) -> Trial:
        """Forward and backward pass of a micro-batch; gradients accumulate over calls.

        Raises:
            torch.OutOfMemoryError: if it does not fit.
        """
        self._model.train()
        return self._trial(rows, trains=True)

    def evaluate(self, rows: Sequence[Row]) -> Trial:
        """Forward pass of an evaluation batch.

        Raises:
            torch.OutOfMemoryError: if it does not fit.
        """
        self._model.eval()
        for weight in self._model.parameters():
            weight.grad = None
        return self._trial(rows, trains=False)

    def timed(self, rows: Sequence[Row], layout: RowLayout) -> TimedPass:
        """A training pass by itself, in another layout: its time, its loss, and the norm of its gradient.

        Raises:
            torch.OutOfMemoryError: if it does not fit.
        """
        self._model.train()
        self._model.zero_grad(set_to_none=True)
        batch = to_device(layout.collator(rows), torch.device(self._device))
        _wait_for(self._device)
        started = time.perf_counter()
        loss = self._pass(batch, layout)
        _wait_for(self._device)
        seconds = time.perf_counter() - started
        gradients = [weight.grad for weight in self._model.parameters() if weight.grad is not None]
        return TimedPass(
            seconds=seconds,
            loss=float(loss),
            gradient_norm=float(torch.nn.utils.get_total_norm(gradients)),
        )

    def _pass(self, batch: Mapping[str, Any], layout: RowLayout) -> torch.Tensor:
        """Forward and backward pass of a micro-batch; returns the loss."""
        with isolated_documents(self._model, layout.attention):
            with self._autocast():
                loss = layout.output.loss_sum(self._model, model_inputs(batch), batch)
            loss = loss / max(len(batch["targets"]), 1)
            loss.backward()
        return loss.detach()

    def _trial(self, rows: Sequence[Row], *, trains: bool) -> Trial:
        collator = self._layout.collator if trains else self._layout.evaluation_collator
        if isinstance(collator, FlatCollator):
            # The worst case: no leading tokens are shared.
            collator = replace(collator, shares_prefixes=False)
        started = time.perf_counter()
        with PeakMemory(self._device) as watch:
            batch = to_device(collator(rows), torch.device(self._device))
            if trains:
                self._pass(batch, self._layout)
            else:
                with isolated_documents(self._model, self._layout.attention), self._autocast(), torch.no_grad():
                    self._layout.output.losses_and_hits(self._model, model_inputs(batch), batch)
        return Trial(
            size=len(rows),
            tokens=batch["counts"]["tokens"],
            peak_bytes=watch.peak_bytes,
            seconds=time.perf_counter() - started,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision.mixed == "no":
            return nullcontext()
        dtype = torch.bfloat16 if self._precision.mixed == "bf16" else torch.float16
        return torch.autocast(torch.device(self._device).type, dtype=dtype)


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def longest_rows(dataset: RowDataset, count: int) -> list[Row]:
    """The longest rows, with every token supervised. The longest one is repeated if there are too few."""
    order = np.argsort(-dataset.lengths, kind="stable")[:count].tolist()
    order += [order[0]] * (count - len(order))
    return [_all_supervised(dataset[row]["input_ids"]) for row in order]


def full_packs(dataset: RowDataset, count: int, capacity: int, max_seq_length: int) -> list[Row]:
    """Rows that fill `count` packs of `capacity` tokens, each row at most `max_seq_length` tokens long.

    The longest row's tokens are repeated.
    """
    ids = np.asarray(dataset[int(np.argmax(dataset.lengths))]["input_ids"])
    lengths = [min(max_seq_length, capacity - start) for start in range(0, capacity, max_seq_length)]
    return [_all_supervised(np.resize(ids, length)) for _ in range(count) for length in lengths]


def crowded_packs(dataset: RowDataset, plan: PackPlan, count: int) -> list[Row]:
    """Rows that fill `count` packs, as many in each as the plan's packs with the most rows have.

    Unused space is added to the last row of a pack. The longest row's tokens are repeated.
    """
    ids = np.asarray(dataset[int(np.argmax(dataset.lengths))]["input_ids"])
    packs = plan.most_crowded(count)
    packs += [packs[0]] * (count - len(packs))
    rows = []
    for lengths in packs:
        filled = [*lengths[:-1].tolist(), plan.capacity - int(lengths[:-1].sum())]
        rows += [_all_supervised(np.resize(ids, length)) for length in filled]
    return rows


def _all_supervised(input_ids: np.ndarray) -> Row:
    return {"input_ids": input_ids, "labels": input_ids}
