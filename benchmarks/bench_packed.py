"""Speed on CPU of packed rows against padded ones, for models whose layers have windows, caps or mixers.

    python benchmarks/bench_packed.py [--kinds window mixer] [--longest 2048] [--window 512] [--rows 8] [--repeats 5]

Random models of 4 layers of width 256. A micro-batch has rows of long-tailed random lengths, as chat data has; `same`
has rows that are all of the longest length, where nothing is padded. Both layouts compute the same rows in turn,
forward and backward, as a training step does. Tokens are those of rows, without padding. The last line is JSON.

`caps` is not among the kinds by default: transformers keeps several arrays of all scores of padded rows, 16 GiB with
the default sizes; use it with `--rows 2`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
KINDS = {
    "plain": ("Llama", {}),
    "window": ("Mistral", {"sliding_window": "window"}),
    "caps": ("Gemma2", {"sliding_window": "window", "head_dim": 32}),
    "mixer": ("Lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"]}),
}
"""Name -> its class in transformers, and settings beside the size; `window` is that of the command line."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["plain", "window", "mixer"])
    parser.add_argument("--lengths", choices=["long-tailed", "same"], default="long-tailed")
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    from sft.processes.libraries import quiet_libraries  # before transformers is imported

    quiet_libraries()
    from sft.processes.heap import reuse_freed_memory

    reuse_freed_memory("auto", "cpu")
    rows = rows_of(options)
    print("| layers | packed tokens/s | padded tokens/s | packed is faster by |\n|---|---|---|---|")
    cells = [measure(kind, options, rows) for kind in options.kinds]
    print("RESULT " + json.dumps({"tokens": sum(len(row["input_ids"]) for row in rows), "cells": cells}))


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the micro-batch; the last half of each is supervised."""
    import numpy as np

    generator = np.random.default_rng(0)
    drawn = generator.lognormal(np.log(options.longest / 6), 0.9, options.rows)
    lengths = np.clip(drawn.astype(int), 16, options.longest)
    lengths[0] = options.longest
    if options.lengths == "same":
        lengths[:] = options.longest
    made = []
    for length in lengths:
        ids = generator.integers(3, 1000, length)
        made.append({"input_ids": ids, "labels": np.where(np.arange(length) < length // 2, -100, ids)})
    return made


def measure(kind: str, options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The speed of both layouts, which take turns."""
    steps = {name: step_of(kind, options, rows, padding_free=name == "packed") for name in ("packed", "padded")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.repeats + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number:  # the first one allocates
                seconds[name].append(time.perf_counter() - started)
    tokens = sum(len(row["input_ids"]) for row in rows)
    speeds = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    ratios = [padded / packed for packed, padded in zip(seconds["packed"], seconds["padded"], strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"| {kind} | {speeds['packed']:,.0f} | {speeds['padded']:,.0f} | "
        f"{ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )
    return {"kind": kind, **{name: round(speed) for name, speed in speeds.items()}, "ratio": round(ratio, 3)}


def step_of(
    kind: str, options: argparse.Namespace, rows: list[dict[str, Any]], *, padding_free: bool
) -> Callable[[], None]:
    """Forward and backward pass of the rows in one layout, found as a run finds it."""
    from sft.batching.layout import model_inputs
    from sft.common.run_records import DistributedContext, Precision
    from sft.configuration.schema import ModelConfig, TrainingConfig
    from sft.modeling.document_attention import isolated_documents
    from sft.training.row_layout import resolve_layout

    model = build(kind, options).train()
    layout = resolve_layout(
        model,
        ModelConfig(model_name_or_path=kind),
        TrainingConfig(padding_free=padding_free, share_prefixes=False),
        Precision(weights="float32", mixed="no"),
        DistributedContext(),
        pad_token_id=0,
        max_seq_length=options.longest,
    )

    def step() -> None:
        batch = layout.collator(copy.copy(rows))
        with isolated_documents(model, layout.attention):
            layout.output.loss_sum(model, model_inputs(batch), batch).backward()
        model.zero_grad(set_to_none=True)

    return step


def build(kind: str, options: argparse.Namespace) -> Any:
    """The random model."""
    import torch
    import transformers

    name, own = KINDS[kind]
    torch.manual_seed(0)
    settings = {
        "vocab_size": 1000,
        "hidden_size": options.width,
        "intermediate_size": 3 * options.width,
        "num_hidden_layers": 4,
        "num_attention_heads": options.width // 32,
        "num_key_value_heads": max(options.width // 64, 1),
        "max_position_embeddings": options.longest,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **{key: options.window if value == "window" else value for key, value in own.items()},
    }
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings))


if __name__ == "__main__":
    main()
