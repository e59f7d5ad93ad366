"""Data files of every kind, and their rows."""

import json

import pyarrow
import pyarrow.parquet

from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.load import open_sources
from sft.data.sources.readers import read_file

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "Ünï\u2028日本?", "answer": 'a, "b"\nc'}]


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read_rows(path):
    return [row for block, _ in read_file(path) for row in block.rows()]


def rows_of(source):
    return [row for chunk in source.chunks() for row in chunk.rows()]


def as_parquet(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def _write(folder, **counts):
    for name, count in counts.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(count)))


def source_of(path, **settings):
    (source,) = open_sources(DataConfig(datasets=[DatasetSource(path=str(path), **settings)])).train
    return source
