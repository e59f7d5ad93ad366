"""Micro-batches and whole steps: packed rows equal padded ones, and nothing waits for the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from sft.batching.layout import model_inputs
from sft.batching.transfer import to_device
from sft.check_gpu.bench import Bench
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.program import LORA, Assembled, assemble, save_rows
from sft.check_gpu.shapes import SHAPES
from sft.common.data_records import IGNORED
from sft.modeling.document_attention import isolated_documents
from sft.processes.device_memory import peak_memory_bytes, total_memory_bytes

_LENGTHS = (24, 64, 96, 32)
_MAX_LENGTH = 128
_QUIET_STEPS = (3, 7)
"""Steps from which and before which synchronizations are counted: the last step logs."""
_STEPS, _STEPS_ON_CPU = 8, 2


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    yield Case(name="packed rows equal padded rows", check=partial(_packed_equals_padded, bench))
    yield Case(name="a document does not change the others", check=partial(_isolation, bench))
    if bench.on_gpu:
        yield Case(name="float32 is padded, with the reason", check=partial(_float32_is_padded, bench))
    for name, settings in _LAYOUTS.items():
        yield Case(name=f"no synchronization in a step: {name}", check=partial(_quiet_steps, bench, name, settings))
    yield Case(name="memory is measured", check=partial(_memory, bench))


_PACKED = {"packing": True, "per_device_train_batch_size": 2}
_LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": _PACKED,
    "rows concatenated": {"per_device_train_batch_size": 4},
    "padded": {"per_device_train_batch_size": 4, "padding_free": False},
    "checkpointed": {**_PACKED, "gradient_checkpointing": True},
    "LoRA": {**_PACKED, **LORA},
}


def _assembled(bench: Bench, name: str, **settings: Any) -> Assembled:
    rows = save_rows(bench, 160, _LENGTHS)
    steps = bench.small_length(_STEPS, _STEPS_ON_CPU)
    defaults = {"max_seq_length": _MAX_LENGTH, "max_steps": steps, "gradient_accumulation_steps": 2}
    return assemble(bench, name, SHAPES["toy"], rows, **defaults | settings)


def _rows(seed: int = 0, lengths: Sequence[int] = (7, 19, 4, 33, 19, 2)) -> list[dict[str, np.ndarray]]:
    """Rows of random tokens; the first third of each is not supervised."""
    generator = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = generator.integers(5, 400, length)
        rows.append({"input_ids": ids, "labels": np.where(np.arange(length) < length // 3, IGNORED, ids)})
    return rows


def _gradients(assembled: Assembled, rows: Sequence[Any], collator: Any, attention: str | None) -> dict[str, Any]:
    """Loss and gradients of a micro-batch, as a step computes them."""
    trainer = assembled.trainer
    model, layout = trainer.model, trainer.layout
    model.zero_grad()
    batch = to_device(collator(rows), trainer.args.device)
    with isolated_documents(model, attention), trainer.accelerator.autocast():
        loss = layout.output.loss_sum(model, model_inputs(batch), batch) / batch["counts"]["supervised"]
    loss.backward()
    found = {name: weight.grad.float().clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach().float(), **found}


def _packed_equals_padded(bench: Bench) -> Outcome:
    """In the precision of training, both are as far from float32 as rounding explains."""
    flat, padded = (
        _assembled(bench, f"layout-{is_flat}", padding_free="auto" if is_flat else False, share_prefixes=is_flat)
        for is_flat in (True, False)
    )
    exact = _assembled(bench, "layout-exact", padding_free=False, bf16=False, fp16=False)
    rows, prefix = _rows(), np.arange(40) + 5
    for row in rows[:2]:  # these two share their first tokens
        row["input_ids"] = np.concatenate([prefix, row["input_ids"]])
        row["labels"] = np.concatenate([np.full(len(prefix), IGNORED), row["labels"]])
    found = [
        _gradients(each, rows, each.trainer.layout.collator, each.trainer.layout.attention)
        for each in (flat, padded, exact)
    ]
    off = [
        max(float((each[name] - right).norm() / right.norm().clamp(min=1e-9)) for name, right in found[2].items())
        for each in found[:2]
    ]
    layout = flat.trainer.layout
    is_expected = layout.is_padding_free or (bench.kernel is not None and bench.kernel.obstacle is not None)
    text = f"{layout.name}: gradients off by {off[0]:.1e} from float32 and padded rows, padded rows by {off[1]:.1e}"
    if not layout.is_padding_free:
        text = f"{text}; {layout.obstacle}"
    is_computed = float(found[2]["loss"]) > 0
    is_right = is_expected and is_computed and off[0] <= 2 * off[1] + (1e-2 if bench.on_gpu else 1e-4)
    return judged(is_right, text, packed=off[0], padded=off[1], obstacle=layout.obstacle)


def _isolation(bench: Bench) -> Outcome:
    """The scores of a model for one document, with other tokens in another one."""
    assembled = _assembled(bench, "isolation", share_prefixes=False)
    trainer = assembled.trainer
    model, layout = trainer.model.eval(), trainer.layout
    if not layout.is_padding_free:
        return skipped(f"rows are padded: {layout.obstacle}")
    before, after = _rows(), _rows()
    after[2] = {**after[2], "input_ids": (after[2]["input_ids"] + 1) % 400}
    scores = []
    with torch.no_grad(), isolated_documents(model, layout.attention), trainer.accelerator.autocast():
        for rows in (before, after):
            scores.append(model(**model_inputs(to_device(layout.collator(rows), trainer.args.device))).logits[0])
    same = (scores[0] == scores[1]).all(dim=1)
    start = sum(len(row["input_ids"]) for row in before[:2])
    end = start + len(before[2]["input_ids"])
    others = torch.cat([same[:start], same[end:]])
    return judged(
        bool(others.all()) and not bool(same[start:end].all()),
        f"the scores of {int((~others).sum())} of {len(others)} other tokens changed",
        changed=int((~others).sum()),
    )


def _float32_is_padded(bench: Bench) -> Outcome:
    layout = _assembled(bench, "float32", bf16=False, fp16=False).trainer.layout
    return judged(not layout.is_padding_free and bool(layout.obstacle), f"{layout.name}: {layout.obstacle}")


class _Watched(TrainerCallback):
    """Lets torch warn of synchronizations in the steps between the first and the last."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first, last = _QUIET_STEPS
        torch.cuda.set_sync_debug_mode("warn" if first <= state.global_step + 1 < last else "default")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def _quiet_steps(bench: Bench, name: str, settings: dict[str, Any]) -> Outcome:
    """Whole steps of the trainer, without logging, in which the host must not wait for the device."""
    assembled = _assembled(bench, f"quiet-{name}", logging_steps=1000, **settings)
    if bench.on_gpu:
        assembled.trainer.add_callback(_Watched())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            assembled.train()
        finally:
            if bench.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    found = Counter(
        f"{'/'.join(Path(each.filename).parts[-3:])}:{each.lineno}"
        for each in caught
        if "called a synchronizing" in str(each.message)
    )
    loss = assembled.trainer.means.mean_loss
    count = _QUIET_STEPS[1] - _QUIET_STEPS[0]
    if not bench.on_gpu:
        return skipped(f"a GPU's alone; {_STEPS_ON_CPU} steps were trained, loss {loss:.4f}", loss=loss)
    where = f", first at {next(iter(found))}" if found else ""
    text = f"{found.total()} in {count} steps of 2 micro-batches{where}; loss {loss:.4f}"
    return judged(not found and np.isfinite(loss), text, places=dict(found), loss=loss)


def _memory(bench: Bench) -> Outcome:
    peak, total = peak_memory_bytes(bench.device), total_memory_bytes(bench.device)
    return judged(0 < peak < total, f"peak {peak / 2**20:,.0f} of {total / 2**20:,.0f} MiB", peak=peak, total=total)
