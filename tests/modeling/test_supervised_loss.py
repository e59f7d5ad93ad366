"""The summed cross-entropy of supervised tokens, and its gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sft.modeling.supervised_loss import (
    _chunk_rows,
    chunk_bytes,
    cross_entropy_sum,
    linear_cross_entropy_sum,
    losses_and_hits,
)


def batch(positions=14, vocabulary=11, seed=0):
    """Scores `[S, V]` of supervised positions, and the tokens to predict."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator), torch.randint(
        0, vocabulary, (positions,), generator=generator
    )


def layer(hidden=5, vocabulary=11, positions=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"hidden": (positions, hidden), "weight": (vocabulary, hidden), "bias": (vocabulary,)}
    return {name: torch.randn(*shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def with_gradients(loss, tensors):
    return [loss.detach(), *torch.autograd.grad(loss, list(tensors.values()))]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_the_losses_count_correctly_predicted_targets(chunk_rows, label_smoothing):
    tensors, found = layer(), []
    scores = torch.nn.functional.linear(*tensors.values()).detach()
    targets = scores.argmax(dim=1)
    targets[::3] = (targets[::3] + 1) % scores.shape[1]
    how = {"label_smoothing": label_smoothing, "count_hits": lambda number: found.append(int(number))}
    linear_cross_entropy_sum(**tensors, targets=targets, chunk_rows=chunk_rows, **how)
    assert sum(found) == len(targets) - len(targets[::3]) == 9
    assert len(found) == -(-len(targets) // chunk_rows)
    found.clear()
    cross_entropy_sum(scores, targets, **how)
    assert found == [9]


def test_cross_entropy_sum_equals_the_sum_by_hand():
    scores, targets = batch()
    log_probabilities = scores.log_softmax(-1)
    expected = -sum(log_probabilities[s, targets[s]] for s in range(len(targets)))
    torch.testing.assert_close(cross_entropy_sum(scores, targets), expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_rows", [1, 4, 14, 100])
def test_linear_cross_entropy_sum_equals_torchs_own_on_all_logits(chunk_rows, label_smoothing):
    _, targets = batch()
    tensors = layer()
    found = linear_cross_entropy_sum(**tensors, targets=targets, label_smoothing=label_smoothing, chunk_rows=chunk_rows)
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(*tensors.values()), targets, reduction="sum", label_smoothing=label_smoothing
    )
    # Times a factor, as the mean over the global batch is made of it.
    torch.testing.assert_close(with_gradients(found * 0.3, tensors), with_gradients(expected * 0.3, tensors))


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch 2.13 and later have it")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_linear_cross_entropy_sum_equals_torchs_fused_one(label_smoothing):
    _, targets = batch()
    tensors = layer()
    found = linear_cross_entropy_sum(**tensors, targets=targets, label_smoothing=label_smoothing, chunk_rows=4)
    expected = torch.nn.functional.linear_cross_entropy(
        tensors["hidden"],
        tensors["weight"],
        targets,
        linear_bias=tensors["bias"],
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(with_gradients(found, tensors), with_gradients(expected, tensors))


def test_chunks_are_larger_on_large_gpus_and_whole_tiles(monkeypatch):
    gib = 2**30
    assert chunk_bytes("cpu", 500 * gib) == 2**27
    assert [chunk_bytes("cuda", size) for size in (None, 24 * gib, 79 * gib)] == [2**28, 2**28, gib]
    sizes = {}
    for memory in (24, 79):
        properties = SimpleNamespace(total_memory=memory * gib)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        sizes[memory] = [_chunk_rows(vocabulary, torch.device("cuda:0")) for vocabulary in (49_152, 128_256, 2**22)]
    assert sizes == {24: [1280, 512, 128], 79: [5376, 2048, 128]}
    assert _chunk_rows(128_256, torch.device("cpu")) == 261


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_sum_equals_torchs_own(label_smoothing):
    scores, targets = batch()
    tensors = {"scores": scores.requires_grad_()}
    found = cross_entropy_sum(scores, targets, label_smoothing=label_smoothing)
    expected = torch.nn.functional.cross_entropy(scores, targets, reduction="sum", label_smoothing=label_smoothing)
    torch.testing.assert_close(with_gradients(found * 0.3, tensors), with_gradients(expected * 0.3, tensors))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_linear_cross_entropy_sum_computes_only_required_gradients(frozen):
    tensors = layer()
    tensors[frozen] = tensors[frozen].detach()
    linear_cross_entropy_sum(**tensors, targets=batch()[1], chunk_rows=4).backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is None] == [frozen]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_cross_entropy_sum_under_autocast_is_as_accurate_as_the_layer(dtype):
    """Each against float32: the gradient of ours is no further off than that of the layer and loss under autocast."""
    tensors, (_, targets) = layer(hidden=64, vocabulary=300, positions=50), batch(50, 300)
    tensors = {name: (tensor.detach() * 0.3).requires_grad_() for name, tensor in tensors.items()}
    exact = with_gradients(linear_cross_entropy_sum(**tensors, targets=targets), tensors)
    with torch.autocast("cpu", dtype=dtype):
        found = with_gradients(linear_cross_entropy_sum(**tensors, targets=targets, chunk_rows=16), tensors)
        scores = torch.nn.functional.linear(*tensors.values()).float()
        theirs = with_gradients(torch.nn.functional.cross_entropy(scores, targets, reduction="sum"), tensors)
    for one, other, right in zip(found, theirs, exact, strict=True):
        assert one.dtype is right.dtype
        assert (one - right).norm() <= 1.5 * (other - right).norm() + 1e-4 * right.norm()


def test_linear_cross_entropy_sum_keeps_small_float16_gradients():
    """A softmax over many tokens has values that underflow in float16."""
    vocabulary = 40_000
    hidden = torch.randn(4, 8, dtype=torch.float16).requires_grad_()
    weight = torch.zeros(vocabulary, 8, dtype=torch.float16).requires_grad_()
    linear_cross_entropy_sum(hidden, weight, None, torch.tensor([0, 1, 2, 3])).backward()
    untouched = weight.grad[4:].float()
    torch.testing.assert_close(
        untouched, (hidden.detach().float().sum(0) / vocabulary).expand_as(untouched), rtol=0.02, atol=1e-7
    )


def test_linear_cross_entropy_sum_in_float16_sums_many_rows_of_one_token():
    """Their sum, times the scale that keeps small gradients, would be beyond float16; no loss scale could mend that."""
    hidden = torch.full((200, 8), 4.0, dtype=torch.float16).requires_grad_()
    weight = torch.zeros(50, 8, dtype=torch.float16).requires_grad_()
    linear_cross_entropy_sum(hidden, weight, None, torch.full((200,), 7)).backward()
    torch.testing.assert_close(weight.grad[7].float(), torch.full((8,), 200 * 4 * (1 / 50 - 1)), rtol=1e-2, atol=0)


def test_linear_cross_entropy_sum_without_targets_is_zero_and_has_a_gradient():
    tensors = layer(positions=0)
    loss, *gradients = with_gradients(
        linear_cross_entropy_sum(**tensors, targets=torch.zeros(0, dtype=torch.long)), tensors
    )
    assert loss == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


def test_losses_and_hits_come_in_the_order_of_the_targets():
    scores, targets = batch()
    losses, hits = losses_and_hits(iter(scores.split([3, 10, 1])), targets)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(scores, targets, reduction="none"))
    assert hits.tolist() == (scores.argmax(-1) == targets).tolist()
