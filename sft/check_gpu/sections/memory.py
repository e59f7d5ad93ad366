"""Memory: the batch size that `auto` finds, the peak against the prediction, and packs of many short documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sft.check_gpu.bench import Bench
from sft.check_gpu.fitting_shape import fitting_shape, shape_text
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.program import LORA, Assembled, assemble, save_rows
from sft.check_gpu.shapes import SHAPES, Shape
from sft.common.text import counted, size

_ALLOWED_ERROR = 0.1
"""Of the predicted peak."""
_SHORTEST = 6
"""Tokens of a row with one word as the question and one as the answer."""


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    name = "toy" if not bench.on_gpu else "100m" if bench.is_quick else "1.2b"
    length = 64 if not bench.on_gpu else 1024 if bench.is_quick else 4096
    shape = fitting_shape(bench, SHAPES[name], tokens=length, has_adapters=False, checkpointing=False)
    if shape is None:
        yield Case(name="auto", check=lambda: skipped(f"not even one layer of {name} fits"))
        return
    checks = _Checks(bench, shape, length)
    model = shape_text(name, SHAPES[name], shape)
    yield Case(name=f"auto batch size ({model})", check=checks.auto_size)
    yield Case(name="peak against prediction: all weights", check=checks.prediction)
    yield Case(name="packs of short documents", check=checks.short_documents)
    yield Case(name="peak against prediction: LoRA, checkpointed", check=checks.prediction_with_adapters)


class _Checks:
    """The checks, which share the size that the first one finds."""

    def __init__(self, bench: Bench, shape: Shape, length: int):
        self._bench = bench
        self._shape = shape
        self._length = length
        self._size = 0
        """The size that was found, in packs; 0 before."""
        self._predicted = self._peak = 0

    def _assembled(self, name: str, lengths: tuple[int, ...], count: int, **settings: Any) -> Assembled:
        rows = save_rows(self._bench, count, lengths)
        self._bench.reset_peak()
        defaults = {"packing": True, "max_seq_length": self._length, "max_steps": 3, "logging_steps": 3}
        return assemble(self._bench, name, self._shape, rows, **defaults | settings)

    def _train(self, assembled: Assembled) -> int:
        """Train, and return the peak of the reserved memory."""
        self._bench.reset_peak()
        assembled.train()
        return self._bench.peak_bytes()

    @property
    def _lengths(self) -> tuple[int, ...]:
        return (self._length, self._length // 2, self._length // 4, self._length // 4)

    def auto_size(self) -> Outcome:
        """The trial's size trains within the budget, without a shortage."""
        count = 256 if self._bench.on_gpu else 32
        assembled = self._assembled("auto", self._lengths, count, per_device_train_batch_size="auto")
        setup = assembled.setup
        budget = setup.limits.budget_bytes or 0
        self._size = setup.plan.per_device_train_batch_size
        self._predicted = assembled.predicted_memory().total_bytes
        self._peak = self._train(assembled)
        shortages = assembled.trainer.step_gradient.chunks.shortages
        return judged(
            shortages == 0 and self._peak <= budget,
            f"{counted(self._size, 'pack')} of {self._length:,} tokens; {size(self._peak)} reserved of "
            f"{size(budget)}; {counted(shortages, 'time')} out of memory",
            packs=self._size,
            tokens=self._length,
            peak_bytes=self._peak,
            budget_bytes=budget,
            shortages=shortages,
        )

    def prediction(self) -> Outcome:
        """Of the training with the size that was found."""
        return self._compared(self._predicted, self._peak) if self._size else skipped("auto found no size")

    def prediction_with_adapters(self) -> Outcome:
        """Of LoRA with gradient checkpointing, whose activations are small."""
        settings = {"per_device_train_batch_size": self._size or 1, "gradient_checkpointing": True, **LORA}
        assembled = self._assembled("adapters", self._lengths, 64, **settings)
        predicted = assembled.predicted_memory().total_bytes
        return self._compared(predicted, self._train(assembled))

    def _compared(self, predicted: int, peak: int) -> Outcome:
        if not self._bench.on_gpu:
            return skipped(f"of a GPU's memory alone; predicted {size(predicted)}")
        error = predicted / peak - 1
        return judged(
            abs(error) <= _ALLOWED_ERROR,
            f"predicted {size(predicted)}, reserved {size(peak)}: off by {error:+.0%} (at most {_ALLOWED_ERROR:.0%})",
            predicted_bytes=predicted,
            peak_bytes=peak,
            error=error,
        )

    def short_documents(self) -> Outcome:
        """The same number of packs, full of the shortest documents: attention keeps some memory for each of them."""
        size_of_packs, per_pack = self._size or 1, self._length // _SHORTEST
        count = min(4 * size_of_packs * per_pack, 20_000)
        settings = {"per_device_train_batch_size": size_of_packs, "share_prefixes": False}
        assembled = self._assembled("short", (_SHORTEST,), count, **settings)
        peak = self._train(assembled)
        budget = assembled.setup.limits.budget_bytes or 0
        shortages = assembled.trainer.step_gradient.chunks.shortages
        return judged(
            shortages == 0 and peak <= budget,
            f"{counted(per_pack, 'document')} a pack; {size(peak)} reserved of {size(budget)}; "
            f"{counted(shortages, 'time')} out of memory",
            documents=per_pack,
            peak_bytes=peak,
            budget_bytes=budget,
            shortages=shortages,
        )
