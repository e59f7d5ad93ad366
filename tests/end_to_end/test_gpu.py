"""On a GPU: attention within documents by torch's kernel, compared with each document alone. Run with `-m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sft.batching.layout import model_inputs
from sft.batching.transfer import to_device
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.document_attention import ONE_BY_ONE, attend_within_documents, isolated_documents
from sft.modeling.supervised_loss import linear_cross_entropy_sum
from sft.modeling.varlen_kernel import find_kernel
from sft.training.row_layout import resolve_layout
from tests.support import messages
from tests.support.checkpoints import as_if_killed
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


def test_packs_in_float32_are_attended_one_by_one():
    found = {}
    for settings in ({"packing": True}, {"padding_free": False}):
        model = build_model("llama").to("cuda:0")
        layout = layout_on_gpu(model, weights="float32", share_prefixes=False, **settings)
        assert (layout.attention == ONE_BY_ONE) == ("packing" in settings)
        found[layout.is_padding_free] = loss_and_gradients(model, layout)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    for name, gradient in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_the_output_layer_is_summed_in_float32(dtype):
    """Over chunks, against float32: at most the rounding of the parts' own 16 bits."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1024, 64, device="cuda:0"), torch.randn(500, 64, device="cuda:0") * 0.1
    targets = torch.randint(0, 500, (1024,), device="cuda:0")
    found = []
    for enabled in (False, True):
        leaf = weight.clone().requires_grad_()
        with torch.autocast("cuda", dtype, enabled=enabled):
            linear_cross_entropy_sum(hidden, leaf, None, targets, chunk_rows=128).backward()
        found.append(leaf.grad)
    assert (found[0] - found[1]).norm() <= 1e-2 * found[0].norm()


@pytest.fixture
def deterministic(monkeypatch):
    """What `full_determinism` sets."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_deterministic_attention_repeats_its_gradients_to_the_bit(deterministic, dtype):
    """Documents of many blocks, whose gradients of queries would otherwise be added up as the blocks finish."""
    bounds = torch.tensor([0, 3000, 3017, 8192], dtype=torch.int32, device="cuda:0")
    kernel = find_kernel(bounds.device) if dtype == torch.bfloat16 else None
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, 8192, 64, device="cuda:0", dtype=dtype) for heads in (8, 2, 2)]
    outcomes = []
    for _ in range(5):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        module = torch.nn.Module()
        output, _ = attend_within_documents(
            module,
            *leaves,
            None,
            cu_seq_lens_q=bounds,
            max_length_q=5175,
            document_lengths=[3000, 17, 5175],
            kernel=kernel,
        )
        output.float().square().sum().backward()
        outcomes.append([leaf.grad for leaf in leaves])
    for each in outcomes[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outcomes[0], each, strict=True))


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"padding_free": False}])
def test_a_resumed_run_with_full_determinism_equals_an_uninterrupted_one_to_the_bit(short_run, tmp_path, settings):
    settings |= {"full_determinism": True, "bf16": True}
    uninterrupted = short_run(**settings)
    assert uninterrupted.status == 0, uninterrupted.err
    folder = as_if_killed(uninterrupted.output_dir, tmp_path / "killed", 2)
    again = short_run(**settings, resume_from_checkpoint="auto", output_dir=folder)
    assert again.status == 0, again.err
    weights = [load_file(each / "checkpoint-6" / "model.safetensors") for each in (uninterrupted.output_dir, folder)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


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
