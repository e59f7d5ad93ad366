"""When torch's kernel for packed rows can be used, and how the installed version of it is called."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sft.modeling.attention_by_document import in_chunks
from sft.modeling.document_attention import attend_within_documents
from sft.modeling.varlen_kernel import KernelObstacle, VarlenKernel, boundaries_of_chunks, find_kernel
from tests.support import messages

BOUNDARIES = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
SIGNATURES = [(False, False), (True, False), (True, True)]
"""Of torch 2.10, 2.11 and 2.12: whether the kernel takes a window, and grouped queries."""


def test_there_is_no_kernel_on_cpu():
    assert find_kernel(torch.device("cpu")) is None


@pytest.mark.parametrize(("capability", "shown"), [((7, 0), "7.0"), ((7, 5), "7.5"), ((8, 0), None), ((9, 0), None)])
def test_the_kernel_needs_a_recent_gpu(monkeypatch, capability, shown):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kernel = find_kernel(torch.device("cuda:0"))
    assert kernel.obstacle == (shown and messages.OLD_GPU.format(shown))


def test_numbers_of_other_vendors_are_no_capability(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert find_kernel(torch.device("cuda:0")).obstacle is None


def heads(size=16, value_size=None, dtype=torch.bfloat16):
    torch.manual_seed(0)
    sizes = [(4, size), (2, size), (2, value_size or size)]
    return [torch.randn(1, number, 9, each).to(dtype) for number, each in sizes]


def kernel_of(takes_window=True, takes_groups=True, obstacle=None):
    """A kernel of the given signature, computed by sdpa."""

    def attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
        expected = {"window_size": (-1, 0)} if takes_window else {"is_causal": True}
        window = options.get("window_size", (-1, 0))[0]
        if window >= 0:
            expected = {"window_size": (window, 0)}
        scale = options.pop("scale", None)
        assert takes_window or scale is None
        assert options == (expected | {"enable_gqa": True} if takes_groups else expected)
        assert takes_groups or query.shape[1] == key.shape[1]
        assert cu_seq_q is cu_seq_k
        assert max_q == max_k
        outputs = []
        for start, end in itertools.pairwise(cu_seq_q.tolist()):
            parts = [tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value)]
            places = torch.arange(end - start)
            distance = places[:, None] - places
            seen = (distance >= 0) & ((distance <= window) | (window < 0))
            attended = scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=takes_groups)
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs)

    return VarlenKernel(attend=attend, takes_window=takes_window, takes_groups=takes_groups, obstacle=obstacle)


def attend(tensors, kernel, *, chunk=None, **options):
    module = torch.nn.Module()
    module.config = SimpleNamespace(attention_chunk_size=chunk)
    output, _ = attend_within_documents(
        module, *tensors, None, cu_seq_lens_q=BOUNDARIES, max_length_q=5, kernel=kernel, **options
    )
    return output


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("scaling", [None, 0.25, 0.125])
def test_the_kernel_and_documents_one_by_one_give_the_same(signature, scaling):
    tensors = heads()
    by_kernel = attend(tensors, kernel_of(*signature), scaling=scaling)
    one_by_one = attend(tensors, None, scaling=scaling)
    torch.testing.assert_close(by_kernel, one_by_one)
    assert torch.equal(one_by_one, attend(tensors, None, scaling=scaling, document_lengths=[3, 1, 5]))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dtype": torch.float32}, messages.NEEDS_16_BITS),
        ({"size": 20}, messages.HEAD_SIZE.format(20)),
        ({"size": 264}, messages.HEAD_SIZE.format(264)),
        ({"value_size": 24}, messages.WIDER_VALUES),
        ({"softcap": 20.0}, messages.CAPPED_SCORES),
        ({"s_aux": torch.zeros(4)}, messages.SINKS),
        ({"dropout": 0.1}, messages.ATTENTION_DROPOUT),
        ({"obstacle": "this GPU is too old"}, "this GPU is too old"),
    ],
)
def test_what_the_kernel_cannot_compute_is_computed_one_by_one(changed, reason):
    changed, obstacle = dict(changed), changed.get("obstacle")
    changed.pop("obstacle", None)
    terms = {key: changed.pop(key) for key in ("dropout", "softcap", "s_aux") if key in changed}
    tensors = heads(**changed)
    with pytest.raises(KernelObstacle, match=reason):
        attend(tensors, kernel_of(obstacle=obstacle), **terms)
    assert attend(tensors, None, **terms).shape == (1, 9, 4, tensors[2].shape[-1])


@pytest.mark.parametrize("size", [8, 80, 256])
def test_multiples_of_8_are_no_obstacle(size):
    assert attend(heads(size), kernel_of()).shape == (1, 9, 4, size)


@pytest.mark.parametrize("options", [{"sliding_window": 2}, {"sliding_window": 5}, {"chunk": 2}, {"chunk": 4}])
@pytest.mark.parametrize("value_size", [16, 8])
def test_windows_chunks_and_narrow_values_are_computed_alike(options, value_size):
    tensors = heads(value_size=value_size)
    torch.testing.assert_close(attend(tensors, kernel_of(), **options), attend(tensors, None, **options))
    assert torch.equal(attend(tensors, None, **options), attend(tensors, None)) == (5 in options.values())


def test_a_version_without_windows_attends_within_them_one_by_one():
    with pytest.raises(KernelObstacle, match=messages.WINDOW_TOO_NEW.format(2)):
        attend(heads(), kernel_of(takes_window=False), sliding_window=2)
    assert attend(heads(), kernel_of(takes_window=False), sliding_window=5).shape == (1, 9, 4, 16)


@pytest.mark.parametrize("lengths", [[3, 1, 5], [4, 4, 0, 0], [1], [9, 0], [2, 8, 7]])
@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 100])
def test_boundaries_of_chunks_are_those_of_their_lengths(lengths, chunk):
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    found = boundaries_of_chunks(ends, sum(lengths), chunk)
    assert found.dtype == torch.int32
    assert found[0] == 0
    assert [length for length in found.diff().tolist() if length] == list(in_chunks(lengths, chunk))
