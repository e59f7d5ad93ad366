"""FIFOs, devices and sockets are refused with one line wherever a file is read: no reader waits for a writer."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config_manager import load_config
from sft.checkpointing.manifest import MANIFEST_FILE, find_damage, write_manifest
from sft.common.errors import ConfigError, DataError, UserError
from sft.common.files import refuse_special_files, special_file, special_kind
from sft.configuration.checks.sharding import _check_deepspeed_file
from sft.data.sources.files import FORMATS, find_files
from sft.data.sources.load import open_sources
from sft.data.sources.named import load_splits
from sft.data.sources.readers import read_file
from sft.modeling.loading_errors import readable_loading_errors
from sft.prompting.templates import resolve_chat_template
from sft.reporting.run_record import read_run_record
from tests.support import messages
from tests.support.configurations import load

FIFO = "a FIFO (named pipe)"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = {FIFO: make_fifo, "a socket": make_socket, "a character device": make_device}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a socket's path may have about 100 characters
    return Path()


@pytest.mark.parametrize("kind", KINDS)
def test_special_kind_names_the_kind(folder, kind):
    KINDS[kind](folder / "x")
    (folder / "link").symlink_to("x")
    (folder / "file").write_text("")
    assert special_kind("x") == kind
    assert special_file("file", "link") == (
        f"link: is {kind}; only regular files are read. Write its content to a file, and name that."
    )
    with pytest.raises(DataError, match=r"^train_file: link: is "):
        refuse_special_files(DataError, "file", "link", name="train_file")
    refuse_special_files(DataError, "file", ".")
    assert special_file("file", ".", "missing", "a\0b") is None


DATA_FILES = [*(f"x{suffix}" for suffix in FORMATS), "x.jsonl.gz", "x.csv.zst"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "place"),
    [*((name, place) for name in DATA_FILES for place in ("file", "glob", "folder")), ("x", "file"), ("x.bin", "file")],
)
def test_data_files_are_refused(folder, kind, name, place):
    KINDS[kind](folder / name)
    (folder / "y.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError) as caught:
        find_files({"file": name, "glob": "x*", "folder": "."}[place])
    assert caught.value.problems == (special_file(name),)
    with pytest.raises(UserError) as caught:
        list(read_file(Path(name)))
    assert caught.value.problems == (special_file(name),)


READERS: dict[str, Callable[[], Any]] = {
    "config file": lambda: load_config("x"),
    "train_file": lambda: open_sources(load("", base="model_name_or_path: m\ntrain_file: x.jsonl\n").data),
    "validation_file": lambda: open_sources(load("validation_file: x.jsonl\n").data),
    "dataset_path": lambda: open_sources(load("", base="model_name_or_path: m\ndataset_path: .\n").data),
    "datasets": lambda: open_sources(load("", base="model_name_or_path: m\ndatasets: ['x.json*']\n").data),
    "chat_template": lambda: resolve_chat_template("x", begins_with_bos=False),
    "model folder": lambda: readable_loading_errors("model", ".").__enter__(),
    "saved dataset": lambda: load_splits("run", None, None),
}
AT = {"saved dataset": "run/x.arrow", "model folder": "x.safetensors"}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_refuses_a_special_file(folder, reader, kind):
    (folder / "run").mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    path = AT.get(reader, "x" if reader in ("config file", "chat_template") else "x.jsonl")
    KINDS[kind](folder / path)
    with pytest.raises(UserError) as caught:
        READERS[reader]()
    assert [problem.removeprefix("chat_template: ") for problem in caught.value.problems] == [special_file(path)]


@pytest.mark.parametrize("name", ["resolved_config.yaml", "run_summary.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_a_run_that_is_special_is_refused(folder, name, kind):
    KINDS[kind](folder / name)
    with pytest.raises(ConfigError) as caught:
        read_run_record(".")
    assert caught.value.problems == (f"{name}: cannot be read: it is {kind}, not a regular file. Repair or remove it.",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deepspeed_file_that_is_special_is_a_contradiction(folder, kind):
    KINDS[kind](folder / "ds.json")
    (found,) = _check_deepspeed_file("ds.json")
    assert found.message == special_file("ds.json")


def test_a_deepspeed_file_that_is_nested_too_deeply_is_a_contradiction(folder):
    (folder / "ds.json").write_text("[" * 100_000)
    (found,) = _check_deepspeed_file("ds.json")
    assert found.message.startswith(f"ds.json {messages.NOT_JSON}maximum recursion depth")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [MANIFEST_FILE, "model.safetensors"])
def test_a_checkpoint_with_a_special_file_is_damaged(folder, kind, name):
    (folder / "model.safetensors").write_text("abc")
    write_manifest(folder, {})
    assert find_damage(folder) == []
    (folder / name).unlink()
    KINDS[kind](folder / name)
    (found,) = find_damage(folder)
    assert found.startswith(name)
    assert messages.NOT_REGULAR.format(kind=kind) in found


@pytest.mark.parametrize("content", [b"\xff\xfea", b"\x80"])
def test_a_chat_template_that_is_not_text_is_one_line(folder, content):
    (folder / "t.jinja").write_bytes(content)
    with pytest.raises(UserError, match=rf"^chat_template: t\.jinja {messages.NOT_UTF8}"):
        resolve_chat_template("t.jinja", begins_with_bos=False)


def test_regular_files_of_all_readers_are_still_read(folder):
    (folder / "x.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    assert find_files(".") == [Path("x.jsonl")]
    assert sum(block.num_rows for block, _ in read_file(Path("x.jsonl"))) == 1
