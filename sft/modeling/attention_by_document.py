"""Attention that takes the documents of a row one by one: on CPU, and on a GPU where no kernel serves.

Short documents are cheap, and no score is computed that a mask would discard. A long document under a window goes in
blocks of queries, each against the keys that the window reaches: never is there a mask of all its tokens by all.

Shapes: `H` heads, `K` heads of keys and values, `N` tokens of the row, `L` of a document, `D` size of a head, `E` size
of a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from sft.modeling.varlen_kernel import AttentionTerms, repeat_heads, widened

_LEAST_BLOCK = 64
"""Queries of a block at least: fewer would cost more in calls than they save in scores."""
_BLOCKS_PER_WINDOW = 4
"""Of a long window: a block also computes the scores of up to its own length that are out of reach."""
_LONGEST_BLOCK = 1024
"""Where nothing but a document's length limits the scores."""


@torch.compiler.disable  # compiled layers would be recompiled for each number of documents
def attend_one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: AttentionTerms, lengths: Sequence[int]
) -> torch.Tensor:
    """Causal attention within documents, `[1, N, H, E]`.

    Args:
        query: `[1, H, N, D]`.
        key: `[1, K, N, D]`.
        value: `[1, K, N, E]`.
        terms: of the layer.
        lengths: of the documents, which add up to `N`.
    """
    if terms.chunk is not None:
        lengths = list(in_chunks(lengths, terms.chunk))
    # Repeated once: inside each document's call, the backward pass would also run it per document.
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, repeats, dim=1), repeat_heads(value, repeats, dim=1)
    value, size = widened(value, query.shape[-1]), value.shape[-1]
    # `split` and `cat` have one backward each; the backward of each slice would fill a full row with zeros.
    parts = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    attended = torch.cat([_attend_document(*part, terms).transpose(1, 2) for part in parts], dim=1)
    return attended[..., :size]


def in_chunks(lengths: Sequence[int], chunk: int) -> Iterator[int]:
    """The lengths of the pieces of documents of `lengths`, of at most `chunk` tokens each."""
    for length in lengths:
        yield from (min(chunk, length - start) for start in range(0, length, chunk))


def _attend_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: AttentionTerms
) -> torch.Tensor:
    """Causal attention of one document, `[1, H, L, D]` each."""
    length = query.shape[2]
    is_within_window = terms.window is None or terms.window >= length
    if is_within_window and terms.is_plain:
        return scaled_dot_product_attention(
            query, key, value, dropout_p=terms.dropout, is_causal=True, scale=terms.scaling
        )
    reach = length if is_within_window or terms.window is None else terms.window
    size = _LONGEST_BLOCK if is_within_window else max(_LEAST_BLOCK, -(-reach // _BLOCKS_PER_WINDOW))
    keys, values = key.split(size, dim=2), value.split(size, dim=2)
    return torch.cat(
        [
            _attend_block(block, keys[_first(number, size, reach) : number + 1], values, (number, reach), terms)
            for number, block in enumerate(query.split(size, dim=2))
        ],
        dim=2,
    )


def _first(number: int, size: int, reach: int) -> int:
    """The first block of keys that any query of a block reaches."""
    return max(0, number * size - reach + 1) // size


def _attend_block(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    place: tuple[int, int],
    terms: AttentionTerms,
) -> torch.Tensor:
    """Attention of one block of queries.

    Args:
        query: `[1, H, B, D]`.
        keys: the blocks that it reaches, its own last.
        values: all blocks of the document.
        place: the block's number, and how many tokens each token reaches, itself included.
        terms: of the layer.
    """
    number, reach = place
    key, value = torch.cat(list(keys), dim=2), torch.cat(list(values[number + 1 - len(keys) : number + 1]), dim=2)
    last = torch.arange(query.shape[2], device=query.device)[:, None] + key.shape[2] - query.shape[2]
    column = torch.arange(key.shape[2], device=query.device)
    reached = (column <= last) & (column > last - reach)
    if terms.is_plain:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=reached, dropout_p=terms.dropout, scale=terms.scaling
        )
    return _weigh(query, key, value, reached, terms)


def _weigh(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, reached: torch.Tensor, terms: AttentionTerms
) -> torch.Tensor:
    """Attention with capped scores or sinks, in the types of transformers' eager attention: softmax in float32."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if terms.scaling is None else terms.scaling)
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    scores = scores.masked_fill(~reached, torch.finfo(scores.dtype).min)
    if terms.sinks is not None:
        sinks = terms.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., : key.shape[2]]
    return functional.dropout(weights, p=terms.dropout) @ value
