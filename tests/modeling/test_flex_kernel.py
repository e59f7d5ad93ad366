"""flex_attention with capped scores and sinks, uncompiled on CPU: the same as document by document."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from sft.modeling.attention_by_document import attend_one_by_one
from sft.modeling.document_attention import attend_within_documents
from sft.modeling.flex_kernel import FlexKernel, block_mask, find_flex, first_reached
from sft.modeling.varlen_kernel import AttentionTerms, KernelObstacle
from tests.modeling.test_varlen_kernel import kernel_of

LENGTHS = [300, 1, 64, 65, 129]
BOUNDARIES = torch.tensor([0, 300, 301, 365, 430, 559, 559, 559], dtype=torch.int32)
"""With empty documents at the end, as batches of a fixed size have them."""
SINKS = torch.tensor([0.0, 1.0, -2.0, 3.0])


def kernel():
    return FlexKernel(attend=flex_attention, lse=AuxRequest(lse=True))


def inputs(value_size=16):
    torch.manual_seed(0)
    return [torch.randn(1, heads, sum(LENGTHS), size) for heads, size in ((4, 16), (2, 16), (2, value_size))]


@pytest.mark.parametrize("reach", [{}, {"window": 7}, {"window": 200}, {"chunk": 70}])
@pytest.mark.parametrize("scores", [{"softcap": 2.0}, {"sinks": SINKS}, {"softcap": 2.0, "sinks": SINKS}])
@pytest.mark.parametrize("value_size", [16, 8])
def test_flex_attention_and_documents_one_by_one_give_the_same(reach, scores, value_size):
    terms = AttentionTerms(scaling=0.7, **reach, **scores)
    expected = attend_one_by_one(*inputs(value_size), terms, LENGTHS)
    torch.testing.assert_close(kernel()(*inputs(value_size), terms, BOUNDARIES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("terms", [AttentionTerms(), AttentionTerms(window=130), AttentionTerms(chunk=100)])
def test_no_block_is_computed_that_no_token_reaches(terms):
    first = first_reached(BOUNDARIES, 640, terms)
    place = torch.arange(640)
    seen = (place <= place[:, None]) & (place >= first[:, None])
    blocks = seen.view(5, 128, 5, 128).any(dim=3).any(dim=1)
    assert torch.equal(block_mask(first).to_dense()[0, 0].bool(), blocks)
    assert (first.diff() >= 0).all()


def test_masks_are_made_once_for_all_layers_of_a_row():
    flex, terms = kernel(), AttentionTerms(softcap=2.0)
    masks = [flex._mask(terms, boundaries, 640) for boundaries in (BOUNDARIES, BOUNDARIES, BOUNDARIES.clone())]
    assert masks[0] is masks[1]
    assert masks[1] is not masks[2]


def test_dropout_and_errors_are_obstacles():
    with pytest.raises(KernelObstacle, match="dropout"):
        kernel()(*inputs(), AttentionTerms(softcap=2.0, dropout=0.1), BOUNDARIES)

    def fails(*_, **__):
        raise NotImplementedError("no such head")

    with pytest.raises(KernelObstacle, match=r"flex_attention cannot compute it \(no such head\)"):
        FlexKernel(attend=fails, lse=None)(*inputs(), AttentionTerms(softcap=2.0), BOUNDARIES)


@pytest.mark.parametrize(("capability", "exists"), [((7, 5), False), ((8, 0), True)])
def test_it_needs_a_recent_gpu(monkeypatch, capability, exists):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (find_flex(torch.device("cuda:0")) is not None) == exists
    assert find_flex(torch.device("cpu")) is None


@pytest.mark.parametrize(("options", "is_flex"), [({}, False), ({"softcap": 2.0}, True), ({"s_aux": SINKS}, True)])
def test_only_what_flash_attention_cannot_compute_goes_to_it(options, is_flex):
    asked = []

    def flex(*given):
        asked.append(given)
        return attend_one_by_one(*given[:4], LENGTHS)

    tensors = [tensor.bfloat16() for tensor in inputs()]
    attend_within_documents(
        torch.nn.Module(),
        *tensors,
        None,
        cu_seq_lens_q=BOUNDARIES,
        max_length_q=300,
        kernel=kernel_of(),
        flex=flex,
        **options,
    )
    assert bool(asked) == is_flex
