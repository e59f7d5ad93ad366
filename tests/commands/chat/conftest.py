"""Fixtures of the chat command."""

from __future__ import annotations

import pytest

from tests.support.saved_models import save_adapters


@pytest.fixture(scope="module")
def adapters(model_folder, tmp_path_factory):
    return save_adapters(model_folder("llama"), tmp_path_factory.mktemp("chat") / "adapters")
