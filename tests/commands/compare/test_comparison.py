"""Comparisons of runs, from folders as runs of this and of earlier versions leave them."""

from __future__ import annotations

import json

import pytest

from sft.commands.compare.comparison import compare
from sft.commands.compare.runs import read_run, short_names
from sft.commands.compare.text import comparison_lines
from tests.support import messages
from tests.support.compared_runs import SUMMARY, write_run


def changed(document, path, value):
    """A copy with one value replaced; of `...`, taken out."""
    copy = json.loads(json.dumps(document))
    *above, last = path
    place = copy
    for key in above:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def compared(*folders):
    return compare([read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)])


def rows(part):
    return {row.name: row.cells for row in part}


def test_equal_runs_have_no_differences(tmp_path):
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert (found.settings, found.data, found.warnings) == ((), (), ())
    assert rows(found.results)["validation loss, best"] == ("1.0000", "1.0000")
    assert not any(row.best for row in found.results)
    text = "\n".join(comparison_lines(found))
    assert f"{messages.NO_DIFFERENCES}." in text
    assert messages.SAME_DATA in text


def test_only_settings_and_versions_that_differ_are_shown(tmp_path):
    settings = {"learning_rate": 0.01, "lora_config": {"r": 16, "lora_alpha": 16.0}, "packing": True}
    settings |= {"output_dir": "b", "resume_from_checkpoint": "auto", "data_cache_dir": "c", "logging_dir": "d"}
    summary = changed(SUMMARY, ("versions", "torch"), "2.11.0")
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", settings=settings, summary=summary))
    assert rows(found.settings) == {
        "learning_rate": ("0.001", "0.01"),
        "lora_config.r": ("8", "16"),
        "packing": ("", "true"),
        "version of torch": ("2.13.0", "2.11.0"),
    }


def test_metrics_are_side_by_side_with_the_best_marked(tmp_path):
    faster = changed(SUMMARY, ("train", "tokens_per_second"), 1500.0)
    faster["eval_after"]["loss"] = 0.9
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", summary=faster, best=0.8))
    figures = {row.name: (row.cells, set(row.best)) for row in found.results}
    assert figures["validation loss, best"] == (("1.0000", "0.8000"), {1})
    assert figures["validation loss, last"] == (("1.0000", "0.9000"), {1})
    assert figures["tokens/s"] == (("1,000", "1,500"), {1})
    assert figures["  at step"] == (("50", "50"), set())
    assert figures["training loss, last"] == (("0.5000", "0.5000"), set())
    assert figures["peak memory"][0] == ("2.0 GiB", "2.0 GiB")
    assert "0.8000*" in "\n".join(comparison_lines(found))


def test_other_validation_rows_are_a_warning_and_nothing_is_best(tmp_path):
    other = changed(SUMMARY, ("data", "digests", "validation"), "c" * 64)
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", summary=other, best=0.5))
    (warning,) = found.warnings
    assert warning.startswith("Validation results cannot be compared")
    assert rows(found.data) == {"validation rows sha256": ("b" * 12, "c" * 12)}
    assert not any(row.best for row in found.results)


def test_another_machine_is_a_warning(tmp_path):
    other = changed(SUMMARY, ("batch_plan", "world_size"), 2)
    other["train"]["tokens_per_second"] = 9000.0
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", summary=other))
    (warning,) = found.warnings
    assert warning.startswith("Speed and memory cannot be compared")
    assert not any(row.best for row in found.results)


@pytest.mark.parametrize(
    ("write", "warning"),
    [
        ({"summary": changed(SUMMARY, ("data", "digests"), ...)}, "did not record the digest"),
        ({"summary": None}, "no run_summary.json: still running, or killed"),
        ({"summary": None, "settings": None}, "no run_summary.json"),
        ({"summary": {"status": "completed"}}, "did not record the digest"),
    ],
)
def test_runs_with_fewer_records_are_compared_by_the_available_ones(tmp_path, write, warning):
    found = compared(write_run(tmp_path / "old", **write), write_run(tmp_path / "new"))
    assert any(warning in each for each in found.warnings)
    assert rows(found.results)["validation loss, best"] == ("1.0000", "1.0000")
    assert comparison_lines(found)


def test_a_run_without_validation_has_none(tmp_path):
    without = changed(SUMMARY, ("data", "validation"), None)
    without["data"]["digests"]["validation"] = None
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", summary=without))
    assert rows(found.data)["validation rows used"] == ("40", "none")
