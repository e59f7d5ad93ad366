"""torch's flash attention for documents of any length (`torch.nn.attention.varlen`), and what it cannot compute.

Shapes: `H` heads of queries, `K` heads of keys and values, `N` tokens of the row, `D` size of a head, `E` of a value,
`B` documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

LEAST_CAPABILITY = (8, 0)
"""Compute capability of NVIDIA's GPUs from which on flash attention runs (Ampere; Dao 2023, FlashAttention-2)."""
_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
"""Of a head's size: torch pads it for `scaled_dot_product_attention`, but not here."""
_NEEDED = "and the kernel for packed rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTerms:
    """What a layer's attention is computed with, beside queries, keys and values."""

    dropout: float = 0.0
    """Probability, on the attention weights."""
    scaling: float | None = None
    """Factor of the scores; None for `1 / sqrt(D)`."""
    window: int | None = None
    """Number of tokens that a token attends to, itself included; None for all before it."""
    chunk: int | None = None
    """A document's tokens attend within pieces of this many, counted from its start; None for no such pieces."""
    softcap: float | None = None
    """Bound of the scores: `softcap * tanh(score / softcap)`; None for none."""
    sinks: torch.Tensor | None = None
    """`[H]`: for each head one more score in every softmax, of no value; None for none."""

    @property
    def is_plain(self) -> bool:
        """Whether the weights are a softmax of the scaled scores."""
        return self.softcap is None and self.sinks is None


class KernelObstacle(Exception):
    """Why the kernel cannot be used, as a clause. Documents can still be attended one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VarlenKernel:
    """The kernel of the installed torch on one device."""

    attend: Callable[..., Any]
    takes_window: bool
    """Causal attention is a window of the past alone; else `is_causal`, as in torch 2.10."""
    takes_groups: bool
    """Has `enable_gqa`, since torch 2.12."""
    obstacle: str | None = None
    """Why this machine cannot run it, as a clause."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        terms: AttentionTerms,
        boundaries: torch.Tensor,
        max_length: int,
    ) -> torch.Tensor:
        """Causal attention within documents, `[1, N, H, E]`.

        Args:
            query: `[1, H, N, D]`.
            key: `[1, K, N, D]`.
            value: `[1, K, N, E]`.
            terms: of the layer.
            boundaries: int32 `[B + 1]`, on the device.
            max_length: an upper bound of the documents' lengths.

        Raises:
            KernelObstacle: if it cannot.
        """
        size, kind, scaling = query.shape[-1], _compute_type(query), terms.scaling
        window = None if terms.window is None or terms.window >= max_length else terms.window
        reason = self.obstacle or _obstacle(kind, size, value.shape[-1], terms) or self._window_obstacle(window)
        if reason is not None:
            raise KernelObstacle(reason)
        if terms.chunk is not None and terms.chunk < max_length:
            boundaries, max_length = boundaries_of_chunks(boundaries, query.shape[2], terms.chunk), terms.chunk
        value, value_size = widened(value, size), value.shape[-1]
        rows = [tensor[0].transpose(0, 1).to(kind) for tensor in (query, key, value)]
        options: dict[str, Any] = {"is_causal": True}
        if self.takes_window:
            # A token itself is not counted.
            options = {"window_size": (-1 if window is None else window - 1, 0)}
        if self.takes_groups:
            options["enable_gqa"] = True
        else:
            repeats = query.shape[1] // key.shape[1]
            rows[1:] = [repeat_heads(tensor, repeats, dim=1) for tensor in rows[1:]]
        if scaling is not None and scaling != size**-0.5:
            if self.takes_window:
                options["scale"] = scaling
            else:
                rows[0] = rows[0] * (scaling * size**0.5)
        return self.attend(*rows, boundaries, boundaries, max_length, max_length, **options)[None, ..., :value_size]

    def _window_obstacle(self, window: int | None) -> str | None:
        if window is None or self.takes_window:
            return None
        return f"the model attends within a window of {window} tokens, {_NEEDED} takes windows from torch 2.11 on"


