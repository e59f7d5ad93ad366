"""The predicted memory against what torch's allocator reserves for models of real sizes."""

from __future__ import annotations

import pytest

SHARE = 0.1
"""Largest difference, as a share of what is reserved."""
FULL = {"size": "1.2b", "rows": 8, "row_tokens": 2048}
LORA = {"size": "8b", "lora": True, "row_tokens": 2048}
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "FAKE_CUDA_MEMORY_MIB": "200000"}


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(FULL, id="1.2B, all weights"),
        pytest.param(LORA | {"rows": 1}, id="8B, LoRA"),
        pytest.param(LORA | {"rows": 8, "checkpointing": True}, id="8B, LoRA, checkpointing"),
        pytest.param(
            {"size": "8b", "rows": 2, "row_tokens": 2048, "checkpointing": True, "ranks": 8}, id="8B, FSDP on 8 ranks"
        ),
    ],
)
def test_predicted_memory_is_what_is_reserved(call_fake, run):
    found = call_fake("measure_memory", device=EXPANDABLE, **run)
    print({name: round(gib, 1) for name, gib in found.items()})
    assert found["predicted"] == pytest.approx(found["reserved"], rel=SHARE)
