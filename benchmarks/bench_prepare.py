"""Speed of data preparation (reading, rendering, tokenizing, masking, writing), compared with the bare tokenizer.

    python benchmarks/bench_prepare.py --model DIR --data questions.jsonl [--rows 50000] [--workers auto]

`--data` holds `question`/`answer` rows; they are repeated with a number in front, so that all rows differ. The
benchmark times `prepare_data`, from the JSON file to tokenized, masked and counted rows: with an empty cache (cold),
then again (warm). Imports and loading the tokenizer are not timed. The limit is the time to tokenize the rendered text
in one batch call on the same cores, which no pipeline can beat. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a tokenizer with a chat template")
    parser.add_argument("--data", required=True, help="JSON Lines with question and answer")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--max_length", type=int, default=512)
    options = parser.parse_args()

    from sft.processes.libraries import quiet_libraries  # before transformers is imported

    quiet_libraries()
    from transformers import AutoTokenizer

    from data_handler import prepare_data
    from sft.configuration.schema import DataConfig

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        write_rows(Path(options.data), file, options.rows)
        config = DataConfig(
            train_file=str(file),
            max_seq_length=options.max_length,
            preprocessing_num_workers=options.workers if options.workers == "auto" else int(options.workers),
            data_cache_dir=str(Path(folder, "cache")),
        )
        seconds = {}
        for name in ("cold", "warm"):
            started = time.perf_counter()
            data = prepare_data(config, tokenizer, seed=0)
            seconds[name] = time.perf_counter() - started
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        limit = tokenizer_limit(file, tokenizer)
    cold = data.report.rows_used / seconds["cold"]
    result = {
        "rows": data.report.rows_used,
        "workers": options.workers,
        "rows_per_second": round(cold),
        "tokenizer_limit": round(limit),
        "share_of_limit": round(cold / limit, 3),
        "warm_seconds": round(seconds["warm"], 3),
        "peak_rss_gib": round(own, 2),
        "peak_rss_of_a_worker_gib": round(workers, 2),
    }
    print("RESULT " + json.dumps(result))


def write_rows(source: Path, target: Path, count: int) -> None:
    """Writes `count` different chat rows."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            question = {"role": "user", "content": f"{number}. {row['question']}"}
            answer = {"role": "assistant", "content": row["answer"]}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")


def tokenizer_limit(file: Path, tokenizer) -> float:
    """Rows per second of the bare tokenizer on rendered text."""
    with file.open(encoding="utf-8") as lines:
        conversations = [json.loads(line)["messages"] for line in lines]
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    started = time.perf_counter()
    tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return len(texts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
