"""`metrics.jsonl` of fresh and resumed runs."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

from sft.reporting.metrics_log import MetricsLog, read_metrics
from sft.reporting.samples_log import SamplesLog
from tests.support import messages


def test_metrics_log_continues_after_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    MetricsLog(path, resume_step=2).write(3, {"loss": 9.0})
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
    MetricsLog(path)
    assert read_metrics(path) == []


def test_read_metrics_skips_an_incomplete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("again", "is_new"),
    [
        ({"eval_samples_ended": 0.5}, False),
        ({"eval_samples_ended": 0.25}, False),
        ({"loss": 1.0, "epoch": 1.0}, False),
        ({"loss": 1.0}, True),
        ({"eval_loss": 3.0}, True),  # of the best weights: counted by the checkpoint instead
        ({"train_runtime": 1.0}, True),  # of the resumed run
        ({"unknown": 1.0}, True),
    ],
)
def test_an_event_of_the_resumed_step_is_written_once(tmp_path, again, is_new):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    events = [{"loss": 1.0, "epoch": 1.0}, {"eval_loss": 2.0}, {"eval_samples_ended": 0.5}, {"train_runtime": 1.0}]
    for event in events:
        log.write(4, event)
    kept = [{"step": 4, **event} for event in events[:3]]
    for _ in range(2):  # resumed twice
        MetricsLog(path, resume_step=4, num_evaluations=1).write(4, again)
        assert read_metrics(path) == kept + [{"step": 4, **again}] * is_new


@pytest.mark.parametrize("fault", ["folder is missing", "is a folder", "is a link"])
@pytest.mark.parametrize("kind", ["metrics", "samples"])
def test_lines_that_cannot_be_written_are_kept_and_written_later(tmp_path, fault, kind, caplog):
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / f"{kind}.jsonl"
    log = MetricsLog(path) if kind == "metrics" else SamplesLog(path)

    def write(step):
        if isinstance(log, MetricsLog):
            log.write(step, {"loss": 1.0})
        else:
            log.write([{"step": step, "prompt": "a", "answer": "b"}])

    def steps():
        return [line["step"] for line in read_metrics(path)]

    write(1)
    before = path.read_text()
    if fault == "folder is missing":
        folder.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
        (tmp_path / "precious").write_text("precious")
        path.mkdir() if fault == "is a folder" else path.symlink_to(tmp_path / "precious")
    write(2)
    write(3)
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    if fault == "folder is missing":
        folder.mkdir()
    else:
        assert (tmp_path / "precious").read_text() == "precious"
        shutil.rmtree(path) if fault == "is a folder" else path.unlink()
    write(4)
    assert steps() == [2, 3, 4]
    assert before.count("\n") == 1


@pytest.mark.parametrize(
    "torn", [b'{"step": 4, "prompt": "caf\xc3', b'{"step": 4', b"[" * 9_999, b"null\n", b"\x00\x00"]
)
def test_logs_resume_after_a_torn_last_line(tmp_path, torn, caplog):
    good = {"step": 1, "prompt": "a\u2028b", "answer": "c", "loss": 2.0}
    for log in (MetricsLog, SamplesLog):
        path = tmp_path / f"{log.__name__}.jsonl"
        path.write_bytes(json.dumps(good, ensure_ascii=False).encode() + b"\n" + torn)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="sft.train"):
            log(path, resume_step=2)
        assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == [good]
        (line,) = caplog.messages
        assert line.startswith(f"{path}:2 {messages.TORN_LINE}")
