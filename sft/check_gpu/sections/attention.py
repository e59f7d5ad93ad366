"""Attention within documents against float32 attention of each document alone, and isolation to the bit.

Shapes: `H` heads, `K` heads of keys and values, `N` tokens of the row, `D` size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sft.check_gpu.bench import Bench
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.modeling.document_attention import attend_within_documents
from sft.modeling.varlen_kernel import VarlenKernel

_MIXED = (1, 2, 17, 128, 129, 700, 1000, 64)
_ALLOWED_FACTOR = 2.0
"""By how much the error may exceed that of torch's own attention in the same type."""
_ALLOWED_SHARE = 1e-3
"""Added to it: a share of the largest value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """What is attended to."""

    lengths: tuple[int, ...] = _MIXED
    num_heads: int = 16
    num_key_value_heads: int = 4
    head_size: int = 128
    dtype: torch.dtype = torch.bfloat16
    scaling: float | None = None
    empty_documents: int = 0
    """At the end, as they fill the boundaries of a batch of fixed size."""
    one_by_one: bool = False
    """Without the kernel for packed rows, which a CPU does not have."""


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    for name, case in _attention_cases(bench).items():
        yield Case(name=name, check=partial(_compare, bench, case))
    yield Case(name="a document does not change the others", check=partial(_isolation, bench))


def _attention_cases(bench: Bench) -> dict[str, AttentionCase]:
    base, many = AttentionCase(), 2048 if bench.on_gpu else 64
    if not bench.on_gpu:
        base = replace(base, lengths=(1, 2, 17, 33), num_heads=4, num_key_value_heads=2, head_size=32)
    heads = base.num_heads
    found = {f"bfloat16, {heads} heads on {base.num_key_value_heads} of {base.head_size}": base}
    found |= {
        "float16": replace(base, dtype=torch.float16),
        "as many heads of keys as of queries": replace(base, num_key_value_heads=heads),
        "one head of keys": replace(base, num_key_value_heads=1),
        "another scale": replace(base, scaling=0.5 * base.head_size**-0.5),
        "one document": replace(base, lengths=(sum(base.lengths),)),
        "empty documents": replace(base, empty_documents=3),
        f"{many} documents of 2 tokens": replace(base, lengths=(2,) * many, num_heads=4, num_key_value_heads=4),
    }
    sizes = (32, 64, 80, 96, 192, 256) if bench.on_gpu and not bench.is_quick else (64,)
    found |= {f"heads of size {size}": replace(base, head_size=size) for size in sizes}
    if bench.on_gpu:
        found |= {
            f"one by one, {str(dtype).removeprefix('torch.')}": replace(base, dtype=dtype, one_by_one=True)
            for dtype in (torch.float16, torch.float32)
        }
    return found


def _compare(bench: Bench, case: AttentionCase) -> Outcome:
    """Output and gradients of the kernel, against float32 attention of each document."""
    kernel = None if case.one_by_one else bench.kernel
    if kernel is not None and kernel.obstacle is not None:
        return skipped(kernel.obstacle)
    inputs = _inputs(case, bench.device)
    found = _with_gradients(case, inputs, partial(_attend, case, kernel))
    with sdpa_kernel(SDPBackend.MATH):
        exact = _with_gradients(case, tuple(each.float() for each in inputs), partial(_by_document, case))
    usual = _with_gradients(case, inputs, partial(_by_document, case))
    errors, allowed = [], []
    for each, right, other in zip(found, exact, usual, strict=True):
        largest = float(right.abs().max())
        if not largest > 0:
            return judged(False, f"float32 attention is {largest}: the device does not compute")
        errors.append(float((each.float() - right).abs().max()) / largest)
        allowed.append(float((other.float() - right).abs().max()) / largest * _ALLOWED_FACTOR + _ALLOWED_SHARE)
    is_right = all(error <= limit for error, limit in zip(errors, allowed, strict=True))
    worst = max(range(len(errors)), key=lambda index: errors[index] / allowed[index])
    what = ("output", "gradient of the queries", "gradient of the keys", "gradient of the values")[worst]
    text = f"{what} off by {errors[worst]:.1e} of the largest value (at most {allowed[worst]:.1e})"
    return judged(is_right, text, errors=errors, allowed=allowed)


def _inputs(case: AttentionCase, device: str) -> Tensors:
    """Queries `[1, H, N, D]`, keys and values `[1, K, N, D]`, laid out as a model's projections are."""
    torch.manual_seed(0)
    tokens, heads = sum(case.lengths), (case.num_heads, case.num_key_value_heads, case.num_key_value_heads)
    shapes = [(1, tokens, count, case.head_size) for count in heads]
    query, key, value = (torch.randn(shape, device=device).to(case.dtype).transpose(1, 2) for shape in shapes)
    return query, key, value


def _with_gradients(case: AttentionCase, inputs: Sequence[torch.Tensor], attend: partial) -> list[torch.Tensor]:
    """The output `[1, N, H, D]` of `attend(query, key, value)`, and the gradients of the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*leaves)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output.float() * weights).sum(), leaves)]


def _attend(
    case: AttentionCase, kernel: VarlenKernel | None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """As a model calls it."""
    ends = torch.tensor([0, *case.lengths], device=query.device).cumsum(0)
    boundaries = torch.cat([ends, ends[-1:].expand(case.empty_documents)]).to(torch.int32)
    output, _ = attend_within_documents(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        scaling=case.scaling,
        cu_seq_lens_q=boundaries,
        max_length_q=max(case.lengths),
        document_lengths=case.lengths if kernel is None else None,
        kernel=kernel,
    )
    return output


def _by_document(case: AttentionCase, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """torch's attention, document by document."""
    repeats = case.num_heads // case.num_key_value_heads
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    parts = zip(*(tensor.split(case.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=case.scaling) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _isolation(bench: Bench) -> Outcome:
    """Other tokens in one document: the outputs of the others stay the same, and they send it no gradient."""
    case, kernel = AttentionCase(lengths=(5, 130, 64) if bench.on_gpu else (5, 13, 6)), bench.kernel
    if kernel is not None and kernel.obstacle is not None:
        kernel = None  # documents are attended one by one on this GPU
    inputs = _inputs(case, bench.device)
    start, end = case.lengths[0], sum(case.lengths[:2])
    changed = tuple(each.clone() for each in inputs)
    for each in changed:
        each[:, :, start:end] += 1
    before, after = _attend(case, kernel, *inputs), _attend(case, kernel, *changed)
    same = (before == after).flatten(2).all(dim=2)[0]
    others = torch.cat([same[:start], same[end:]])
    leaves = [each.requires_grad_() for each in inputs]
    output = _attend(case, kernel, *leaves)
    of_others = output[:, :start].float().sum() + output[:, end:].float().sum()
    leaked = [int((each[:, :, start:end] != 0).sum()) for each in torch.autograd.grad(of_others, leaves)]
    has_effect = not bool(same[start:end].any())
    return judged(
        bool(others.all()) and not any(leaked) and has_effect,
        f"{int((~others).sum())} of {len(others)} other tokens changed; {sum(leaked)} gradients reach the document",
        changed=int((~others).sum()),
        leaked=sum(leaked),
        document_changed=has_effect,
    )
