"""A folder that is complete or does not exist."""

from __future__ import annotations

import pytest

from sft.commands.export.output_folder import temporary_folder


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    def stopped_half_way():
        with temporary_folder(tmp_path / "out") as aside:
            (aside / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert list(tmp_path.iterdir()) == []
