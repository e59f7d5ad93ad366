"""From a model call to the loss of its supervised tokens, without computing other logits.

The model is called unchanged, with all its wrappers. A forward pre-hook on the output layer, registered for one call,
takes the hidden states of the supervised positions from the layer's input and passes an empty input on to the layer; so
the logits of all other positions are never computed. (With weights sharded by DeepSpeed, where this is untested, the
model's own logits are used.)

Shapes: `B` rows, `T` tokens, `S` supervised positions, `h` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from sft.modeling.few_tokens import without_cache
from sft.modeling.supervised_loss import (
    AddLoss,
    CountHits,
    Weighting,
    chunk_bytes_on,
    cross_entropy_sum,
    linear_cross_entropy_sum,
    linear_logits,
    losses_and_hits,
)

Result = TypeVar("Result")
ReadOutput = Callable[[Any], None]


class OutputLayer:
    """Computes the losses of a model's supervised tokens: at its output layer, or from its logits."""

    def __init__(self, model: Any, layer: nn.Linear | None):
        """
        Args:
            model: the model, unwrapped.
            layer: the linear layer that computes exactly the logits (see `find_output_layer`); None if there is none.
        """
        self._layer = layer
        signature = inspect.signature(_base(model).forward).parameters
        self._keeps_positions = "logits_to_keep" in signature
        self._takes_no_cache = without_cache(model)

    @property
    def chunk_bytes(self) -> int | None:
        """Bytes of a chunk of logits; None where all logits are computed at once."""
        return None if self._layer is None else chunk_bytes_on(self._layer.weight.device)

    def loss_sum(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        *,
        label_smoothing: float = 0.0,
        count_hits: CountHits | None = None,
        read_output: ReadOutput | None = None,
        add_plain_loss: AddLoss | None = None,
    ) -> torch.Tensor:
        """Sum of the cross-entropies of the targets times their weights, in nats; float32 scalar.

        Args:
            model: the model, wrapped or not.
            inputs: the arguments of the call; `input_ids` `[B, T]`.
            batch: `label_positions` int64 `[S]`, into the `B * T` positions, and `targets` int64 `[S]`; with several
                rows, `kept_columns` and `kept_positions` too, and where targets count unequally `target_weights` and
                `is_answer` (see `sft.batching.layout`).
            label_smoothing: share of the target distributed over the vocabulary.
            count_hits: called with the number of targets that are the most likely tokens (see `supervised_loss`).
            read_output: called with the model's output, whose logits are not those of all tokens.
            add_plain_loss: called with sums of the supervised tokens' cross-entropies without weights, where there are
                weights.
        """
        targets, layer = batch["targets"], self._layer
        weights, weighting = batch.get("target_weights"), None
        if weights is not None:
            weighting = Weighting(weights=weights, is_answer=batch.get("is_answer"), add_plain_loss=add_plain_loss)
        how: dict[str, Any] = {"label_smoothing": label_smoothing, "count_hits": count_hits, "weighting": weighting}
        if layer is None:
            return cross_entropy_sum(self._logits(model, inputs, batch, read_output), targets, **how)

        def compute(hidden: torch.Tensor) -> torch.Tensor:
            return linear_cross_entropy_sum(hidden, layer.weight, layer.bias, targets, **how)

        return self._from_hidden_states(model, inputs, batch["label_positions"], compute, read_output)

    def output(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The model's output without the cost of its logits, as far as the model can leave them out."""
        outputs: list[Any] = []
        nothing = torch.zeros(0, dtype=torch.int64, device=inputs["input_ids"].device)
        if self._layer is not None:
            self._from_hidden_states(model, inputs, nothing, lambda _: None, outputs.append)
            return outputs[0]
        keeps = {"logits_to_keep": 1} if self._keeps_positions else {}
        return model(**inputs, **self._takes_no_cache, **keeps)

    def losses_and_hits(
        self, model: Any, inputs: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For evaluation: each target's cross-entropy, and whether it is the most likely token; both `[S]`.

        Arguments as for `loss_sum`.
        """
        targets, layer = batch["targets"], self._layer
        if layer is None:
            return losses_and_hits(iter([self._logits(model, inputs, batch)]), targets)

        def compute(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return losses_and_hits(linear_logits(hidden, layer.weight, layer.bias), targets)

        return self._from_hidden_states(model, inputs, batch["label_positions"], compute)

    def _logits(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        read_output: ReadOutput | None = None,
    ) -> torch.Tensor:
        """The logits of the supervised positions, `[S, V]`."""
        is_one_row = inputs["input_ids"].shape[0] == 1
        kept = batch["label_positions"] if is_one_row or not self._keeps_positions else batch["kept_columns"]
        keeps = {"logits_to_keep": kept} if self._keeps_positions else {}
        output = model(**inputs, **self._takes_no_cache, **keeps)
        if read_output is not None:
            read_output(output)
        logits: torch.Tensor = output.logits.flatten(0, 1)
        if not self._keeps_positions:
            return logits.index_select(0, batch["label_positions"])
        return logits if is_one_row else logits.index_select(0, batch["kept_positions"])

    def _from_hidden_states(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        label_positions: torch.Tensor,
        compute: Callable[[torch.Tensor], Result],
        read_output: ReadOutput | None = None,
    ) -> Result:
        """Call the model; return the result of `compute` for the supervised positions' hidden states `[S, h]`."""
        results: list[Result] = []

        def take(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = arguments[0]
            results.append(compute(hidden.flatten(0, 1).index_select(0, label_positions)))
            return (hidden[:, :0], *arguments[1:])

        assert self._layer is not None
        with self._layer.register_forward_pre_hook(take):
            output = model(**inputs, **self._takes_no_cache)
        if read_output is not None:
            read_output(output)
        return results[0]


def find_output_layer(model: Any, call: Callable[[], Any]) -> nn.Linear | None:
    """The linear layer whose output is bitwise equal to the model's logits; None if there is none.

    Soft caps and scales after the layer, adapters on it, quantized or sharded weights: all of them show in a call.

    Args:
        model: the model, unwrapped.
        call: calls the model on a few tokens and returns its output.
    """
    layer = model.get_output_embeddings()
    for name, module in [] if layer is None else layer.named_modules():
        # With `modules_to_save`, the layer is inside peft's wrapper.
        if name.endswith("modules_to_save.default"):
            layer = module
    if type(layer) is not nn.Linear:
        return None
    products: list[torch.Tensor] = []

    def multiply(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        # In the hook, since sharded weights are gathered during a forward pass only.
        products.append(functional.linear(arguments[0], layer.weight, layer.bias))

    with layer.register_forward_pre_hook(multiply), torch.no_grad():
        logits = call().logits
    if len(products) != 1 or products[0].dim() != 3 or products[0].shape != logits.shape:
        return None
    return layer if torch.equal(products[0].float(), logits.float()) else None


def _base(model: Any) -> Any:
    """The model without its adapters, whose signature lists its arguments."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
