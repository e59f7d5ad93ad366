"""Atomic files and strict JSON."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

import compare_runs
import sft_main
from sft.common.errors import ConfigError
from sft.common.files import append, json_safe, long_names_refused, open_to_append, refuse_link, write_json, write_text
from tests.support import messages
from tests.support.paths import REPOSITORY


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


def linked(folder, target="precious"):
    (folder / "precious").write_text("precious")
    (folder / "file").symlink_to(folder / target)
    return folder / "file"


@pytest.mark.parametrize("target", ["precious", "nowhere", "file"])
def test_no_writer_follows_a_link(tmp_path, target):
    path = linked(tmp_path, target)
    for write in (lambda: append(path, "x"), lambda: os.close(open_to_append(path)), lambda: refuse_link(path)):
        with pytest.raises(ConfigError, match=messages.LINK):
            write()
    assert path.is_symlink()
    write_text(path, "new")
    assert not path.is_symlink()
    assert path.read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("write", [write_text, lambda path, text: write_json({}, path)])
def test_the_temporary_file_is_no_link_either(tmp_path, write):
    path = linked(tmp_path)
    path.rename(tmp_path / ".report.tmp")
    write(tmp_path / "report", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["precious", "report"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_append_refuses_what_is_no_regular_file(tmp_path, make):
    make(tmp_path / "file")
    with pytest.raises(ConfigError):
        append(tmp_path / "file", "x")


def test_append_writes_everything_or_nothing(tmp_path, monkeypatch):
    path, write = tmp_path / "file", os.write
    append(path, "first\n")

    def fill_disk(descriptor, data):
        if len(data) == 7:
            return write(descriptor, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fill_disk)
        with pytest.raises(OSError, match="No space"):
            append(path, "second\n")
    assert path.read_text() == "first\n"
    append(path, "second\n\udcff")
    assert path.read_text() == "first\nsecond\n\\udcff"


LONG = "x" * 300


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (sft_main.main, ["--config_file", "examples/cpu_demo.yaml", "--deepspeed", LONG]),
        (compare_runs.main, [LONG, "other"]),
    ],
)
def test_a_name_that_is_too_long_is_one_line(monkeypatch, capsys, command, arguments):
    monkeypatch.chdir(REPOSITORY)
    assert command(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("is too long for a file or folder. Shorten it.")


def test_other_errors_of_files_are_raised():
    with pytest.raises(FileNotFoundError), long_names_refused():
        Path("nowhere").read_text()
