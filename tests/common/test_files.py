"""Atomic files and strict JSON."""

from __future__ import annotations

import json
import math

import pytest

from sft.common.files import json_safe, write_json, write_text


def test_json_safe_replaces_nan_and_inf_with_null():
    value = {"a": math.nan, "b": [math.inf, 1.5], "c": (True, None, "x")}
    assert json.dumps(json_safe(value), allow_nan=False) == '{"a": null, "b": [null, 1.5], "c": [true, null, "x"]}'


def test_write_json_escapes_an_unpaired_surrogate(tmp_path):
    write_json({"text": "a\ud800b"}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"text": "a\ud800b"}


def test_write_text_keeps_the_old_file_when_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_write_text_leaves_no_temporary_file(tmp_path):
    write_text(tmp_path / "x.txt", "a")
    write_text(tmp_path / "x.txt", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
