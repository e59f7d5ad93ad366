"""Fixtures of the export command."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import export_model


@pytest.fixture
def export(capfd, tmp_path):
    """Exports in this process; gives the exit status, the log, the errors, and the new folder."""

    def run(model: str, *options: str, name: str = "exported") -> tuple[int, str, str, Path]:
        output = tmp_path / "out" / name
        status = export_model.main([model, "--output", str(output), *options])
        captured = capfd.readouterr()
        assert not list(tmp_path.glob("out/.*")), "something was left aside"
        return status, captured.out, captured.err, output

    yield run
    logging.getLogger("sft").handlers.clear()
