"""`metrics.jsonl` of fresh and resumed runs."""

from __future__ import annotations

from sft.reporting.metrics_log import MetricsLog, read_metrics


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
