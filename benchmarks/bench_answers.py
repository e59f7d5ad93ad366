"""Speed of scored answers: batches with the cache, against `generate` of transformers, row by row.

    python benchmarks/bench_answers.py [--model examples/tiny-chat] [--rows 200] [--batch 16] [--rounds 3]

Greedy answers to the prompts of `examples/data/orders_validation.jsonl`, after the model was trained on the orders for
some steps (`--steps`), so that answers end. Both ways take turns and give the same answers; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "tiny-chat"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from sft.processes.libraries import quiet_libraries

    quiet_libraries()
    ways = Ways(trained(options), options)
    seconds: dict[str, list[float]] = {name: [] for name in ways.by_name}
    texts: dict[str, list[str]] = {}
    for _ in range(options.rounds):
        for name, way in ways.by_name.items():
            started = time.perf_counter()
            texts[name] = way()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result: dict[str, Any] = {
        "rows": len(ways.prompts),
        "seconds": medians,
        "ranges": {name: (min(times), max(times)) for name, times in seconds.items()},
        "ratio": medians["row by row"] / medians["batches"],
        "equal_answers": sum(a == b for a, b in zip(*texts.values(), strict=True)),
    }
    print(json.dumps(result))


class Ways:
    """Two ways to answer the same prompts."""

    def __init__(self, folder: str, options: argparse.Namespace):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.options = options
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        data = (ROOT / "examples" / "data" / "orders_validation.jsonl").read_text().splitlines()[: options.rows]
        chats = [json.loads(line)["messages"][:-1] for line in data]
        self.prompts = [
            self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats
        ]
        end = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = end if isinstance(end, list) else [end]
        self.by_name: dict[str, Callable[[], list[str]]] = {
            "row by row": self.row_by_row,
            "batches": self.in_batches,
        }

    def row_by_row(self) -> list[str]:
        """As transformers alone does it."""
        import torch

        texts = []
        for ids in self.prompts:
            with torch.no_grad():
                output = self.model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=self.options.max_new_tokens,
                    do_sample=False,
                    eos_token_id=self.ends,
                    pad_token_id=self.tokenizer.pad_token_id,
                )[0, len(ids) :].tolist()
            stop = next((place for place, token in enumerate(output) if token in self.ends), len(output))
            texts.append(self.tokenizer.decode(output[:stop]))
        return texts

    def in_batches(self) -> list[str]:
        """As a run does it."""
        from sft.modeling.batched_answers import answer_in_batches

        answers = answer_in_batches(
            self.model,
            self.tokenizer,
            self.prompts,
            eos_token_ids=self.ends,
            max_new_tokens=self.options.max_new_tokens,
            batch_size=self.options.batch,
        )
        return [answer.text for answer in answers]


def trained(options: argparse.Namespace) -> str:
    """A folder with the model after some steps on the orders."""
    import sft_main

    folder = tempfile.mkdtemp()
    status = sft_main.main(
        [
            f"--model_name_or_path={options.model}",
            f"--train_file={ROOT / 'examples' / 'data' / 'orders_train.jsonl'}",
            f"--output_dir={folder}/out",
            f"--max_steps={options.steps}",
            "--per_device_train_batch_size=16",
            "--learning_rate=2e-3",
            "--report_to=none",
            "--sample_prompts=[]",
            "--save_strategy=no",
        ]
    )
    if status:
        raise SystemExit(status)
    return f"{folder}/out"


if __name__ == "__main__":
    main()
