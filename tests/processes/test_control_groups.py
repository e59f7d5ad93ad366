"""Memory limits of control groups."""

from __future__ import annotations

import pytest

from sft.processes import control_groups


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"memory.max": "4096000", "memory.current": "1000000", "memory.stat": "inactive_file 400000\n"},
            [(4_096_000, 600_000)],
        ),
        ({"memory.max": "max", "memory.current": "1000000"}, []),
        (
            {"memory.limit_in_bytes": "4096000", "memory.usage_in_bytes": "5", "memory.stat": "total_inactive_file 1"},
            [(4_096_000, 4)],
        ),
        ({"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "5"}, []),
    ],
)
def test_limits_of_both_versions_are_read(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(control_groups, "_group_folders", lambda: [tmp_path])
    assert list(control_groups.memory_limits()) == expected
