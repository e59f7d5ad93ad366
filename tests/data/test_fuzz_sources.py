"""Thousands of broken files, made from a fixed seed: every row is counted, whatever the files contain.

A case is a number: it makes the same file each time, alone as in company. What a failing test prints is enough to
make that file again with `write_case`.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import pickle
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sft.common.data_records import RawRow
from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.load import open_sources
from sft.data.sources.streams import zstd
from sft.prompting.formats import find_format
from sft.prompting.messages import RowRefused
from tests.support import messages
from tests.support.small_models import build_tokenizer

SEED = 20
NUM_CASES = 10_000
QUICK_CASES = 200
PIPELINE_CASES = 1_500

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe von 日本?"},
    {"role": "assistant", "content": 'Nein, "so" geht\'s nicht.\nUnd: {[,;'},
]
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}
RECORDS = {
    "input_ids": {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
    "messages": {"messages": TURNS, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "calls": {
        "messages": [*TURNS[:2], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
        + [{"role": "tool", "content": "7", "tool_call_id": "c1"}, {"role": "assistant", "content": "7", "name": "a"}]
    },
    "conversations": {
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
        "system": "Count.",
    },
    "squad": {"context": "It is 7.", "question": "What?", "answers": {"text": ["7", "seven"], "answer_start": [6, 6]}},
    "alpaca": {"instruction": "Add.", "input": "1 1", "output": "2"},
    "prompt_completion": {"prompt": "1+1=", "completion": "2"},
    "prompt_messages": {"prompt": TURNS[:2], "completion": TURNS[2:], "tools": "[]"},
    "question_answer": {"question": "1+1?", "answer": "2", "id": 7},
    "input_output": {"input": "x", "output": "y"},
    "text": {"text": "Es war einmal \u2028 ein\ttext."},
}
# fmt: off
TEXTS = [
    "", " ", "\n", "\u00a0", "\0", "a\0b", "\ud800", "x\udfffy", "\ufeff", "\u2028", "[]", "{}", '[{"role": "user"}]',
    "null", "1", "{'a': 1}", '"', "[" * 500, '{"name": "f", "arguments": "{"}', "function", "User", "gpt", "e\u0301",
]
VALUES = [
    None, True, False, 0, -1, 10**18, 10**4000, 1.5, 1e300, float("nan"), float("inf"), [], {}, [None], [[]], [{}],
    {"text": None}, {"text": []}, {"role": "assistant"}, {"role": 3, "content": "x"}, {"role": "wizard", "content": ""},
    {"type": "text", "text": "part"}, {"type": "image"}, {"from": None, "value": 1}, {"function": "f"},
    {"from": "function_call", "value": '["f"]'}, {"name": ["f"], "arguments": [1]}, {"\ud800": 1}, {"": ""},
]
SNIPPETS = [
    b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n \n", b"\xe2\x80\xa8", b"\xc2\x85", b"\xc2\xa0", b"\x0b", b"\x0c",
    b"\0", b"\\u0000", b"\\ud800", b"\\udc00", b"\xff", b"\xe9", b"\xed\xa0\x80", b"\xc3", b"\xf0\x9f\x98", b"\x1a",
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b"true", b"9" * 4500, b"-0", b"[" * 150, b'{"a":' * 150,
    b"]" * 150, b"[" * 100_000, b'"', b"'", b",", b":", b"{", b"}", b"[", b"]", b"\\", b"\t", b";", b"|", b"//",
    b'"text":"x",', b'"text": 1, "text" : 2,', b'{"text": "y"}', b'\n{"text": "z"}\n', b'\n"a"\n', b"\n[1]\n", b"\n7\n",
    b'"\n"', b'""', b'"a"b', b"x" * 5000, b"<|endoftext|>", b"{% raw %}", "é日𝔘".encode(), b"\x85", b"\x1c",
    b'\n{"text": "deep", "x": ' + b"[" * 200 + b"]" * 200 + b"}\n", b'\n{"\\ud800": 1}\n', b'\n{"text": " "}\n',
]
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, and what was done to make it."""

    number: int
    path: Path
    kind: str
    data: bytes
    """Its decompressed content; of a broken archive, the content before the damage."""
    damage: str
    """What was done to the archive: it was `cut` off, or a byte was `swapped`."""
    record: str
    """Which of `RECORDS` it was made from."""

    @property
    def lines(self) -> list[bytes]:
        """Line by line, without a byte-order mark; numbered from 1."""
        return self.data.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def write_case(number: int, folder: Path) -> Case:
    """Makes the file of a case."""
    rng = random.Random(f"{SEED}-{number}")
    name = rng.choice(list(RECORDS))
    records = [_mutated_record(RECORDS[name], rng) for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 30]))]
    kind = rng.choice(["jsonl"] * 6 + ["json"] * 3 + ["csv"] * 3 + ["tsv", "txt", "txt", "parquet"])
    data = _written(records, kind, rng)
    if rng.random() < 0.7:
        data = _mutated_bytes(data, rng, is_text=kind != "parquet")
    ending = rng.choice(["", "", "", ".gz", ".zst"])
    packed = {"": bytes, ".gz": lambda data: gzip.compress(data, 1), ".zst": zstd.compress}[ending](data)
    damage = rng.choice([""] * 8 + ["cut", "swapped"]) if ending else ""
    if damage:
        packed = packed[: rng.randrange(len(packed))] if damage == "cut" else _swapped_byte(packed, rng)
    path = folder / f"case{number}.{kind}{ending}"
    path.write_bytes(packed)
    return Case(number=number, path=path, kind=kind, data=data, damage=damage, record=name)


