"""From a model call to the loss of its supervised tokens, with no more scores than these need.

The model is called as it stands, wrapped by whatever wraps it. At the door of its output layer the hidden states of
the supervised positions are taken, and the layer itself is given none; so the scores of all other positions are never
made. This is a forward pre-hook that lasts for one call. (With sharded weights, where it was never tried, the model's
own scores are taken.)

Shapes: `B` rows, `T` tokens, `S` supervised positions, `h` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from sft.modeling.supervised_loss import (
    CountHits,
    chunk_bytes,
    cross_entropy_sum,
    linear_cross_entropy_sum,
    linear_logits,
    losses_and_hits,
)

Result = TypeVar("Result")


class OutputLayer:
    """How the losses of a model's supervised tokens are had: at its output layer, or from its scores."""

    def __init__(self, model: Any, layer: nn.Linear | None):
        """Args:
        model: the model, unwrapped.
        layer: the linear layer whose product the scores are, and nothing else (see `find_output_layer`); None if
            there is none.
        """
        self._layer = layer
        signature = inspect.signature(_base(model).forward).parameters
        self._keeps_positions = "logits_to_keep" in signature
        self._takes_no_cache = {"use_cache": False} if "use_cache" in signature else {}

    @property
    def chunk_bytes(self) -> int | None:
        """What the scores take that are made at a time; None where all of them are made."""
        return None if self._layer is None else chunk_bytes(self._layer.weight.device.type)

    def loss_sum(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        *,
        label_smoothing: float = 0.0,
        count_hits: CountHits | None = None,
    ) -> torch.Tensor:
        """Sum of the cross-entropies of the supervised tokens, in nats; float32 scalar.

        Args:
            model: the model, wrapped or not.
            inputs: what it is called with; `input_ids` `[B, T]`.
            batch: `label_positions` int64 `[S]`, into the `B * T` positions, and `targets` int64 `[S]`; with several
                rows, `kept_columns` and `kept_positions` too (see `sft.batching.layout`).
            label_smoothing: share of the target spread over the vocabulary.
            count_hits: is told how many of the targets are the most likely tokens (see `supervised_loss`).
        """
        how = {"label_smoothing": label_smoothing, "count_hits": count_hits}
        if self._layer is None:
            return cross_entropy_sum(self._logits(model, inputs, batch), batch["targets"], **how)
        layer = self._layer
        return self._at_the_door(
            model, inputs, batch["label_positions"],
            lambda hidden: linear_cross_entropy_sum(hidden, layer.weight, layer.bias, batch["targets"], **how),
        )  # fmt: skip

    def losses_and_hits(
        self, model: Any, inputs: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For evaluation: each token's cross-entropy, and whether it is the most likely one; both `[S]`.

        Arguments as for `loss_sum`.
        """
        if self._layer is None:
            return losses_and_hits(iter([self._logits(model, inputs, batch)]), batch["targets"])
        layer = self._layer
        return self._at_the_door(
            model, inputs, batch["label_positions"],
            lambda hidden: losses_and_hits(linear_logits(hidden, layer.weight, layer.bias), batch["targets"]),
        )  # fmt: skip

    def _logits(self, model: Any, inputs: Mapping[str, Any], batch: Mapping[str, Any]) -> torch.Tensor:
        """The scores of the supervised positions, `[S, V]`."""
        inputs = {**inputs, **self._takes_no_cache}
        if not self._keeps_positions:
            return model(**inputs).logits.flatten(0, 1).index_select(0, batch["label_positions"])
        if inputs["input_ids"].shape[0] == 1:
            return model(**inputs, logits_to_keep=batch["label_positions"]).logits[0]
        logits = model(**inputs, logits_to_keep=batch["kept_columns"]).logits
        return logits.flatten(0, 1).index_select(0, batch["kept_positions"])

    def _at_the_door(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        label_positions: torch.Tensor,
        compute: Callable[[torch.Tensor], Result],
    ) -> Result:
        """What `compute` makes of the supervised positions' hidden states `[S, h]`."""
        results: list[Result] = []

        def take(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = arguments[0]
            results.append(compute(hidden.flatten(0, 1).index_select(0, label_positions)))
            return (hidden[:, :0], *arguments[1:])

        with self._layer.register_forward_pre_hook(take):
            model(**inputs, **self._takes_no_cache)
        return results[0]


def find_output_layer(model: Any, call: Callable[[], Any]) -> nn.Linear | None:
    """The linear layer whose product the model's scores are, to the bit; None if they are anything more.

    Caps and scales behind the layer, adapters on it, quantized or sharded weights: all of these show in a call.

    Args:
        model: the model, unwrapped.
        call: calls it on a few tokens, and gives its output.
    """
    layer = model.get_output_embeddings()
    for name, module in [] if layer is None else layer.named_modules():
        # Saved whole beside adapters, the layer stands inside of peft's wrapper.
        if name.endswith("modules_to_save.default"):
            layer = module
    if type(layer) is not nn.Linear:
        return None
    products: list[torch.Tensor] = []

    def multiply(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        # Here and now: where weights are spread over processes, they are whole in a forward pass alone.
        products.append(functional.linear(arguments[0], layer.weight, layer.bias))

    with layer.register_forward_pre_hook(multiply), torch.no_grad():
        logits = call().logits
    if len(products) != 1 or products[0].dim() != 3 or products[0].shape != logits.shape:
        return None
    return layer if torch.equal(products[0].float(), logits.float()) else None


def _base(model: Any) -> Any:
    """The model under its adapters, whose signature tells what it takes."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
