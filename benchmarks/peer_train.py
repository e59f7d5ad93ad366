"""Trains a few steps with another library, through its own entry point, on the rows that `bench_train.py` uses.

    python -m venv trl-env && trl-env/bin/pip install torch==2.13.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0
    python -m venv lf-env && lf-env/bin/pip install torch==2.13.0 llamafactory==0.9.5
    trl-env/bin/python benchmarks/peer_train.py trl --model DIR --data questions.jsonl [--packed] [--mode lora]
    lf-env/bin/python benchmarks/peer_train.py llamafactory --model DIR --data questions.jsonl --packed
    python benchmarks/peer_train.py trainer --model DIR --data questions.jsonl

`trl` is SFTTrainer on prompt and completion, and `--packed` sets `packing: true`. For `llamafactory`, `--packed` sets
`neat_packing`. `trainer` is transformers' Trainer with its padding collator. All train in float32 on CPU. The tokens of
a step, without padding, and its labels are counted by the same forward hook for all of them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Runs one peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["trl", "llamafactory", "trainer"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="JSON Lines with question and answer")
    parser.add_argument("--mode", choices=["full", "lora"], default="full")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch", type=int, help="default: 8 documents, or 3 packs")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--template", default="smollm2", help="LLaMA-Factory's name of the model's template")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    options = parser.parse_args()
    options.batch = options.batch or (3 if options.packed else 8)
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", DISABLE_VERSION_CHECK="1")
    count = 8 * options.steps + (16 if options.packed else 0)
    lines = Path(options.data).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[number % len(lines)]) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        watch = make_watch()
        {"trl": run_trl, "llamafactory": run_llamafactory, "trainer": run_trainer}[options.peer](
            options, rows, folder, watch
        )
    timed = watch.steps[options.warm :]
    seconds = sum(step["seconds"] for step in timed)
    result = {
        "peer": options.peer,
        "mode": options.mode,
        "packed": options.packed,
        "batch": options.batch,
        "max_length": options.max_length,
        "steps": len(timed),
        "tokens_per_second": round(sum(step["tokens"] for step in timed) / seconds, 1),
        "supervised_tokens_per_second": round(sum(step["labels"] for step in timed) / seconds, 1),
        "median_step_seconds": round(statistics.median(step["seconds"] for step in timed), 4),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "losses": watch.losses,
    }
    print("RESULT " + json.dumps(result))


def make_watch() -> Any:
    """A callback that times steps and counts the model's input tokens and labels."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self.losses: list[float] = []
            self.tokens = self.labels = 0

        def count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
            ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
            if ids is None:
                return
            if mask is None:
                self.tokens += ids.numel()
            elif mask.dim() == 2:
                self.tokens += int((mask > 0).sum())
            else:  # a mask of pairs, in which a padding token does not attend to itself
                itself = mask[:, 0].diagonal(dim1=-2, dim2=-1)
                self.tokens += int((itself == 0).sum() if itself.is_floating_point() else itself.sum())
            self.labels += 0 if labels is None else int((labels[:, 1:] != -100).sum())

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            model.register_forward_pre_hook(self.count, with_kwargs=True)
            self.since = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.steps.append({"seconds": now - self.since, "tokens": self.tokens, "labels": self.labels})
            self.since, self.tokens, self.labels = now, 0, 0

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(round(float(logs["loss"]), 4))

    return Watch()


def shared_arguments(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Training arguments that all libraries share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }


def lora() -> Any:
    """The adapters that `bench_train.py --mode lora` trains."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=ADAPTED)


def chat(row: dict[str, str]) -> list[dict[str, str]]:
    """A row as messages."""
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def run_trl(options: argparse.Namespace, rows: list[dict], folder: str, watch: Any) -> None:
    """TRL's SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": chat(row)[:1], "completion": chat(row)[1:]} for row in rows])
    arguments = SFTConfig(
        **shared_arguments(options, folder),
        report_to=[],
        max_length=options.max_length,
        packing=options.packed,
        gradient_checkpointing=options.gradient_checkpointing,
        model_init_kwargs={"dtype": "float32"},
    )
    adapters = lora() if options.mode == "lora" else None
    SFTTrainer(options.model, args=arguments, train_dataset=data, callbacks=[watch], peft_config=adapters).train()


def run_llamafactory(options: argparse.Namespace, rows: list[dict], folder: str, watch: Any) -> None:
    """LLaMA-Factory's `run_exp`, as its command line calls it."""
    from llamafactory.train.tuner import run_exp

    Path(folder, "rows.json").write_text(json.dumps([{"messages": chat(row)} for row in rows]))
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    dataset = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    Path(folder, "dataset_info.json").write_text(json.dumps({"rows": dataset}))
    arguments = shared_arguments(options, folder) | {
        "model_name_or_path": options.model,
        "stage": "sft",
        "do_train": True,
        "dataset": "rows",
        "dataset_dir": folder,
        "template": options.template,
        "cutoff_len": options.max_length,
        "finetuning_type": options.mode,
        "report_to": "none",
        "overwrite_cache": True,
        "packing": options.packed,
        "neat_packing": options.packed,
        "disable_gradient_checkpointing": not options.gradient_checkpointing,
    }
    if options.mode == "lora":
        arguments |= {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target": "all"}
    run_exp(arguments, callbacks=[watch])


def run_trainer(options: argparse.Namespace, rows: list[dict], folder: str, watch: Any) -> None:
    """transformers' Trainer, with rows padded to the longest of a batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = []
    for row in rows:
        ids = tokenizer.apply_chat_template(chat(row), return_dict=True)["input_ids"][: options.max_length]
        prompt = tokenizer.apply_chat_template(chat(row)[:1], add_generation_prompt=True, return_dict=True)
        cut = len(prompt["input_ids"])
        labels = ([-100] * cut + ids[cut:])[: len(ids)]
        data.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    if options.mode == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora())
    arguments = TrainingArguments(
        **shared_arguments(options, folder), report_to=[], gradient_checkpointing=options.gradient_checkpointing
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    Trainer(model, arguments, train_dataset=data, data_collator=collator, callbacks=[watch]).train()


if __name__ == "__main__":
    main()
