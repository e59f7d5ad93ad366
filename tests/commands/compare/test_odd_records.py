"""Records of another version, by hand or by a failing disk: a comparison, or one line that names the file."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

import compare_runs
from tests.support import messages
from tests.support.compared_runs import SETTINGS, SUMMARY, write_run

ODD = ("x", 5, -1, 1.5, 10**30, 10**400, float("inf"), None, True, [], {}, ["x"], {"a": {"b": []}}, float("nan"))


def keys_of(document, prefix=()):
    for key, value in document.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*prefix, key))


def with_value(document, keys, value):
    changed = copy.deepcopy(document)
    inner = changed
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return changed


def compared(folders, tmp_path, capsys):
    """The exit status; checks that it is 0, or 2 with one line about a file."""
    status = compare_runs.main([*folders, "--output", str(tmp_path / "x.png")])
    captured = capsys.readouterr()
    if status:
        assert (status, captured.out, captured.err.count("\n")) == (2, "", 1)
        assert folders[1] in captured.err
    return status


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_runs, "draw_comparison", lambda *arguments: None)
    return [write_run(tmp_path / name) for name in ("good", "odd")]


@pytest.mark.parametrize("keys", list(keys_of(SUMMARY)), ids=".".join)
def test_any_value_in_a_summary(tmp_path, capsys, folders, keys):
    statuses = set()
    for value in ODD:
        (tmp_path / "odd" / "run_summary.json").write_text(json.dumps(with_value(SUMMARY, keys, value)))
        statuses.add(compared(folders, tmp_path, capsys))
    assert statuses == {0, 2}


@pytest.mark.parametrize("key", ["step", "loss", "eval_loss", "learning_rate", "newer"])
def test_any_value_in_metrics(tmp_path, capsys, folders, key):
    for value in ODD:
        event = {"step": 5, "loss": 1.0, "eval_loss": 2.0} | {key: value}
        (tmp_path / "odd" / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        assert compared(folders, tmp_path, capsys) == 0


def test_any_value_in_a_configuration(tmp_path, capsys, folders):
    for key in (*SETTINGS, "quantization_config", "datasets", "model_name_or_path"):
        for value in ODD:
            text = yaml.safe_dump(with_value(SETTINGS, (key,), value))
            (tmp_path / "odd" / "resolved_config.yaml").write_text(text)
            assert compared(folders, tmp_path, capsys) in (0, 2)


@pytest.mark.parametrize("name", ["run_summary.json", "resolved_config.yaml", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"[" * 9_999, b"[]", b"null", b'{"a": ', b"\xef\xbb\xbf{}", b"5", None],
    ids=lambda content: str(content)[:12],
)
def test_any_content_of_a_file(tmp_path, capsys, folders, name, content):
    path = tmp_path / "odd" / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert compared(folders, tmp_path, capsys) in (0, 2)


def test_a_torn_line_is_a_warning(tmp_path, capsys, folders):
    path = tmp_path / "odd" / "metrics.jsonl"
    num_lines = path.read_bytes().count(b"\n")
    path.write_bytes(path.read_bytes() + '{"step": 101, "note": "é'.encode()[:-1])
    compare_runs.main([*folders, "--output", str(tmp_path / "x.png")])
    text = " ".join(capsys.readouterr().out.split())
    assert f"metrics.jsonl:{num_lines + 1} {messages.TORN_LINE}" in text
