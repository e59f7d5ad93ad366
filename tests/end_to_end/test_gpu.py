"""On a GPU: attention within documents by torch's kernel, compared with each document alone. Run with `-m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft.batching.layout import model_inputs
from sft.batching.transfer import to_device
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.document_attention import isolated_documents
from sft.training.row_layout import resolve_layout
from tests.support import messages
from tests.support.layouts import LENGTHS, gradients, random_rows
from tests.support.small_models import build_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = DistributedContext(device="cuda:0")


def layout_on_gpu(model, *, weights="bfloat16", mixed="no", **settings):
    return resolve_layout(
        model,
        ModelConfig(model_name_or_path="m"),
        TrainingConfig(**settings),
        Precision(weights=weights, mixed=mixed),
        CUDA,
        pad_token_id=0,
        max_seq_length=64,
    )


def loss_and_gradients(model, layout, *, mixed=False):
    batch = to_device(layout.collator(random_rows()), torch.device("cuda:0"))
    with isolated_documents(model, layout.attention), torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        total = layout.output.loss_sum(model, model_inputs(batch), batch)
    (total / batch["counts"]["supervised"]).backward()
    return float(total.detach()), gradients(model)


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.bfloat16, False), (torch.float32, True)])
def test_packed_rows_equal_padded_rows_up_to_rounding(dtype, mixed):
    precision = {"weights": str(dtype).removeprefix("torch."), "mixed": "bf16" if mixed else "no"}
    found = {}
    for padding_free in (True, False):
        model = build_model("llama").to("cuda:0", dtype)
        layout = layout_on_gpu(model, padding_free=padding_free, share_prefixes=False, **precision)
        assert layout.is_padding_free is padding_free
        found[padding_free] = loss_and_gradients(model, layout, mixed=mixed)
    exact = build_model("llama").to("cuda:0")
    right = loss_and_gradients(exact, layout_on_gpu(exact, padding_free=False, weights="float32"))
    for loss, _ in found.values():
        assert loss == pytest.approx(right[0], rel=2e-2)
    for name, gradient in right[1].items():
        off = [(found[flat][1][name].float() - gradient).norm() for flat in (True, False)]
        assert off[0] <= 2 * off[1] + 1e-2 * gradient.norm(), name


def test_a_document_does_not_change_the_others():
    model = build_model("llama").to("cuda:0", torch.bfloat16).eval()
    layout = layout_on_gpu(model)
    before, after = random_rows(), random_rows()
    after[2] = {**after[2], "input_ids": (after[2]["input_ids"] + 1) % 400}
    batches = [to_device(layout.collator(batch), torch.device("cuda:0")) for batch in (before, after)]
    with torch.no_grad(), isolated_documents(model, layout.attention):
        scores = [model(**model_inputs(batch)).logits[0] for batch in batches]
    start = int(np.sum(LENGTHS[:2]))
    same = (scores[0] == scores[1]).all(dim=1).tolist()
    assert all(same[:start])
    assert all(same[start + LENGTHS[2] :])
    assert not all(same)


def test_float32_without_mixed_precision_is_padded_with_a_reason():
    layout = layout_on_gpu(build_model("llama").to("cuda:0"), weights="float32")
    assert not layout.is_padding_free
    assert messages.NEEDS_16_BITS in layout.obstacle


def test_a_micro_batch_does_not_synchronize_with_the_device():
    """Loss and gradient never wait for a value from the device (checked by torch)."""
    model = build_model("llama").to("cuda:0", torch.bfloat16)
    layout = layout_on_gpu(model)
    loss_and_gradients(model, layout)  # warm-up
    device = torch.device("cuda:0")
    batch = layout.collator(random_rows())
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = to_device(batch, device)
        with isolated_documents(model, layout.attention):
            total = layout.output.loss_sum(model, model_inputs(batch), batch)
        total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
