"""Chunks: small, complete, in order, and flat in memory."""

import csv
import gzip
import json
import pickle
import re
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from sft.common.errors import DataError
from sft.data.sources.chunks import MAX_BYTES, MAX_ROWS
from sft.data.sources.streams import zstd
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.source_files import _write, as_parquet, rows_of, source_of


def write_big(folder, name, num_rows):
    """`num_rows` rows of every kind of file; the first field of each is its number."""
    path = folder / name
    records = [{"question": f"{number}?", "answer": "é" * 20 * (number % 5)} for number in range(num_rows)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n\n" for record in records).encode()
    if ".jsonl" in name:
        compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(lines))
    elif name.endswith(".json"):
        path.write_text(json.dumps(records, indent=1))
    elif name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["question", "answer"], *(record.values() for record in records)])
    elif name.endswith(".txt"):
        path.write_text("".join(f"{record['question']}\n\n" for record in records))
        return path, [{"text": record["question"]} for record in records]
    elif ".parquet" in name:
        data = as_parquet(records)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path, records


BIG_FILES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "lines.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"]
BIG_FILES += ["a.parquet.gz"]


@pytest.mark.parametrize("name", BIG_FILES)
def test_chunks_are_small_and_hold_every_row_in_order(tmp_path, name):
    path, records = write_big(tmp_path, name, 2000)
    chunks = list(source_of(path).chunks())
    assert [row.record for chunk in chunks for row in chunk.rows()] == records
    assert all(0 < chunk.num_rows == len(chunk.rows()) <= MAX_ROWS for chunk in chunks)
    shares = [chunk.share_read for chunk in chunks]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 1
    assert shares[-1] == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("name", BIG_FILES)
@pytest.mark.parametrize("max_rows", [1, 600, 5000])
def test_chunks_stop_at_max_rows(tmp_path, name, max_rows):
    path, records = write_big(tmp_path, name, 1100)
    source = source_of(path, max_rows=max_rows)
    assert [row.record for row in rows_of(source)] == records[:max_rows]
    assert sum(chunk.num_rows for chunk in source.chunks()) == min(max_rows, 1100)


@pytest.mark.parametrize("name", BIG_FILES)
def test_chunks_can_be_pickled(tmp_path, name):
    path, _ = write_big(tmp_path, name, 700)
    for chunk in source_of(path).chunks():
        assert pickle.loads(pickle.dumps(chunk)).rows() == chunk.rows()


def test_chunks_do_not_split_lines_longer_than_a_chunk(tmp_path):
    texts = ["short", "x" * (3 * MAX_BYTES), "short", "y" * MAX_BYTES, "short"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts))
    for name in ("a.jsonl", "a.txt"):
        chunks = list(source_of(tmp_path / name).chunks())
        assert [row.record["text"] for chunk in chunks for row in chunk.rows()] == texts
        assert [row.source.line for chunk in chunks for row in chunk.rows()] == [1, 2, 3, 4, 5]
        assert [chunk.num_rows for chunk in chunks] == [1, 1, 1, 1, 1]


def test_chunks_carry_the_index_of_their_file(tmp_path):
    _write(tmp_path, a=3, b=600, c=1)
    source = source_of(tmp_path)
    assert source.files == tuple(str(tmp_path / f"{name}.jsonl") for name in "abc")
    for chunk in source.chunks():
        assert {row.source.file for row in chunk.rows()} == {source.files[chunk.file_index]}
    assert [(chunk.file_index, chunk.num_rows) for chunk in source.chunks()] == [(0, 3), (1, 512), (1, 88), (2, 1)]


def test_chunks_of_several_files_may_hold_an_empty_one(tmp_path):
    _write(tmp_path, a=1, b=0, c=1)
    assert len(rows_of(source_of(tmp_path))) == 2
    _write(tmp_path, a=0, c=0)
    with pytest.raises(DataError, match=rf"a\.jsonl, .*b\.jsonl, .*c\.jsonl: {re.escape(messages.NO_ROWS)}$"):
        rows_of(source_of(tmp_path))


MEASURED_READING = """
import resource, sys
from sft.configuration.schema import DataConfig
from sft.data.sources.load import open_sources
(source,) = open_sources(DataConfig(train_file=sys.argv[1])).train
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
chunks = source.chunks()
next(chunks).rows()
before = peak()
rows = sum(len(chunk.rows()) for chunk in chunks)
source.digest()
print(rows, peak() - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.txt", "a.parquet"])
def test_memory_is_flat_in_the_number_of_rows(tmp_path, name):
    pytest.importorskip("resource")
    text = "".join(f'{{"text": "{"x" * 1000}{number}"}}\n' for number in range(40_000))
    path = tmp_path / name
    if ".jsonl" in name:
        compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(text.encode()))
    elif name == "a.parquet":
        table = pyarrow.table({"text": text.splitlines()})
        pyarrow.parquet.write_table(table, path, row_group_size=2000)
    else:
        path.write_text(text.replace('"', ""))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED_READING, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    rows, grown_bytes = map(int, done.stdout.split())
    assert rows >= 39_000
    assert grown_bytes < 12e6 < len(text) / 3
