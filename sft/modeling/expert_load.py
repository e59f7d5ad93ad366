"""How often a mixture's experts are chosen in an evaluation: counts by layer, for any batch size the same.

transformers 5 calls the module that has a layer's stacked experts with the numbers of each token's experts. They are
read there. Models whose experts do not receive such numbers (Llama 4, lists of modules) have no figures.

Shapes: `N` tokens of a micro-batch, `k` experts per token, `L` layers with experts, `E` experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sft.modeling.experts import stacked_experts

KEY = "expert_load"


class ExpertLoad:
    """Counts of one evaluation. Tokens of documents without a supervised token, and padding, do not count."""

    def __init__(self, model: Any, device: torch.device | str):
        """
        Args:
            model: with or without adapters.
            device: holds the counts.
        """
        of_experts = {id(weight): weight.shape[0] for weight in stacked_experts(model).values()}
        self._modules: dict[str, nn.Module] = {}
        self._num_experts: list[int] = []
        for name, module in model.named_modules():
            counts = [of_experts[id(each)] for each in module.parameters(recurse=False) if id(each) in of_experts]
            if counts:
                self._modules[name] = module
                self._num_experts.append(counts[0])
        shape = (len(self._modules), max(self._num_experts, default=0))
        # float64 is not on Apple's GPUs; float32 counts exactly up to 16 million.
        kind = torch.float32 if str(device).startswith("mps") else torch.float64
        self.counts = torch.zeros(shape, dtype=kind, device=device)
        """`[L, E]`: how often each expert was chosen; to be reduced over processes in place."""

    @contextmanager
    def recorded(self) -> Iterator[dict[int, torch.Tensor]]:
        """A context for one call of the model: the experts of its tokens, int `[N, k]`, by the layer's index."""
        chosen: dict[int, torch.Tensor] = {}

        def note(index: int) -> Callable[..., None]:
            def read(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
                found = [each for each in (*args, *kwargs.values()) if _are_numbers(each)]
                if len(found) == 1:
                    chosen[index] = found[0]

            return read

        with ExitStack() as hooks:
            for index, module in enumerate(self._modules.values()):
                hooks.enter_context(module.register_forward_pre_hook(note(index), with_kwargs=True))
            yield chosen

    def counts_of(self, chosen: Mapping[int, torch.Tensor], batch: Mapping[str, Any]) -> torch.Tensor | None:
        """The counts of a micro-batch, `[L, E]`; None where nothing was recorded.

        Args:
            chosen: as `recorded` returned it.
            batch: the micro-batch that the model was called with (see `sft.batching.layout`).
        """
        if not chosen:
            return None
        counts, weights = torch.zeros_like(self.counts), _weights(batch).to(self.counts.dtype)
        for index, experts in chosen.items():
            if len(experts) == len(weights):
                each = weights[:, None].expand(experts.shape)
                counts[index].index_add_(0, experts.flatten().long(), each.flatten())
        return counts

    def add(self, counts: torch.Tensor | None) -> None:
        """Add the counts of a micro-batch, as `counts_of` returned them."""
        if counts is not None:
            self.counts += counts

    def metrics(self) -> dict[str, Any]:
        """The figures to log; empty for a model without experts, or whose experts could not be counted.

        `expert_load` is a list with a record for each layer: `layer`, the share of the (token, expert) pairs of its
        most and least chosen expert, and the number of experts that no token chose (`dead`). The others are the
        extremes over all layers, and the sum of the dead.
        """
        layers = [
            _figures(name, counts[:num].tolist())
            for name, num, counts in zip(self._modules, self._num_experts, self.counts, strict=True)
        ]
        found = [each for each in layers if each is not None]
        if not found:
            return {}
        return {
            "expert_max_share": max(each["max_share"] for each in found),
            "expert_min_share": min(each["min_share"] for each in found),
            "dead_experts": sum(each["dead"] for each in found),
            KEY: found,
        }


def _figures(name: str, counts: Sequence[float]) -> dict[str, Any] | None:
    total = sum(counts)
    if not total:
        return None
    number = re.search(r"\.(\d+)\.", name)
    return {
        "layer": int(number[1]) if number else 0,
        "experts": len(counts),
        "max_share": max(counts) / total,
        "min_share": min(counts) / total,
        "dead": sum(count == 0 for count in counts),
    }


def _are_numbers(value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim == 2 and value.dtype in (torch.int64, torch.int32)


def _weights(batch: Mapping[str, Any]) -> torch.Tensor:
    """In how many documents with a supervised token each computed token is, `[N]`: 0 in padding and fillers."""
    ids, boundaries, shared = batch["input_ids"], batch.get("cu_seq_lens_q"), batch.get("shared_prefixes")
    num_documents = ids.shape[0] if boundaries is None else boundaries.numel() - 1
    counts = torch.zeros(num_documents, device=ids.device).index_fill_(0, batch["target_rows"], 1.0)
    if boundaries is None:
        return (batch["attention_mask"] * counts[:, None]).flatten()
    if shared is None:
        return torch.repeat_interleave(counts, boundaries.diff(), output_size=ids.shape[1])
    order, lengths = torch.tensor(shared.order), torch.tensor(shared.lengths)
    of_pieces = lengths[order]
    starts, order, lengths = (each.to(ids.device) for each in (of_pieces.cumsum(0) - of_pieces, order, lengths))
    documents = torch.searchsorted(boundaries.long(), starts, right=True) - 1
    by_piece = counts.new_zeros(len(lengths)).index_add_(0, order, counts[documents])
    return torch.repeat_interleave(by_piece, lengths, output_size=ids.shape[1])
