"""Speed of data preparation (reading, rendering, tokenizing, masking, writing), compared with the bare tokenizer.

    python benchmarks/bench_prepare.py --model DIR --data questions.jsonl [--rows 50000] [--workers auto]
    python benchmarks/bench_prepare.py --model DIR --data questions.jsonl --case rows|function|turns|array|workers

`--data` holds `question`/`answer` rows; they are repeated with a number in front, so that all rows differ. The
benchmark times `prepare_data`, from the JSON file to tokenized, masked and counted rows: with an empty cache (cold),
then again (warm). Imports and loading the tokenizer are not timed. The limit is the time to tokenize the rendered text
in one batch call on the same cores, which no pipeline can beat. The other cases:

- `rows`: short rows, `--sizes` of them: the cost of a row, and the memory of the main process.
- `function`: the same rows as they are, made by a `row_function`, and by one that also computes for `--busy` seconds.
- `turns`: the same number of turns in conversations of 10, 100 and 1,000 turns.
- `array`: reading JSON arrays in one line, of `--sizes` MB: the memory of the process.
- `workers`: workers that only wait a fixed time for each chunk, instead of more cores: does the main process keep up?

Each line of the output is JSON, one for each measurement, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FUNCTION = """
import time


def to_messages(row):
    until = time.perf_counter() + {busy}
    while time.perf_counter() < until:
        pass
    return {{"messages": row["turns"]}}
"""
SHORT = 160
"""Characters of a short row."""
WORKER_SECONDS = 0.2
"""What a chunk of 512 chats takes in a worker on the machine of the results, rounded."""


def main() -> None:
    """Runs the measurements of a case, each in a new process: the peak memory of a process never falls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a tokenizer with a chat template")
    parser.add_argument("--data", required=True, help="JSON Lines with question and answer")
    parser.add_argument("--case", default="speed", choices=["speed", "rows", "function", "turns", "array", "workers"])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--sizes", default="", help="rows of each measurement (`rows`), or MB (`array`), with commas")
    parser.add_argument("--busy", type=float, default=0.0004, help="seconds of the slow function for each row")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--max_length", type=int, default=512)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for measurement in measurements(options):
        process = context.Process(target=measure, args=(options, measurement))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


