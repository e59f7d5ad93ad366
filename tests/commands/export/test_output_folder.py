"""A folder that is complete or does not exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sft.commands.export.output_folder import resolve_output, temporary_folder
from sft.common.errors import ConfigError


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    def stopped_half_way():
        with temporary_folder(tmp_path / "out") as aside:
            (aside / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, Path.touch, lambda path: (path / "x").mkdir(parents=True)])
def test_what_exists_is_not_replaced(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out already exists\. Name a new folder"):
        resolve_output(str(tmp_path / "out"), "model", is_merged=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can create a folder")
def test_a_place_that_cannot_be_written_is_one_line():
    with (
        pytest.raises(ConfigError, match=r"^command line: --output: /proc/x cannot be written"),
        temporary_folder(Path("/proc/x")),
    ):
        pass


@pytest.mark.parametrize("target", ["real", "new"])
def test_a_folder_that_is_a_link_is_what_it_points_to(tmp_path, target):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(target)
    output = resolve_output(str(tmp_path / "link"), "model", is_merged=False)
    assert output == tmp_path / "link"  # which messages name
    with temporary_folder(output) as aside:
        (aside / "file").write_text("whole")
    assert (tmp_path / target / "file").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()
