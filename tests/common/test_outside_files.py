"""The boundary around files of others."""

from __future__ import annotations

import json

import pytest

from sft.common.errors import ConfigError, DataError, ModelError
from sft.common.outside_files import outside_file, read_json
from tests.support import messages


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("metadata"), "x.json: cannot be read: it has no 'metadata'"),
        (
            AttributeError("'list' object has no attribute 'get'"),
            "AttributeError: 'list' object has no attribute 'get'",
        ),
        (TypeError("a\n  b"), "x.json: cannot be read: TypeError: a b"),
        (Exception("data did not match"), "x.json: cannot be read: data did not match"),
        (AssertionError(), "x.json: cannot be read: AssertionError"),
        (RecursionError("maximum"), "x.json: cannot be read: it is nested too deeply"),
        (StopIteration(), "x.json: cannot be read: StopIteration"),
        (IsADirectoryError(21, "Is a directory", "x.json"), "x.json: cannot be read: is a directory"),
        (ValueError(f"{'word ' * 200}"), " ..."),
    ],
)
def test_outside_file_makes_one_line_of_any_exception(error, line):
    with pytest.raises(DataError) as raised, outside_file("x.json: cannot be read", DataError):
        raise error
    (problem,) = raised.value.problems
    assert problem.startswith("x.json: cannot be read: ")
    assert line in problem
    assert "\n" not in problem
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [ConfigError("ours"), MemoryError(), OutOfMemoryError(), KeyboardInterrupt(), SystemExit(3)]
)
def test_outside_file_lets_through_what_is_not_about_the_file(error):
    with pytest.raises(type(error)) as raised, outside_file("x.json: cannot be read", DataError):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"{",
        b'{"a": 1}'.decode().encode("utf-16"),
        b"\xef\xbb\xbf{}",
        '{"a": "é"}'.encode("latin-1"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"a": ' + b"9" * 5_000 + b"}",
        b"[]",
        b"null",
        b'"x"',
        b"5",
        None,
    ],
)
def test_read_json_names_the_file_whatever_it_contains(tmp_path, content):
    path = tmp_path / "x.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError) as raised:
        read_json(path, ModelError)
    (problem,) = raised.value.problems
    assert problem.startswith(f"{path}: ")
    assert len(problem) < 600


def test_read_json_returns_what_fits(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1], "b": "ü"}))
    assert read_json(path, ModelError, {"a!": [int]}) == {"a": [1], "b": "ü"}
    with pytest.raises(ConfigError, match=f"this one: a: {messages.EXPECTED_TEXT}"):
        read_json(path, ConfigError, {"a": str}, name="this one")
