"""The load-balancing loss of a run: decided before it, and added to the gradient of each step.

A step of several micro-batches (or processes) first counts the tokens of each expert, in a forward pass without
gradients over all of them; then each micro-batch adds its share of the loss. So the step is the same for any split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from sft.batching.layout import model_inputs
from sft.common.errors import ConfigError
from sft.modeling.random_state import RandomState
from sft.modeling.router_loss import OUTPUT, RouterLoss, RouterScores, RouterSums, load_balance, router_sums
from sft.training.evaluation_step import EvaluationStep

Batch = Mapping[str, Any]
KEY = "router_aux_loss_coef"


def decide_router_loss(model: Any, scores: RouterScores | None, configured: float | None) -> RouterLoss | None:
    """The loss to train; None for none.

    Args:
        model: the model.
        scores: as tried; None if its loss is not known here.
        configured: `router_aux_loss_coef`; None for what config.json asks.

    Raises:
        ConfigError: if the settings ask for the loss of a model whose loss is not known here.
    """
    wanted = asked_coefficient(model) if configured is None else configured
    if configured and scores is None:
        raise ConfigError(
            f"{KEY}: this model returns no load-balancing loss that is a mean over its router's scores (tried with "
            f"output_router_logits). Remove the key, or write {KEY}: 0."
        )
    if not wanted or scores is None:
        return None
    return RouterLoss(coefficient=wanted, num_experts=scores.num_experts, top_k=scores.top_k)


def asked_coefficient(model: Any) -> float:
    """The coefficient that config.json asks for; 0 if it asks for none."""
    config = model.config.get_text_config()
    return float(getattr(config, KEY, None) or 0) if getattr(config, "output_router_logits", False) else 0.0


def router_line(
    loss: RouterLoss | None, scores: RouterScores | None, model: Any, configured: float | None
) -> str | None:
    """A line for the log about the loss that is trained, or that could be; None for a model without one."""
    if scores is None:
        return None
    asked = asked_coefficient(model)
    source = KEY if configured is not None else "config.json asks for it"
    if loss is not None:
        return (
            f"Router loss: {loss.coefficient:g} times the load-balancing loss over the tokens of the global batch is "
            f"trained ({source}; {KEY}: 0 turns it off) and logged as router_aux_loss, not as part of the loss. A step "
            "of several micro-batches or processes needs one more forward pass for it."
        )
    if asked:
        return f"Router loss: not trained ({KEY}: 0), though config.json asks for it with a coefficient of {asked:g}."
    reason = f"{KEY}: 0" if configured is not None else "config.json does not ask for it: output_router_logits"
    return f"Router loss: not trained ({reason}). {KEY} sets its coefficient."


def add_router_balance(trainer: Any) -> "RouterBalance | None":
    """What adds the run's load-balancing loss; None if it trains none."""
    loss = trainer.setup.prepared.router_loss
    if loss is None:
        return None
    balance = RouterBalance(trainer, loss)
    trainer.add_callback(balance)
    return balance


class RouterBalance(TrainerCallback):
    """Adds the load-balancing loss to the micro-batches of a step."""

    def __init__(self, trainer: Any, loss: RouterLoss):
        """
        Args:
            trainer: runs the micro-batches.
            loss: what to add.
        """
        self._trainer = trainer
        self._loss = loss
        self._batches: Sequence[Batch] = ()
        self._divisor: torch.Tensor = torch.zeros(())
        self._counted: RouterSums | None = None
        """Sums over the global batch; None where the step is one micro-batch, which has them itself."""
        self._value: torch.Tensor = torch.zeros(())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds the step's loss, without its coefficient, to the mean that is logged; 0 if it is NaN or inf."""
        self._trainer.means.add_router_loss(torch.where(self._value.isfinite(), self._value, 0.0))

    def begin_step(self, batches: Sequence[Batch], divisor: torch.Tensor) -> None:
        """Counts the step's tokens, if they are in more than one micro-batch. All processes call it.

        Args:
            batches: of this process, on the device.
            divisor: what the loss of a micro-batch is divided by later.
        """
        self._batches, self._divisor, self._counted = batches, divisor, None
        step = self._trainer.step_gradient
        if len(batches) > 1 or self._trainer.context.world_size > 1 or (step and step.chunks.num_chunks > 1):
            self._count()

    def restart_step(self) -> None:
        """Prepares the same step for smaller chunks. All processes call it."""
        if self._counted is None:
            self._count()

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of the model for a micro-batch."""
        return {**model_inputs(batch), **OUTPUT}

    def reader(self, batch: Batch, receive: Callable[[torch.Tensor], None]) -> Callable[[Any], None]:
        """A function of the model's output that hands over the micro-batch's share of the loss.

        The share is multiplied by what the sum of the token losses is divided by. Weights in the loss do not change it:
        experts are balanced over the tokens that they compute.
        """

        def read(output: Any) -> None:
            sums = self._sums(output, batch)
            counted = self._counted or sums
            self._value = load_balance(counted.counts, counted.probabilities.detach(), counted.tokens)
            share = load_balance(counted.counts, sums.probabilities, counted.tokens)
            receive(self._loss.coefficient * self._divisor * share)

        return read

    def _sums(self, output: Any, batch: Batch) -> RouterSums:
        logits, weights = output.router_logits, batch["token_weights"]
        if torch.is_grad_enabled() and not any(each.requires_grad for each in logits):
            raise ConfigError(
                f"{KEY}: nothing that is trained changes the router's scores, or gradient checkpointing with "
                f"use_reentrant: true hides them. Write use_reentrant: false, or {KEY}: 0."
            )
        return router_sums(logits, weights, self._loss.top_k)

    @torch.no_grad()
    def _count(self) -> None:
        """Sums over the micro-batches of all processes, in training mode and with the random numbers of the step."""
        trainer, layout = self._trainer, self._trainer.layout
        device = trainer.args.device
        total = torch.zeros(2 * self._loss.num_experts + 1, dtype=torch.float32, device=device)
        random_state = RandomState.capture(trainer.context.device)
        step = EvaluationStep(
            layout.evaluation_collator,
            trainer.setup.plan.per_device_train_batch_size,
            device,
            can_split=not trainer.is_sharded,
            activity="counting the experts' tokens",
        )
        trainer.model.train()
        with trainer.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            for sums in self._each(step, layout):
                total += torch.cat([sums.counts, sums.probabilities, sums.tokens.reshape(1)])
        random_state.restore()
        if trainer.context.world_size > 1:
            distributed.all_reduce(total)
        counts, probabilities, tokens = total.split([self._loss.num_experts, self._loss.num_experts, 1])
        self._counted = RouterSums(counts, probabilities, tokens.squeeze())

    def _each(self, step: EvaluationStep, layout: Any) -> Iterator[RouterSums]:
        def compute(chunk: Batch) -> RouterSums:
            return self._sums(layout.output.output(self._trainer.model, self.inputs(chunk)), chunk)

        for batch in self._batches:
            for _, sums in step.run(batch, compute):
                yield sums