def _mutated_record(record, rng):
    """The record with some of its values, at any depth, replaced, renamed, removed or doubled."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4])):
        places = _places(record)
        if not places:
            break
        holder, key = rng.choice(places)
        odd = copy.deepcopy(rng.choice(rng.choice([TEXTS, VALUES])))
        change = rng.random()
        if change < 0.7:
            holder[key] = odd
        elif change < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, odd)
        else:
            holder[rng.choice(["text", "role", "tools", "content", "\ud83d", "", "Text"])] = odd
    return record


def _places(value):
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _written(records, kind, rng) -> bytes:
    ascii_only = rng.random() < 0.5
    dumped = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    if kind == "json":
        wrap = rng.choice(["{}", "{}", '{{"n": 1, "data": {}}}', '{{"data": [], "rows": {}}}', "\n{}\n \n"])
        return wrap.format(f"[{rng.choice([',', chr(10) + ',', ', '])[:2].join(dumped)}]").encode(
            "utf-8", "surrogatepass"
        )
    if kind in ("csv", "tsv"):
        stream = io.StringIO()
        writer = csv.writer(
            stream, delimiter="," if kind == "csv" else "\t", lineterminator=rng.choice(["\n", "\r\n", "\r"])
        )
        columns = list(dict.fromkeys(key for record in records for key in record))
        writer.writerow(columns)
        for record in records:
            row = [record.get(column) for column in columns]
            writer.writerow([value if isinstance(value, str) else json.dumps(value) for value in row])
        return stream.getvalue().encode("utf-8", "surrogatepass")
    if kind == "parquet":
        try:
            return _as_parquet(records)
        except (pyarrow.ArrowException, ValueError, OverflowError):  # Parquet cannot hold what JSON can.
            return _as_parquet([{"text": json.dumps(record)} for record in records])
    return "".join(line + "\n" for line in dumped).encode("utf-8", "surrogatepass")


def _as_parquet(records) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


def _mutated_bytes(data: bytes, rng, *, is_text: bool) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place, end = (rng.randrange(len(data) + 1) for _ in range(2))
        change = rng.random()
        if change < 0.5:
            data = data[:place] + rng.choice(SNIPPETS) + data[place:]
        elif change < 0.6:
            data = data[: min(place, end)] + data[max(place, end) :]
        elif change < 0.65:
            data = data[:place] + data[min(place, end) : end] + data[place:]
        elif change < 0.7:
            data = data[:place]
        elif change < 0.8 and data:
            data = _swapped_byte(data, rng)
        elif is_text:
            data = _rewritten(data, rng)
    return data


def _swapped_byte(data: bytes, rng) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _rewritten(data: bytes, rng) -> bytes:
    """The text in another encoding or form."""
    text = data.decode("utf-8", "replace")
    return rng.choice(
        [
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
            lambda: data.replace(b"\n", b"\n\n"),
            lambda: data.replace(b" ", b"\xe2\x80\xa8"),
            lambda: text.encode("utf-16"),
            lambda: text.encode(rng.choice(["utf-16-le", "utf-16-be", "utf-32"])),
            lambda: text.encode("latin-1", "replace"),
            lambda: text.encode("cp1252", "replace"),
            lambda: b"[" + data + b"]",
            lambda: b"[\n" + data.replace(b"\n", b",\n") + b"{}]",
            lambda: data.replace(b'"', b"'"),
            lambda: rng.choice(
                [b"", b" \r\n", b"\n\n\n", b"\xef\xbb\xbf", b"\0", b"[", b"{", b'"', b"[]", b"{}", b"null"]
            ),
        ]
    )()


def read_case(case: Case, max_rows: int | None = None) -> tuple[list[RawRow], DataError | None]:
    """Every row that comes out, and the error that ends it. Any other exception is a failure."""
    rows: list[RawRow] = []
    entry = DatasetSource(path=str(case.path), max_rows=max_rows)
    try:
        for chunk in open_sources(DataConfig(datasets=[entry])).train[0].chunks():
            chunk = pickle.loads(pickle.dumps(chunk))
            parsed = chunk.rows()
            assert len(parsed) == chunk.num_rows > 0
            assert 0 <= chunk.share_read <= 1
            assert repr(pickle.loads(pickle.dumps(parsed))) == repr(parsed)
            rows.extend(parsed)
    except DataError as error:
        return rows, error
    return rows, None


def check_case(case: Case) -> Counter:
    """All that holds for the rows of any file; how many rows there were of each reason."""
    rows, error = read_case(case)
    for row in rows:
        assert row.source.file == str(case.path)
        assert row.source.line >= 1
        assert (row.record is None) != (row.problem is None)
        assert row.problem is None or (row.problem.reason and "\n" not in row.problem.message)
    places = [row.source.line for row in rows]
    assert places == sorted(places)
    assert case.kind == "json" or len(set(places)) == len(places)
    if error is None:
        assert rows
        assert case.damage != "cut"
        check_count(case, rows)
        some = 1 + case.number % len(rows)
        first, no_error = read_case(case, max_rows=some)
        assert (repr(first), no_error) == (repr(rows[:some]), None)
    else:
        check_error(case, error)
    return Counter(row.problem.reason if row.problem else "used" for row in rows) + Counter(errors=error is not None)


def check_error(case: Case, error: DataError) -> None:
    """It is one line that names the file, and the line of the file if a line causes it."""
    (problem,) = error.problems
    assert "\n" not in problem
    place = re.match(re.escape(str(case.path)) + r"(?::(\d+))?: ", problem)
    assert place, problem
    has_no_line = (
        "cannot be read: ",
        messages.NO_ROWS,
        "not a readable Parquet file",
        "invalid JSON, Exceeds the limit",
    )
    about = problem[place.end() :]
    if not about.startswith(has_no_line) and messages.NESTED_TOO_DEEPLY not in about and "column name" not in about:
        assert place[1], problem
        assert 1 <= int(place[1]) <= max(len(case.lines), len(re.split(rb"\r\n|\r|\n", case.data))), problem
    if case.kind == "jsonl" and not case.damage and not case.data.lstrip().startswith(b"["):
        # A line of JSON Lines can be wrong, the file cannot: it is UTF-16, or empty.
        assert case.data.startswith((b"\xff\xfe", b"\xfe\xff")) or not any(map(bytes.strip, case.lines)), problem


def check_count(case: Case, rows: list[RawRow]) -> None:
    """As many rows as another way of reading finds, on the same lines."""
    if case.damage:  # A swapped byte that no checksum covers changes the text.
        return
    if case.kind == "parquet":
        assert len(rows) == pyarrow.parquet.read_metadata(io.BytesIO(case.data)).num_rows
    elif case.kind == "txt":
        texts = [(number, line.decode()) for number, line in enumerate(case.lines, start=1)]
        expected = [(number, text.rstrip("\r")) for number, text in texts if text.strip()]
        assert [(row.source.line, row.record["text"]) for row in rows] == expected
    elif case.kind in ("csv", "tsv"):
        text = case.data.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="," if case.kind == "csv" else "\t", strict=True)
        assert len(rows) == sum(1 for fields in reader if fields) - 1
    elif case.kind == "jsonl" and not case.data.lstrip().startswith(b"["):
        expected = [number for number, line in enumerate(case.lines, start=1) if line.strip()]
        assert [row.source.line for row in rows] == expected
        for row in rows:
            check_json_row(row, case.lines[row.source.line - 1])
    else:
        check_json_document(case, rows)


def check_json_row(row: RawRow, line: bytes) -> None:
    """The row holds what its line holds, or why it cannot."""
    doubled = []

    def fields(pairs):
        doubled.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    reason = row.problem and row.problem.reason
    try:
        value = json.loads(line.rstrip().decode(), object_pairs_hook=fields)
    except UnicodeDecodeError:
        assert reason == "not_utf8"
    except (ValueError, RecursionError):
        assert reason == "invalid_json" or (doubled and reason == "duplicate_field")
    else:
        if reason is None:
            assert not doubled
            assert repr(row.record) == repr(value)
        else:
            assert (
                reason == "duplicate_field"
                if doubled
                else reason in ("not_an_object", "not_unicode", "nested_too_deeply")
            )


def check_json_document(case: Case, rows: list[RawRow]) -> None:
    num_lines = sum(1 for line in case.lines if line.strip())
    try:
        document = json.loads(case.data.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # JSON Lines by the name of JSON.
        assert len(rows) == num_lines
        return
    if isinstance(document, dict):
        named = [document[name] for name in ("data", "rows") if isinstance(document.get(name), list)]
        document = named[0] if len(named) == 1 else [document]
    expected = len(document) if isinstance(document, list) else 1
    # A list alone on the first line of JSON Lines may be an array of rows, or a bad row.
    assert len(rows) == expected or (case.kind == "jsonl" and len(rows) == num_lines)


def check_formats(rows: list[RawRow], format_of: str) -> Counter:
    """Convert every record by the format of its file and by that of its own columns: only RowRefused is raised."""
    counts: Counter = Counter()
    for row in rows:
        if row.record is None:
            continue
        formats = {find_format(set(RECORDS[format_of])), find_format(set(row.record))} - {None}
        for record_format in sorted(formats, key=lambda known: known.name):
            try:
                conversation = record_format.convert(row.record)
            except RowRefused as refused:
                problem = refused.problem
                counts[problem.reason] += 1
                assert "\n" not in problem.message
                continue
            counts["converted"] += 1
            pickle.dumps(conversation)
            given = (conversation.text is not None, conversation.tokens is not None)
            assert sum((bool(conversation.messages), *given)) == 1
            texts = [conversation.text] if conversation.text is not None else []
            texts += [message["content"] for message in conversation.messages]
            for text in texts:
                assert "\0" not in text.encode().decode()
            if conversation.is_chat:
                assert any(message["role"] == "assistant" for message in conversation.messages)
    return counts


def run_cases(numbers, folder: Path) -> tuple[Counter, Counter]:
    """Reads and converts the files of these cases; a failure names its case."""
    read: Counter = Counter()
    converted: Counter = Counter()
    for number in numbers:
        case = write_case(number, folder)
        try:
            read += check_case(case)
            converted += check_formats(read_case(case)[0], case.record)
        except Exception as error:
            raise AssertionError(f"case {number}, {case.path.name}, {case.data[:2000]!r}") from error
        case.path.unlink()
    return read, converted


def test_a_few_broken_files_are_counted_to_the_row(tmp_path):
    read, converted = run_cases(range(QUICK_CASES), tmp_path)
    assert min(read["used"], read["invalid_json"], read["errors"], converted["converted"], converted["wrong_type"]) > 10


@pytest.mark.slow
def test_ten_thousand_broken_files_are_counted_to_the_row(tmp_path):
    read, converted = run_cases(range(NUM_CASES), tmp_path)
    print(dict(read), dict(converted))
    reasons = {"invalid_json", "duplicate_field", "not_utf8", "not_unicode", "not_an_object", "nested_too_deeply"}
    assert reasons | {"wrong_number_of_fields"} <= set(read)
    refused = {"missing_field", "wrong_type", "empty_answer", "empty_prompt", "no_answer", "unknown_role"}
    assert refused | {"not_unicode", "nul_character", "empty_text"} <= set(converted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.txt"])
def test_a_line_of_a_hundred_megabytes_is_a_row(tmp_path, name):
    length = 100_000_000
    texts = ["a", "x" * length, "b"]
    lines = [f'{{"text": "{text}"}}' for text in texts]
    content = {".json": f"[{', '.join(lines)}]", ".csv": "\n".join(["text", *texts]), ".txt": "\n".join(texts)}
    data = content.get(Path(name).suffix, "\n".join([*lines, "x" * length])).encode()
    compress = {".gz": lambda data: gzip.compress(data, 1), ".zst": zstd.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(data))
    (source,) = open_sources(DataConfig(train_file=str(tmp_path / name))).train
    rows = [row for chunk in source.chunks() for row in chunk.rows()]
    assert [len(row.record["text"]) for row in rows[:3]] == [1, length, 1]
    assert [row.problem.reason for row in rows[3:]] == (["invalid_json"] if "jsonl" in name else [])


@pytest.mark.slow
def test_the_pipeline_counts_the_rows_of_broken_files(tmp_path):
    from data_handler import prepare_data

    tokenizer = build_tokenizer()
    prepared = 0
    for number in range(PIPELINE_CASES):
        case = write_case(number, tmp_path)
        rows, error = read_case(case)
        config = DataConfig(
            train_file=str(case.path),
            on_bad_rows="skip",
            max_bad_row_share=1.0,
            preprocessing_num_workers=1,
            data_cache_dir=str(tmp_path / "cache"),
        )
        try:
            report = prepare_data(config, tokenizer, seed=1, sample_prompts=None).report
        except DataError as refused:
            problems = refused.problems
            assert problems
            assert not any("\n" in problem for problem in problems), number
            assert error is None or problems == error.problems, number
        except Exception as failure:
            raise AssertionError(f"case {number}, {case.path.name}, {case.data[:2000]!r}") from failure
        else:
            assert error is None, number
            assert report.rows_read == len(rows) == report.rows_used + sum(report.rows_dropped.values()), number
            prepared += 1
        case.path.unlink()
    assert prepared > PIPELINE_CASES / 10