def measurements(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is measured one after another."""
    sizes = [int(size) for size in options.sizes.split(",") if size]
    if options.case == "rows":
        yield from ({"num_rows": size, "short": True} for size in sizes or (10_000, 100_000, 1_000_000))
    elif options.case == "function":
        yield {"num_rows": options.rows}
        yield {"num_rows": options.rows, "busy": 0.0}
        yield {"num_rows": options.rows, "busy": options.busy}
    elif options.case == "turns":
        yield from ({"num_rows": options.rows // turns, "turns": turns} for turns in (10, 100, 1000))
    elif options.case == "array":
        yield from ({"megabytes": size} for size in sizes or (10, 300, 1000))
    elif options.case == "workers":
        yield from ({"num_rows": options.rows, "fixed_workers": workers} for workers in (1, 2, 4, 8))
    else:
        yield {"num_rows": options.rows, "with_limit": True}


def measure(options: argparse.Namespace, measurement: dict[str, Any]) -> None:
    """One measurement, printed as a line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        if "megabytes" in measurement:
            result = read_array(Path(options.data), Path(folder, "rows.json"), measurement["megabytes"])
        else:
            result = prepare(options, Path(folder), **measurement)
    print("RESULT " + json.dumps(measurement | result), flush=True)


def prepare(
    options: argparse.Namespace,
    folder: Path,
    *,
    num_rows: int,
    short: bool = False,
    turns: int = 2,
    busy: float | None = None,
    fixed_workers: int | None = None,
    with_limit: bool = False,
) -> dict[str, Any]:
    """Times `prepare_data` with an empty cache, and again."""
    from sft.processes.libraries import quiet_libraries  # before transformers is imported

    quiet_libraries()
    from transformers import AutoTokenizer

    from data_handler import prepare_data
    from sft.configuration.schema import DataConfig

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    file = folder / "rows.jsonl"
    write_rows(
        Path(options.data), file, num_rows, short=short, turns=turns, name="messages" if busy is None else "turns"
    )
    (folder / "my_rows.py").write_text(FUNCTION.format(busy=busy))
    workers = options.workers if options.workers == "auto" else int(options.workers)
    if fixed_workers is not None:
        wait_instead_of_preparing()
    config = DataConfig(
        train_file=str(file),
        row_function=None if busy is None else f"{folder / 'my_rows.py'}:to_messages",
        max_seq_length=options.max_length if turns == 2 else 10**6,
        preprocessing_num_workers=fixed_workers or workers,
        data_cache_dir=str(folder / "cache"),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {}
    for name in ("cold", "warm"):
        started = time.perf_counter()
        data = prepare_data(config, tokenizer, seed=0)
        seconds[name] = time.perf_counter() - started
    used, tokens = data.report.rows_used, data.report.train.tokens
    result = {
        "rows": used,
        "workers": fixed_workers or options.workers,
        "rows_per_second": round(used / seconds["cold"]),
        "tokens_per_second": round(tokens / seconds["cold"]),
        "cold_seconds": round(seconds["cold"], 2),
        "warm_seconds": round(seconds["warm"], 3),
        "rss_before_gib": round(before, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "peak_rss_of_a_worker_gib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
    }
    if with_limit:
        limit = tokenizer_limit(file, tokenizer)
        result |= {"tokenizer_limit": round(limit), "share_of_limit": round(used / seconds["cold"] / limit, 3)}
    return result


def wait_instead_of_preparing() -> None:
    """Has workers wait for a fixed time and return rows of 220 tokens, as if each had a core of its own."""
    from dataclasses import fields

    import numpy as np

    from sft.data.dropped import DroppedRows
    from sft.data.remarks import CountedRemarks
    from sft.data.rows import PreparedChunk, RowPreparer
    from sft.data.store import TRAINED_END, RowColumns

    def wait(self: RowPreparer, chunk: Any) -> PreparedChunk:
        time.sleep(WORKER_SECONDS)
        rows, tokens = chunk.num_rows, np.zeros(220 * chunk.num_rows, dtype=np.int32)
        columns = {field.name: np.zeros(rows, dtype=np.int64) for field in fields(RowColumns)}
        columns |= {"num_supervised": np.full(rows, 110), "flags": np.full(rows, TRAINED_END, np.uint8)}
        columns |= {"number": np.arange(1, rows + 1), "digest": np.arange(rows, dtype=np.uint64)}
        return PreparedChunk(
            input_ids=tokens,
            labels=tokens,
            lengths=np.full(rows, 220),
            columns=RowColumns(**columns),
            rows_read=rows,
            untrained_pieces=0,
            dropped=DroppedRows(),
            remarks=CountedRemarks(),
            seen_columns=frozenset({"messages"}),
        )

    RowPreparer.__call__ = wait  # type: ignore[method-assign]


def read_array(source: Path, file: Path, megabytes: int) -> dict[str, Any]:
    """Reads a JSON array in one line, without preparing its rows."""
    from sft.data.sources.readers import read_file

    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    written = 0
    with file.open("w", encoding="utf-8") as opened:
        opened.write("[")
        while written < megabytes * 10**6:
            row = json.dumps(rows[written % len(rows)])
            opened.write(f"{', ' if written else ''}{row}")
            written += len(row) + 2
        opened.write("]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    num_rows = sum(block.num_rows for block, _ in read_file(file))
    seconds = time.perf_counter() - started
    return {
        "rows": num_rows,
        "mb_per_second": round(file.stat().st_size / 10**6 / seconds),
        "rss_before_gib": round(before, 3),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def write_rows(source: Path, target: Path, count: int, *, short: bool, turns: int, name: str) -> None:
    """Writes `count` different chat rows, under a column of that name."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for number in range(count):
            conversation = []
            for turn in range(number * turns // 2, (number + 1) * turns // 2):
                row = rows[turn % len(rows)]
                question, answer = f"{turn}. {row['question']}", row["answer"]
                if short:
                    question, answer = question[: SHORT // 2], answer[: SHORT // 2]
                conversation += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({name: conversation}) + "\n")


def tokenizer_limit(file: Path, tokenizer: Any) -> float:
    """Rows per second of the bare tokenizer on rendered text."""
    with file.open(encoding="utf-8") as lines:
        conversations = [json.loads(line)["messages"] for line in lines]
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    started = time.perf_counter()
    tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return len(texts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
