"""Attention document by document equals the same with a mask of all tokens by all, which it never makes."""

from __future__ import annotations

import pytest
import torch

from sft.modeling import attention_by_document
from sft.modeling.attention_by_document import attend_one_by_one
from sft.modeling.varlen_kernel import AttentionTerms

LENGTHS = [300, 1, 64, 65, 129]


def inputs(value_size=8):
    torch.manual_seed(0)
    sizes = [(4, 8), (2, 8), (2, value_size)]
    return [torch.randn(1, heads, sum(LENGTHS), size, requires_grad=True) for heads, size in sizes]


def by_a_mask(query, key, value, terms):
    """Attention with every score, `[1, N, H, E]`."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.cat([torch.arange(length) for length in LENGTHS])
    distance = place[:, None] - place
    seen = (document[:, None] == document) & (distance >= 0)
    if terms.window is not None:
        seen &= distance < terms.window
    if terms.chunk is not None:
        seen &= place[:, None] // terms.chunk == place // terms.chunk
    scores = query @ key.repeat_interleave(2, dim=1).mT * (terms.scaling or query.shape[-1] ** -0.5)
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    weights = scores.masked_fill(~seen, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if terms.sinks is not None:
        total = total + terms.sinks.exp()[None, :, None, None]
    return (weights / total @ value.repeat_interleave(2, dim=1)).transpose(1, 2)


@pytest.mark.parametrize("reach", [{}, {"window": 1}, {"window": 63}, {"window": 64}, {"window": 299}, {"chunk": 70}])
@pytest.mark.parametrize("scores", [{}, {"softcap": 2.0}, {"sinks": torch.tensor([0.0, 1.0, -2.0, 3.0])}])
@pytest.mark.parametrize("value_size", [8, 4, 12])
def test_documents_one_by_one_equal_a_mask_of_all_tokens(monkeypatch, reach, scores, value_size):
    monkeypatch.setattr(attention_by_document, "_LONGEST_BLOCK", 100)
    terms = AttentionTerms(scaling=0.7, **reach, **scores)
    outcomes = []
    for attend in (lambda *given: attend_one_by_one(*given, terms, LENGTHS), lambda *given: by_a_mask(*given, terms)):
        tensors = inputs(value_size)
        output = attend(*tensors)
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        outcomes.append([output, *torch.autograd.grad((output * weights).sum(), tensors)])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_sink_gets_the_gradient_of_its_share():
    sinks = torch.tensor([0.0, 1.0, -2.0, 3.0], requires_grad=True)
    terms = AttentionTerms(scaling=0.7, sinks=sinks)
    found = torch.autograd.grad(attend_one_by_one(*inputs(), terms, LENGTHS).square().sum(), sinks)
    expected = torch.autograd.grad(by_a_mask(*inputs(), terms).square().sum(), sinks)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_capped_scores_are_normalized_in_float32():
    """As in transformers: a softmax in 16 bits would be off by a share of 1/256 in each weight."""
    query, key, value = (tensor.detach().bfloat16() for tensor in inputs())
    value = torch.ones_like(value)
    attended = attend_one_by_one(query, key, value, AttentionTerms(softcap=5.0), LENGTHS)
    assert attended.dtype == torch.bfloat16
    assert (attended - 1).abs().max() <= 1 / 128


@pytest.mark.parametrize(("window", "most"), [(16, 64 * 128), (512, 128 * 640)])
def test_no_block_has_more_scores_than_its_window_reaches(monkeypatch, window, most):
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, **options):
        seen.append(query.shape[2] * key.shape[2])
        return plain(query, key, value, **options)

    monkeypatch.setattr(attention_by_document, "scaled_dot_product_attention", attend)
    tensors = [torch.randn(1, 1, 4096, 8) for _ in range(3)]
    attend_one_by_one(*tensors, AttentionTerms(window=window), [4096])
    assert max(seen) <= most
    assert sum(seen) <= 4096 * (window + 128) * 1.3
