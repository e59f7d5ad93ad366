"""What the training benchmarks share: rows, models of random weights, the configuration of a run, its trainer.

Libraries are imported inside the functions, so that a benchmark can first set them up as `sft_main.py` does, and
measure the memory from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sft.check_gpu.shapes import SHAPES

LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def configuration(options: argparse.Namespace, folder: Path) -> Any:
    """Writes the data and loads the run's configuration.

    Args:
        options: of `bench_train.py`.
        folder: for the data, its cache and the output.
    """
    from config_manager import load_config

    packed = options.layout == "packed"
    rows = options.rows or options.steps * options.batch * (max(options.max_length // 128, 2) if packed else 1)
    write_rows(options, folder / "rows.jsonl", rows)
    settings = {
        "model_name_or_path": options.model,
        "train_file": folder / "rows.jsonl",
        "output_dir": folder / "out",
        "data_cache_dir": folder / "cache",
        "max_seq_length": options.max_length,
        "learning_rate": 1e-5,
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": options.device == "cpu",
        "padding_free": options.layout != "padded",
        "packing": packed,
        "seed": 0,
        "on_bad_rows": "skip",
        "max_bad_row_share": 1,
    }
    if options.mode != "full":
        settings |= {"lora_config.r": 16, "lora_config.lora_alpha": 32, "lora_config.target_modules": LORA}
    if options.mode == "qlora":
        settings["quantization_config.load_in_4bit"] = True
    given = dict(setting.split("=", 1) for setting in options.settings)
    return load_config(None, [f"--{key}={value}" for key, value in (settings | given).items()])


def write_rows(options: argparse.Namespace, path: Path, count: int) -> None:
    """Writes `count` question/answer rows, from the data file or of random words."""
    if options.data:
        lines = Path(options.data).read_text(encoding="utf-8").splitlines()
        path.write_text("".join(f"{lines[number % len(lines)]}\n" for number in range(count)), encoding="utf-8")
        return
    from sft.check_gpu.random_model import write_random_rows

    write_random_rows(path, count, [options.document or options.max_length])


def save_model_of_size(size: str, folder: Path) -> None:
    """Saves a model of random bfloat16 weights, and a tokenizer whose tokens are words."""
    import torch

    from sft.check_gpu.random_model import save_random_model

    save_random_model(SHAPES[size], folder, "cuda" if torch.cuda.is_available() else "cpu")


def write_tiny_model(like: str, folder: str) -> None:
    """Saves a random model of 2 layers of width 64, with the tokenizer and the vocabulary of the model `like`."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(like)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=AutoConfig.from_pretrained(like).vocab_size,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trainer_of(config: Any, context: Any, data: Any, prepared: Any) -> Any:
    """Builds the trainer as a run does; checkpoints are never copied."""
    from sft.batching.plan import resolve_batch_plan
    from sft.common.machine_records import MemoryLimits
    from sft.training.arguments import build_training_arguments
    from sft.training.run_identity import identify_run
    from sft.training.run_setup import RunSetup
    from trainer_utils import build_trainer

    max_seq_length = config.data.max_seq_length
    plan = resolve_batch_plan(
        config.training, data.num_train_rows, context, lengths=data.train.lengths, max_seq_length=max_seq_length
    )
    setup = RunSetup(
        config=config,
        context=context,
        data=data,
        prepared=prepared,
        plan=plan,
        limits=MemoryLimits(budget_bytes=0, process_bytes=0),
        identity=identify_run(config, data, prepared, context.device),
    )
    Path(config.training.output_dir).mkdir(parents=True, exist_ok=True)
    return build_trainer(setup, build_training_arguments(setup, context))
