"""Logs of JSON lines, also torn ones."""

from __future__ import annotations

import logging

import pytest

from sft.common.errors import ConfigError
from sft.common.json_lines import read_and_log_dropped, read_json_lines
from tests.support import messages

SHAPE = {"step!": int, "text": str}
GOOD = '{"step": 1, "text": "caf\u00e9 \u2028 \x85 x"}\n'.encode()


@pytest.mark.parametrize(
    "torn",
    [
        '{"step": 2, "text": "caf\u00e9"}'.encode()[:-3],  # within a character
        b'{"step": 2, "text": "a',
        b'{"step"',
        b"{",
        b"\x00" * 40,  # a file system after a power failure
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"step": "2"}',
        b'{"text": "no step"}',
        b'{"step": 2, "text": 5}',
    ],
)
@pytest.mark.parametrize("rest", [b"", b"\n", b"\n" + GOOD])
def test_a_line_that_cannot_be_read_is_left_out_and_named(tmp_path, torn, rest, caplog):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + torn + rest)
    found, dropped = read_json_lines(path, SHAPE)
    assert [line["step"] for line in found] == [1] * (2 if GOOD in rest else 1)
    assert found[0]["text"] == "café \u2028 \x85 x"
    (sentence,) = dropped
    assert sentence.startswith(f"{path}:2 ")
    with caplog.at_level(logging.INFO, logger="sft.train"):
        assert read_and_log_dropped(path, SHAPE) == found
    assert caplog.messages == [sentence]


def test_an_empty_log_has_no_lines(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\n\n")
    assert read_json_lines(tmp_path / "x.jsonl", SHAPE) == ([], [])


def test_a_folder_in_place_of_a_log_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"{messages.CANNOT_BE_READ}is a directory"):
        read_json_lines(tmp_path, SHAPE)
