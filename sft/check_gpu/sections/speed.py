"""Tokens per second and MFU of training: all weights of 1.2B, and LoRA on 8B; with each setting that affects the speed.

Models have random weights, and fewer layers where memory is small. The same batches are trained on by a bare PyTorch
loop, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from sft.batching.chunks import split_rows
from sft.check_gpu.bench import Bench
from sft.check_gpu.fitting_shape import fitting_shape, shape_text
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.program import LORA, Assembled, assemble, save_rows
from sft.check_gpu.shapes import SHAPES, Shape
from sft.check_gpu.step_timing import BareLoop, StepTimer, synchronized_time
from sft.common.device_errors import is_out_of_memory
from sft.common.text import size
from sft.modeling.document_attention import isolated_documents
from sft.processes.machine import look_at_machine

_WARM_STEPS = 2
_LEAST_SHARE_OF_BARE_LOOP = 0.95
_MOST_CHUNKS = 4
"""Of a micro-batch, for the bare loop, which holds all logits at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A model, and the settings that its speed is measured with."""

    name: str
    """In the names of the checks."""
    shape: str
    quick_shape: str
    settings: Mapping[str, Any]
    levers: Mapping[str, Mapping[str, Any]]
    """Name -> settings that differ. The first one is what the others are compared with."""
    compared: tuple[str, ...] = ("eager", "compiled")
    """Levers that are also compared with a bare loop."""


_COMPILED = {"torch_compile": True}
_MODELS = (
    _Model(
        name="1.2B, all weights",
        shape="1.2b",
        quick_shape="100m",
        settings={},
        levers={
            "eager": {},
            "compiled": _COMPILED,
            "padded": {"packing": False, "padding_free": False},
            "checkpointed": {"gradient_checkpointing": True},
            "optimizer not fused": {"optim": "adamw_torch"},
            "bfloat16 weights": {"dtype": "bfloat16"},
        },
    ),
    _Model(
        name="8B, LoRA",
        shape="8b",
        quick_shape="100m",
        settings={"gradient_checkpointing": True, **LORA},
        levers={
            "eager": {},
            "compiled": _COMPILED,
            "every second layer checkpointed": {"checkpoint_every_n_layers": 2},
            "not checkpointed": {"gradient_checkpointing": False},
        },
    ),
)


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    length = 64 if not bench.on_gpu else 1024 if bench.is_quick else 4096
    for model in _MODELS:
        name = "toy" if not bench.on_gpu else model.quick_shape if bench.is_quick else model.shape
        has_adapters = model.settings.get("lora_config.r") is not None
        shape = fitting_shape(
            bench, SHAPES[name], tokens=4 * length, has_adapters=has_adapters, checkpointing=has_adapters
        )
        title = model.name if name == model.shape else f"{name}, {model.name.partition(', ')[2]}"
        if shape is None:
            yield Case(name=title, check=partial(skipped, "not even one layer fits"))
            continue
        measured = _Measured(bench, model, shape, length)
        for lever in measured.levers:
            line = shape_text(title, SHAPES[name], shape)
            yield Case(name=f"{line}: {lever}", check=partial(measured.speed, lever))
            if lever in model.compared:
                yield Case(name=f"{line}: {lever}, bare loop", check=partial(measured.against_bare_loop, lever))


@dataclass(slots=True)
class _Speed:
    """The measured speed of a lever."""

    tokens_per_second: float
    bare: Outcome = field(default_factory=lambda: skipped("not measured"))


class _Measured:
    """The speeds of one model."""

    def __init__(self, bench: Bench, model: _Model, shape: Shape, length: int):
        self._bench = bench
        self._model = model
        self._shape = shape
        self._length = length
        self._speeds: dict[str, _Speed] = {}
        chosen = tuple(model.levers) if not bench.is_quick else model.compared if bench.on_gpu else ("eager",)
        missing = look_at_machine(asks_bfloat16=False, asks_compiler=True).missing_to_compile[bench.on_gpu]
        self.levers = [name for name in chosen if missing is None or name != "compiled"]
        self._steps = 5 if bench.on_gpu else 2

    def speed(self, lever: str) -> Outcome:
        """Trains some steps with a lever."""
        bench, length = self._bench, self._length
        rows = save_rows(bench, 192 if bench.on_gpu else 48, (length // 2, length, length // 4, length // 4))
        defaults = {
            "packing": True,
            "max_seq_length": length,
            "per_device_train_batch_size": 4,
            "max_steps": _WARM_STEPS + self._steps,
            "logging_steps": 1000,
        }
        settings = defaults | dict(self._model.settings) | dict(self._model.levers[lever])
        if not settings["packing"]:
            settings["per_device_train_batch_size"] *= 2  # rows have half the length of a pack on average
        bench.reset_peak()
        assembled = assemble(bench, f"{self._model.shape}-{lever}", self._shape, rows, **settings)
        predicted = assembled.predicted_memory().total_bytes
        timer = StepTimer(assembled.trainer)
        assembled.trainer.add_callback(timer)
        assembled.train()
        peak, steps = bench.peak_bytes(), timer.steps[_WARM_STEPS:]
        seconds = sum(step["seconds"] for step in steps)
        found = _Speed(tokens_per_second=sum(step["tokens"] for step in steps) / seconds)
        self._speeds[lever] = found
        flops = sum(step["flops"] for step in steps) / seconds
        if lever in self._model.compared:
            found.bare = self._bare_loop(assembled, statistics.median(step["seconds"] for step in steps))
        return self._line(lever, assembled, flops=flops, memory=(peak, predicted), step=seconds / len(steps))

    def _line(self, lever: str, assembled: Assembled, *, flops: float, memory: tuple[int, int], step: float) -> Outcome:
        speed, first = self._speeds[lever].tokens_per_second, next(iter(self._model.levers))
        mfu, loss = assembled.trainer.progress.utilization(flops), assembled.trainer.means.mean_loss
        parts = [f"{speed:,.0f} tokens/s", f"MFU {mfu:.1%}" if mfu is not None else f"{flops / 1e12:.3g} TFLOP/s"]
        parts.append(f"{1000 * step:,.0f} ms a step")
        if lever != first and first in self._speeds and self._speeds[first].tokens_per_second:
            parts.append(f"{speed / self._speeds[first].tokens_per_second:.2f} of {first}")
        num_chunks = assembled.trainer.step_gradient.chunks.num_chunks
        if num_chunks > 1:
            parts.append(f"in {num_chunks} chunks, since memory ran out")
        if self._bench.on_gpu:
            parts.append(f"{size(memory[0])} reserved ({size(memory[1])} predicted)")
        return judged(
            bool(loss is not None and 0 < loss < float("inf")),
            f"{', '.join(parts)}, loss {loss:.3f}",
            tokens_per_second=speed,
            flops_per_second=flops,
            mfu=mfu,
            step_seconds=step,
            peak_bytes=memory[0],
            predicted_bytes=memory[1],
            layers=self._shape.num_layers,
            chunks=num_chunks,
        )

    def against_bare_loop(self, lever: str) -> Outcome:
        """Measured together with the speed of the lever, whose model it takes."""
        return self._speeds[lever].bare if lever in self._speeds else skipped("the run failed")

    def _bare_loop(self, assembled: Assembled, own_seconds: float) -> Outcome:
        """A bare loop on the same batches: cut in as few chunks as fit, since it holds all logits."""
        assembled.trainer.optimizer.state.clear()  # the loop has an optimizer of its own
        for chunks in (1, 2, _MOST_CHUNKS):
            self._bench.release_memory()
            try:
                seconds = self._bare_seconds(assembled, chunks)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                continue
            share = seconds / own_seconds
            cut = f", in {chunks} chunks a step" if chunks > 1 else ""
            on_gpu = self._bench.on_gpu
            return judged(
                share >= _LEAST_SHARE_OF_BARE_LOOP or not on_gpu,
                f"{1000 * seconds:,.0f} ms a step{cut}: the program reaches {share:.1%} of its speed "
                f"({f'at least {_LEAST_SHARE_OF_BARE_LOOP:.0%}' if on_gpu else 'not judged on a CPU'})",
                bare_seconds=seconds,
                own_seconds=own_seconds,
                share=share,
                chunks=chunks,
            )
        return skipped("the bare loop runs out of memory")

    def _bare_seconds(self, assembled: Assembled, num_chunks: int) -> float:
        """Median seconds of a step."""
        trainer = assembled.trainer
        loop, times = BareLoop(trainer), []
        trainer.model.train()
        batches = islice(trainer.get_train_dataloader(), _WARM_STEPS + self._steps)
        collator, count = trainer.layout.collator, assembled.setup.plan.per_device_train_batch_size
        cut = [
            [batch]
            if num_chunks == 1
            else [collator.for_chunks(num_chunks)(rows) for rows in split_rows(batch["rows"], count, num_chunks)]
            for batch in batches
        ]
        with isolated_documents(trainer.model, trainer.layout.attention):
            for chunks in cut:
                started = synchronized_time(self._bench.device)
                loop.step(chunks)
                times.append(synchronized_time(self._bench.device) - started)
        return statistics.median(times[_WARM_STEPS:])
