"""Fixtures of the first configuration."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    logging.getLogger("sft").handlers.clear()
