"""How fast a model trains: tokens per second, utilization, memory, and where a step's time goes.

    python benchmarks/bench_train.py --model DIR --data questions.jsonl [--mode lora] [--layout packed]
    python benchmarks/bench_train.py --size 1.2b --device cuda --layout packed --max_length 4096 --batch 4

The run goes through this project's own rooms, from rows to optimizer steps. `--data` holds `question`/`answer` rows,
of which just so many are taken as the steps need; without it, documents of random tokens, a quarter of them prompt.
`--size` builds a Llama-shaped model of random weights; `--write_tiny TO` writes one of two narrow layers with the
tokenizer of `--model`, in which the output layer is nearly everything, and ends. Any key of the configuration can be
added: `--set key=value`.

Timed are the steps after `--warm`. Tokens are those of documents (no padding), supervised ones those that are trained,
laid out ones all that are computed. Utilization (MFU) is the usual formula (`sft/modeling/flops.py`) over the time, against
the product of two large matrices measured here in the same type, and against `--peak_tflops` if that is given. With
`--breakdown`, four more steps are run with the device waited for after each part. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
SIZES = {
    # hidden, intermediate, layers, heads, key/value heads, vocabulary: as Llama 3.2 1B and Llama 3.1 8B have them.
    "toy": (64, 128, 2, 4, 2, 512),
    "1.2b": (2048, 8192, 16, 32, 8, 128256),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Runs the benchmark."""
    options = parse_options()
    from sft.processes.libraries import quiet_libraries

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
    source.add_argument("--model", help="a folder with a model and a tokenizer that has a chat template")
    source.add_argument("--size", choices=SIZES, help="a model of random weights")
    parser.add_argument("--data", help="JSON Lines with question and answer; needs --model")
    parser.add_argument("--write_tiny", metavar="TO", help="needs --model")
    parser.add_argument("--mode", choices=["full", "lora", "qlora"], default="full")
    parser.add_argument("--layout", choices=["padded", "flat", "packed"], default="flat")
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="documents, or packs, of a micro-batch")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--rows", type=int, help="documents in all; default: what the steps need")
    parser.add_argument("--document", type=int, help="tokens of a random document; default: max_length")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak_tflops", type=float, help="of the device, by its datasheet")
    parser.add_argument("--breakdown", action="store_true")
    parser.add_argument("--bare", action="store_true", help="against a bare PyTorch loop on the same batches")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args()
    if options.data and options.size:
        parser.error("--data needs the tokenizer of --model")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains a few steps, and says how long they took."""
    if options.size:
        build_random_model(options.size, folder / "model")
        options.model = str(folder / "model")
    config = configuration(options, folder)

    from data_handler import prepare_data
    from distributed_utils import start_distributed
    from model_manager import resolve_precision
    from sft.modeling.footprint import footprint
    from sft.modeling.tokenizer import load_tokenizer
    from sft.processes.device_memory import peak_memory_bytes
    from sft.processes.heap import reuse_freed_memory
    from sft_main import load_model_and_layout
    from trainer_utils import train

    context = start_distributed(config.distributed, use_cpu=options.device == "cpu")
    holds = reuse_freed_memory(config.training.reuse_freed_memory, context.device)
    precision = resolve_precision(config.model, config.training, context, adapters_only=config.lora is not None)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(config.data, tokenizer, seed=0, sample_prompts=[])
    model, layout = load_model_and_layout(config, tokenizer, precision, context)
    size = footprint(model)
    prepared = trainer_of(config, options, precision, context, data, layout, model, tokenizer)
    timer = add_timer(prepared.trainer)
    train(prepared, resume_point=None)
    steps = timer.steps[options.warm :]
    seconds = sum(step["seconds"] for step in steps)
    counts = {name: sum(step[name] for step in steps) for name in ("tokens", "supervised", "computed", "flops")}
    peak = measured_peak(options.device, precision)
    result = {
        "model": options.size or Path(options.model).name,
        "mode": options.mode, "layout": options.layout, "is_flat": layout.is_padding_free, "mixed": precision.mixed,
        "device": device_name(options.device), "keeps_heap": holds, "batch": options.batch,
        "max_length": options.max_length, "steps": len(steps), "parameters": size.num_parameters,
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "supervised_tokens_per_second": round(counts["supervised"] / seconds, 1),
        "laid_out_tokens_per_second": round(counts["computed"] / seconds, 1),
        "median_step_seconds": round(statistics.median(step["seconds"] for step in steps), 4),
        "tflops": float(f"{counts['flops'] / seconds / 1e12:.3g}"),
        "measured_peak_tflops": float(f"{peak / 1e12:.3g}"),
        "share_of_measured_peak": float(f"{counts['flops'] / seconds / peak:.3g}"),
        "peak_memory_gib": round(peak_memory_bytes(context.device) / 2**30, 2),
        "losses": [round(event["loss"], 4) for event in prepared.trainer.state.log_history if "loss" in event],
    }  # fmt: skip
    if options.peak_tflops:
        result["mfu"] = round(counts["flops"] / seconds / (options.peak_tflops * 1e12), 3)
    if options.breakdown:
        result["breakdown_seconds"] = breakdown(prepared.trainer, options.device)
    if options.bare:
        result |= against_bare_loop(prepared.trainer, options)
    return result


def configuration(options: argparse.Namespace, folder: Path) -> Any:
    """The run's configuration; writes its data."""
    from config_manager import load_config

    packed = options.layout == "packed"
    rows = options.rows or options.steps * options.batch * (max(options.max_length // 128, 2) if packed else 1)
    write_rows(options, folder / "rows.jsonl", rows)
    settings = {
        "model_name_or_path": options.model, "train_file": folder / "rows.jsonl", "output_dir": folder / "out",
        "data_cache_dir": folder / "cache", "max_seq_length": options.max_length, "learning_rate": 1e-5,
        "per_device_train_batch_size": options.batch, "max_steps": options.steps, "lr_scheduler_type": "constant",
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": options.device == "cpu",
        "padding_free": options.layout != "padded", "packing": packed, "seed": 0, "on_bad_rows": "skip",
        "max_bad_row_share": 1,
    }  # fmt: skip
    if options.mode != "full":
        settings |= {"lora_config.r": 16, "lora_config.lora_alpha": 32, "lora_config.target_modules": LORA}
    if options.mode == "qlora":
        settings["quantization_config.load_in_4bit"] = True
    given = dict(setting.split("=", 1) for setting in options.settings)
    return load_config(None, [f"--{key}={value}" for key, value in (settings | given).items()])


def write_rows(options: argparse.Namespace, path: Path, count: int) -> None:
    """Writes `count` question/answer rows of the data file, or of random words."""
    if options.data:
        lines = Path(options.data).read_text(encoding="utf-8").splitlines()
        path.write_text("".join(f"{lines[number % len(lines)]}\n" for number in range(count)), encoding="utf-8")
        return
    import random

    # The tokenizer of a random model has a token for each word; the template takes four more.
    words = random.Random(0)
    length = (options.document or options.max_length) - 4
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = [f"w{words.randrange(400)}" for _ in range(length)]
            cut = length // 4
            row = {"question": " ".join(text[:cut]), "answer": " ".join(text[cut:])}
            file.write(json.dumps(row) + "\n")


def build_random_model(size: str, folder: Path) -> None:
    """A Llama-shaped model of random weights in bfloat16, and a tokenizer that has words as tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, intermediate, layers, heads, kv_heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=8192, rope_theta=500000.0,
        tie_word_embeddings=size != "8b", bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.to("cpu").save_pretrained(folder)
    special = ["<s>", "</s>", "<user>", "<assistant>", "<unk>"]
    words = {word: number for number, word in enumerate([*special, *(f"w{number}" for number in range(400))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "<user>", "<assistant>"]})
    tokenizer.chat_template = (
        "<s>{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)


def write_tiny_model(like: str, folder: str) -> None:
    """A random model of 2 layers of width 64, with the tokenizer, and so the vocabulary, of another."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(like)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=AutoConfig.from_pretrained(like).vocab_size, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trainer_of(config, options, precision, context, data, layout, model, tokenizer) -> Any:
    """The trainer, put together as a run does."""
    from sft.batching.plan import resolve_batch_plan
    from sft.training.arguments import build_training_arguments, compile_options
    from trainer_utils import build_trainer

    plan = resolve_batch_plan(
        config.training, data.num_train_rows, context, lengths=data.train.lengths, max_seq_length=options.max_length
    )
    arguments = build_training_arguments(
        config.training, config.logging, precision, context, has_validation=False,
    )  # fmt: skip
    Path(config.training.output_dir).mkdir(parents=True, exist_ok=True)
    return build_trainer(
        arguments,
        model,
        tokenizer,
        data,
        plan,
        layout,
        context,
        resume_point=None,
        compiling=compile_options(config.training),
    )


def add_timer(trainer: Any) -> Any:
    """Times each step, and adds up what is trained in it."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self.before = (0.0, [0.0] * len(trainer.progress.counts), 0.0)

        def _now(self) -> tuple[float, list[float], float]:
            counts = trainer.progress.counts.tolist()  # waits for the device
            return time.perf_counter(), counts, trainer.state.total_flos + trainer.current_flos

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.before = self._now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            before, now = self.before, self._now()
            difference = [new - old for new, old in zip(now[1], before[1], strict=True)]
            names = ("supervised", "tokens", "rows", "computed")
            self.steps.append(
                {"seconds": now[0] - before[0], "flops": now[2] - before[2]}
                | dict(zip(names, difference, strict=False))
            )
            self.before = now

    timer = Timer()
    trainer.add_callback(timer)
    return timer


def against_bare_loop(trainer: Any, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step by Trainer's machinery and by a bare loop, on the same batches, step by step in turn."""
    import torch

    from sft.batching.layout import model_inputs
    from sft.batching.transfer import to_device
    from sft.modeling.document_attention import isolated_documents

    model, device = trainer.model, trainer.args.device
    own = trainer.optimizer
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    bare = torch.optim.AdamW(weights, lr=1e-5, fused=True)

    def bare_step(batch: dict[str, Any]) -> None:
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            logits = model(**model_inputs(batch), use_cache=False).logits.flatten(0, 1)
            logits = logits.index_select(0, batch["label_positions"]).float()
            loss = torch.nn.functional.cross_entropy(logits, batch["targets"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        bare.step()
        bare.zero_grad()

    def own_step(batch: dict[str, Any]) -> None:
        (batch,), tokens = trainer.get_batch_samples(iter([batch]), 1, device)
        trainer.training_step(trainer.model_wrapped, batch, num_items_in_batch=tokens)
        trainer.accelerator.clip_grad_norm_(weights, 1.0)
        own.step()
        own.zero_grad()

    seconds: dict[str, list[float]] = {"own": [], "bare": []}
    model.train()
    with isolated_documents(model, trainer.layout.attention):
        for batch in list(trainer.get_train_dataloader())[: options.steps]:
            for name, step in (("own", own_step), ("bare", lambda batch: bare_step(to_device(batch, device)))):
                started = waited(options.device)
                step(batch)
                seconds[name].append(waited(options.device) - started)
    medians = {name: statistics.median(values[options.warm :]) for name, values in seconds.items()}
    return {
        "own_step_seconds": round(medians["own"], 4),
        "bare_step_seconds": round(medians["bare"], 4),
        "times_the_bare_loop": round(medians["bare"] / medians["own"], 3),
    }


def waited(device: str) -> float:
    """The time, once the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def breakdown(trainer: Any, device: str) -> dict[str, float]:
    """Median seconds of a step's parts, the device waited for after each."""
    from sft.modeling.document_attention import isolated_documents

    parts: dict[str, list[float]] = {"batch": [], "forward": [], "backward": [], "clip": [], "optimizer": []}
    batches = iter(trainer.get_train_dataloader())
    model, optimizer = trainer.model_wrapped, trainer.optimizer
    model.train()
    with isolated_documents(trainer.model, trainer.layout.attention):
        for _ in range(4):
            moments = [waited(device)]
            (batch,), tokens = trainer.get_batch_samples(batches, 1, trainer.args.device)
            moments.append(waited(device))
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, batch, num_items_in_batch=tokens)
            moments.append(waited(device))
            trainer.accelerator.backward(loss)
            moments.append(waited(device))
            trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
            moments.append(waited(device))
            optimizer.step()
            optimizer.zero_grad()
            moments.append(waited(device))
            for name, start, end in zip(parts, moments, moments[1:], strict=False):
                parts[name].append(end - start)
    return {name: round(statistics.median(seconds[1:]), 4) for name, seconds in parts.items()}


def measured_peak(device: str, precision: Any) -> float:
    """Operations per second of a large matrix product, in the type that the run computes in; the best of a few."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.mixed) or getattr(torch, precision.weights)
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def device_name(device: str) -> str:
    """The GPU's name, or `cpu` with the number of threads."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
