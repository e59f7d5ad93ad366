"""Training speed: tokens per second, utilization, memory, and the time of each part of a step.

    python benchmarks/bench_train.py --model DIR --data questions.jsonl [--mode lora] [--layout packed]
    python benchmarks/bench_train.py --size 1.2b --device cuda --layout packed --max_length 4096 --batch 4

The benchmark calls the same functions as a run, from rows to optimizer steps. `--data` holds `question`/`answer` rows;
as many are used as the steps need. Without it, documents of random tokens are used, a quarter of each the prompt.
`--size` builds a Llama-shaped model of random weights. `--write_tiny TO` only saves a model of two narrow layers with
the tokenizer of `--model`, in which the output layer dominates. `--set key=value` sets any key of the configuration.

The steps after `--warm` are timed. Tokens are those of documents, without padding; supervised tokens are trained on;
computed tokens include padding. Utilization is the usual formula (`sft/modeling/flops.py`) divided by the time,
relative to the product of two large matrices measured here in the same dtype, and to `--peak_tflops` if given (MFU).
With `--breakdown`, four more steps are run with the device synchronized after each part. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training_setup import SHAPES, configuration, save_model_of_size, trainer_of, write_tiny_model


def main() -> None:
    """Runs the benchmark."""
    options = parse_options()
    from sft.processes.libraries import quiet_libraries  # before transformers is imported

    quiet_libraries()
    if options.write_tiny:
        write_tiny_model(options.model, options.write_tiny)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print("RESULT " + json.dumps(result))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder of a model and a tokenizer with a chat template")
    source.add_argument("--size", choices=SHAPES, help="a model of random weights")
    parser.add_argument("--data", help="JSON Lines with question and answer; requires --model")
    parser.add_argument("--write_tiny", metavar="TO", help="only save a tiny model in this folder; requires --model")
    parser.add_argument("--mode", choices=["full", "lora", "qlora"], default="full")
    parser.add_argument("--layout", choices=["padded", "flat", "packed"], default="flat")
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="documents, or packs, per micro-batch")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--rows", type=int, help="number of documents; default: what the steps need")
    parser.add_argument("--document", type=int, help="tokens per random document; default: max_length")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak_tflops", type=float, help="peak of the device, from its datasheet")
    parser.add_argument("--breakdown", action="store_true")
    parser.add_argument("--bare", action="store_true", help="compare with a bare PyTorch loop on the same batches")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args()
    if options.data and options.size:
        parser.error("--data requires the tokenizer of --model")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains a few steps; returns the figures."""
    if options.size:
        save_model_of_size(options.size, folder / "model")
        options.model = str(folder / "model")
    config = configuration(options, folder)

    from step_timing import against_bare_loop, breakdown, device_name, measured_peak

    from data_handler import prepare_data
    from distributed_utils import start_distributed
    from model_manager import load_model, load_tokenizer, resolve_precision
    from sft.check_gpu.step_timing import StepTimer
    from sft.processes.heap import reuse_freed_memory
    from sft.training.model_preparation import prepare_model
    from trainer_utils import train

    context = start_distributed(config.distributed, use_cpu=options.device == "cpu")
    keeps_heap = reuse_freed_memory(config.training.reuse_freed_memory, context.device)
    precision = resolve_precision(config.model, config.training, context, adapters_only=config.lora is not None)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(config.data, tokenizer, seed=0, sample_prompts=[])
    model = load_model(config, tokenizer, precision, context)
    prepared = prepare_model(config, model, tokenizer, precision, context, is_chat=data.is_chat)
    training = trainer_of(config, context, data, prepared)
    timer = StepTimer(training.trainer)
    training.trainer.add_callback(timer)
    train(training)
    result = {
        "model": options.size or Path(options.model).name,
        "mode": options.mode,
        "layout": options.layout,
        "is_padding_free": prepared.layout.is_padding_free,
        "mixed": precision.mixed,
        "device": device_name(options.device),
        "keeps_heap": keeps_heap,
        "batch": options.batch,
        "max_length": options.max_length,
        **speed(options, training.trainer, timer.steps[options.warm :], measured_peak(options.device, precision)),
    }
    if options.breakdown:
        result["breakdown_seconds"] = breakdown(training.trainer, options.device)
    if options.bare:
        result |= against_bare_loop(training.trainer, options)
    return result


def speed(options: argparse.Namespace, trainer: Any, steps: list[dict[str, float]], peak: float) -> dict[str, Any]:
    """The figures of the timed steps.

    Args:
        options: the command line.
        trainer: after training.
        steps: seconds, FLOPs and counts of each timed step.
        peak: measured FLOPs per second of a matrix product.
    """
    from sft.modeling.footprint import footprint
    from sft.processes.device_memory import peak_memory_bytes

    seconds = sum(step["seconds"] for step in steps)
    counts = {name: sum(step[name] for step in steps) for name in ("tokens", "supervised", "computed", "flops")}
    flops_per_second = counts["flops"] / seconds
    result = {
        "steps": len(steps),
        "parameters": footprint(trainer.model).num_parameters,
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "supervised_tokens_per_second": round(counts["supervised"] / seconds, 1),
        "computed_tokens_per_second": round(counts["computed"] / seconds, 1),
        "median_step_seconds": round(statistics.median(step["seconds"] for step in steps), 4),
        "tflops": float(f"{flops_per_second / 1e12:.3g}"),
        "measured_peak_tflops": float(f"{peak / 1e12:.3g}"),
        "share_of_measured_peak": float(f"{flops_per_second / peak:.3g}"),
        "peak_memory_gib": round(peak_memory_bytes(options.device) / 2**30, 2),
        "losses": [round(event["loss"], 4) for event in trainer.state.log_history if "loss" in event],
    }
    if options.peak_tflops:
        result["mfu"] = round(flops_per_second / (options.peak_tflops * 1e12), 3)
    return result


if __name__ == "__main__":
    main()