def find_kernel(device: torch.device) -> VarlenKernel | None:
    """The kernel for a device; None on CPU, which has none.

    Its signature differs between versions of torch. Found once and not in each call, so that compiled layers see
    constants.
    """
    if device.type != "cuda":
        return None
    try:
        # Not at the top: torch before 2.10 does not have it.
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        reason = f"torch {torch.__version__} is installed, {_NEEDED} is in torch 2.10 and later"
        return VarlenKernel(attend=_missing, takes_window=True, takes_groups=True, obstacle=reason)
    known = inspect.signature(varlen_attn).parameters
    return VarlenKernel(
        attend=varlen_attn,
        takes_window="window_size" in known,
        takes_groups="enable_gqa" in known,
        obstacle=_obstacle_of_device(device),
    )


def boundaries_of_chunks(boundaries: torch.Tensor, num_tokens: int, chunk: int) -> torch.Tensor:
    """The boundaries of documents in pieces of at most `chunk` tokens, counted from the start of each document.

    Nothing is read back from the device, so their number is that of the worst case: the last pieces are empty.

    Args:
        boundaries: int32 `[B + 1]`.
        num_tokens: `N`, the last boundary.
        chunk: tokens of a piece.

    Returns:
        int32 `[N // chunk + B + 1]`.
    """
    starts, lengths = boundaries[:-1].long(), boundaries.diff().long()
    pieces = (lengths + chunk - 1) // chunk
    ends = pieces.cumsum(0)
    number = torch.arange(num_tokens // chunk + len(starts) + 1, device=boundaries.device)
    document = torch.searchsorted(ends, number, right=True).clamp(max=len(starts) - 1)
    inside = starts[document] + (number - ends[document] + pieces[document]) * chunk
    return torch.where(number < ends[-1], inside, boundaries[-1].long()).to(torch.int32)


def widened(value: torch.Tensor, size: int) -> torch.Tensor:
    """Values `[..., E]` filled up with zeros to `size`: fused kernels take values as wide as keys."""
    return functional.pad(value, (0, size - value.shape[-1])) if value.shape[-1] < size else value


def repeat_heads(tensor: torch.Tensor, repeats: int, *, dim: int) -> torch.Tensor:
    """Repeat each head, copies side by side, as grouped queries expect."""
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=dim)


def _obstacle_of_device(device: torch.device) -> str | None:
    """Why this GPU does not run the kernel; None if it does. AMD's numbers mean something else: there it is tried."""
    if torch.version.hip:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST_CAPABILITY:
        return None
    has, needs = (".".join(map(str, each)) for each in (capability, LEAST_CAPABILITY))
    return f"this GPU has compute capability {has}, {_NEEDED} needs {needs}"


def _obstacle(kind: torch.dtype, size: int, value_size: int, terms: AttentionTerms) -> str | None:
    """Why the kernel does not compute such heads in such a type; None if it does."""
    if kind not in (torch.float16, torch.bfloat16):
        return f"attention is computed in {str(kind).removeprefix('torch.')}, {_NEEDED} needs 16 bits (bf16: true)"
    if size % _HEAD_MULTIPLE or size > _LARGEST_HEAD:
        multiples = f"multiples of {_HEAD_MULTIPLE} up to {_LARGEST_HEAD}"
        return f"the model has heads of size {size}, {_NEEDED} takes {multiples}"
    if size < value_size:
        return f"the model's values are wider than its keys ({value_size} and {size}), {_NEEDED} takes one size"
    if terms.softcap is not None:
        return f"the model caps its attention scores, {_NEEDED} does not"
    if terms.sinks is not None:
        return f"the model has attention sinks, {_NEEDED} has none"
    if terms.dropout:
        return f"the model uses dropout on attention weights, {_NEEDED} does not support it"
    return None


def _compute_type(query: torch.Tensor) -> torch.dtype:
    """The type that attention computes in: autocast's, or without autocast that of the queries."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype


def _missing(*_: Any, **__: Any) -> Any:
    raise AssertionError("is not called: `obstacle` is set")
