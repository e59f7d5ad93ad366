"""A folder that is complete or does not exist."""

from __future__ import annotations

import pytest

from sft.commands.export.output_folder import resolve_output, temporary_folder


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    def stopped_half_way():
        with temporary_folder(tmp_path / "out") as aside:
            (aside / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["real", "new"])
def test_a_folder_that_is_a_link_is_what_it_points_to(tmp_path, target):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(target)
    output = resolve_output(str(tmp_path / "link"), "model", is_merged=False)
    with temporary_folder(output) as aside:
        (aside / "file").write_text("whole")
    assert (tmp_path / target / "file").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()
