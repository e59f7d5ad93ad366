"""Compares predicted with measured memory. Each cell trains a few steps in a new process, on CPU.

    python benchmarks/bench_memory.py --models DIR [DIR ...] [--lengths 256 512 1024] [--modes full lora qlora]
    python benchmarks/bench_memory.py --models toy --lengths 32 --batch 2

A model is a folder, or a size of `bench_train.py`. The benchmark calls the same functions as a run. Batches are
padding-free, every row has the full length, and the heap is configured as in a run (`reuse_freed_memory: auto`).

The measured memory is the peak resident set (`VmHWM`). It is reset (`/proc/self/clear_refs`) after the imports and the
preparation of rows, just before the model is loaded. The predicted memory is the resident set at that moment plus the
estimate of the dry run (`sft.batching.memory`). The last line is JSON. Requires Linux.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training_setup import SHAPES, configuration, save_model_of_size, trainer_of

MODES = ("full", "lora", "qlora")


def main() -> None:
    """Runs the benchmark, or one cell of it."""
    options = parse_options()
    if options.cell:
        print("RESULT " + json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        models = [_folder_of(model, Path(folder)) for model in options.models]
        results = [
            run_cell(options, model, mode, checkpointing, length)
            for model in models
            for mode in options.modes
            for checkpointing in options.checkpointing
            for length in options.lengths
        ]
    print("\n".join(table(results)))
    print("RESULT " + json.dumps({"cells": results, "worst": max(abs(cell["ratio"] - 1) for cell in results)}))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help=f"folders, or any of {', '.join(SHAPES)}")
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_cell(options: argparse.Namespace, model: str, mode: str, checkpointing: str, length: int) -> dict[str, Any]:
    """Measures one cell in a new process, with a fresh heap."""
    command = [
        sys.executable,
        __file__,
        "--cell",
        f"--models={model}",
        f"--modes={mode}",
        f"--lengths={length}",
        f"--checkpointing={checkpointing}",
        f"--batch={options.batch}",
        f"--accumulate={options.accumulate}",
        f"--steps={options.steps}",
        *(f"--set={setting}" for setting in options.settings),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    cell = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    print(cell_line(cell), file=sys.stderr, flush=True)
    return cell


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Predicts the memory of one cell, then trains and measures it."""
    from sft.processes.libraries import quiet_libraries

    quiet_libraries()
    # The options that `configuration` reads.
    (options.model,), (options.mode,), (options.max_length,) = options.models, options.modes, options.lengths
    options.layout, options.device = "flat", "cpu"
    options.rows = options.steps * options.batch * options.accumulate
    options.settings = [
        "bf16=false",
        f"gradient_checkpointing={str(options.checkpointing == ['on']).lower()}",
        f"gradient_accumulation_steps={options.accumulate}",
        *options.settings,
    ]
    with tempfile.TemporaryDirectory() as folder:
        options.data = str(Path(folder, "long.jsonl"))
        # Truncated to full length, nearly all of it supervised.
        row = {"question": "w1 w2", "answer": "w3 " * options.max_length}
        Path(options.data).write_text(json.dumps(row) + "\n", encoding="utf-8")
        return _train(options, configuration(options, Path(folder)))


def _train(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    from data_handler import prepare_data
    from distributed_utils import start_distributed
    from sft.processes.heap import reuse_freed_memory
    from sft.processes.libraries import import_libraries

    context = start_distributed(config.distributed, use_cpu=True)
    keeps_heap = reuse_freed_memory(config.training.reuse_freed_memory, context.device)
    import_libraries(is_dry_run=False, optimizer=config.training.optim, is_quantized=config.quantization is not None)

    import peft  # noqa: F401

    import trainer_utils
    from model_manager import load_model, load_tokenizer, resolve_precision
    from sft.batching.memory import estimate_memory
    from sft.batching.plan import resolve_batch_plan
    from sft.training.dry_run import memory_facts
    from sft.training.model_preparation import prepare_model

    precision = resolve_precision(config.model, config.training, context, adapters_only=config.lora is not None)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(config.data, tokenizer, seed=0, sample_prompts=[])
    gc.collect()
    reset_peak()
    before = resident("VmRSS")
    model = load_model(config, tokenizer, precision, context)
    prepared = prepare_model(config, model, tokenizer, precision, context, is_chat=data.is_chat)
    loaded = resident("VmHWM")
    plan = resolve_batch_plan(
        config.training, data.num_train_rows, context, lengths=data.train.lengths, max_seq_length=options.max_length
    )
    memory = estimate_memory(memory_facts(config, data, prepared, plan, device=context.device))
    trainer_utils.train(trainer_of(config, context, data, prepared))
    measured, predicted = resident("VmHWM"), before + memory.total_bytes
    components = ("weights", "gradients", "optimizer", "activations", "logits", "slack")
    return {
        "model": Path(options.model).name,
        "mode": options.mode,
        "checkpointing": options.checkpointing[0],
        "length": options.max_length,
        "batch": options.batch,
        "keeps_heap": keeps_heap,
        "before_mib": mib(before),
        "loaded_mib": mib(loaded),
        "predicted_mib": mib(predicted),
        "measured_mib": mib(measured),
        "ratio": round(predicted / measured, 3),
        "footprint": dataclasses.asdict(prepared.footprint),
        "supervised_share": round(data.report.train.supervised_share, 3),
        "accumulate": options.accumulate,
        **{name: mib(getattr(memory, f"{name}_bytes", 0)) for name in components},
    }


def table(results: list[dict[str, Any]]) -> list[str]:
    """The cells as a Markdown table, with a row per model, mode and checkpointing, and a column per length."""
    lengths = list(dict.fromkeys(cell["length"] for cell in results))
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for cell in results:
        text = f"{cell['predicted_mib']:,} / {cell['measured_mib']:,} = {cell['ratio']:.2f}"
        key = (cell["model"], cell["mode"], cell["checkpointing"])
        rows.setdefault(key, {})[cell["length"]] = text
    head = ["model", "mode", "checkpointing", *(f"{results[0]['batch']} x {length:,}" for length in lengths)]
    lines = [head, ["---"] * len(head), *([*key, *(row.get(n, "") for n in lengths)] for key, row in rows.items())]
    return [f"| {' | '.join(line)} |" for line in lines]


def cell_line(cell: dict[str, Any]) -> str:
    """A cell and the components of its memory, printed as progress."""
    return " ".join(f"{name}={value}" for name, value in cell.items() if name not in ("keeps_heap", "footprint"))


def reset_peak() -> None:
    """Resets the peak resident set to the current one (proc(5), `clear_refs`)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident(field: str) -> int:
    """A field of `/proc/self/status` in bytes: `VmRSS` is the current, `VmHWM` the peak resident set."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{field} is missing in /proc/self/status: this benchmark requires Linux.")


def mib(count: int) -> int:
    """Bytes in MiB, rounded."""
    return round(count / 2**20)


def _folder_of(model: str, folder: Path) -> str:
    """A model's folder. For a size, the model is built there first."""
    if model not in SHAPES:
        return model
    save_model_of_size(model, folder / model)
    return str(folder / model)


if __name__ == "__main__":
    main()
