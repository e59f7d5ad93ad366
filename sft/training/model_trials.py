"""Trials on the loaded model: a few tokens show whether it is causal, and how its rows and its loss can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft.batching.layout import FlatCollator, PaddedCollator, model_inputs
from sft.batching.prefixes import MIN_SHARED
from sft.common.data_records import IGNORED
from sft.common.device_errors import reraise_device_error
from sft.common.errors import one_line
from sft.common.run_records import Precision
from sft.modeling.causality import check_computes, check_is_causal
from sft.modeling.document_attention import NAME as DOCUMENTS
from sft.modeling.document_attention import ONE_BY_ONE, attention_of, isolated_documents
from sft.modeling.extra_loss import untrained_loss_line
from sft.modeling.isolation import find_obstacle, tolerance
from sft.modeling.mixers_by_document import find_mixers, run_by_document
from sft.modeling.output_layer import find_output_layer
from sft.modeling.padded_attention import NAME as PADDED
from sft.modeling.padded_attention import register_padded_attention
from sft.modeling.router_loss import RouterScores, try_router_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel
SHARING_TOLERANCE = 1e-3
"""As `isolation.tolerance`. Here float32 rounds up to 1.1e-4 of the largest logit on a real model (SmolLM2-135M, from 4
bits; 0 in float64); a model that does not attend to the shared tokens is wrong by far more than this."""


class ModelTrials:
    """Runs the model on a few tokens, with the precision of its training."""

    def __init__(self, model: "PreTrainedModel", precision: Precision):
        self._model = model
        self._mixed = precision.mixed

    def check_is_causal(self) -> None:
        """Checks that the model computes, and that no score depends on a later token.

        Raises:
            ModelError: if it does not, or one does.
        """
        with self._autocast():
            check_computes(self._model)
            check_is_causal(self._model)

    def router_scores(self) -> RouterScores | None:
        """What the model's load-balancing loss is made of; None if it has none that is known here."""
        with self._autocast():
            return try_router_scores(self._model)

    def untrained_loss_line(self, router_loss: float | None = None) -> str | None:
        """A line about a term of the model's own loss that training leaves out; None if there is none.

        Args:
            router_loss: the part that is trained, or reported already; None if there is none.
        """
        with self._autocast():
            return untrained_loss_line(self._model, router_loss)

    def obstacle(
        self, attention: str | None, max_seq_length: int, mixers: Sequence[str] = (), *, numbers_documents: bool = False
    ) -> str | None:
        """Why the model does not support padding-free batches; None if it does.

        Args:
            attention: the attention that isolates documents; None for the model's own.
            max_seq_length: tokens of the longest row.
            mixers: the modules that run document by document in this trial.
            numbers_documents: whether the model is passed the number of each token's document.

        Raises:
            KernelObstacle: if only torch's kernel for packed rows cannot be used.
        """
        hooks = run_by_document(self._model, mixers)
        try:
            with self._autocast():
                lay_out = partial(self._collate, attention, numbers_documents=numbers_documents)
                found = find_obstacle(self._model, lay_out, attention, max_seq_length)
        finally:
            for hook in hooks:
                hook.remove()
        return found and f"the model {found}"

    def mixers(self, attention: str | None) -> list[str]:
        """The parts of layers that let one document of a row influence another, by their names."""
        with self._autocast():
            return find_mixers(self._model, partial(self._collate, attention), attention)

    def sharing_obstacle(self, attention: str | None = DOCUMENTS) -> str | None:
        """Why leading tokens that two documents share cannot be computed once, as a clause; None if they can be.

        Args:
            attention: `DOCUMENTS`, or `ONE_BY_ONE`.
        """
        dropout = "with dropout, the same values would be dropped in all rows"
        if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self._model.modules()):
            return dropout
        shared = list(range(3, 3 + MIN_SHARED))
        documents = [[*shared, 1, 2], [*shared, 2]]
        was_training = self._model.training
        try:
            with self._autocast(), torch.no_grad(), isolated_documents(self._model, attention):
                self._model.train()  # dropout may also be a function, which no module reveals
                outputs = [self._model(**self._collate(attention, documents)).logits for _ in range(2)]
                if not torch.equal(*outputs):
                    return dropout
                self._model.eval()
                twice = self._model(**self._collate(attention, documents)).logits[0].float()
                once = self._model(**self._collate(attention, documents, shares_prefixes=True)).logits[0].float()
        except Exception as error:
            reraise_device_error(error)
            return f"the model does not pass them on to its attention ({one_line(error, 120)})"
        finally:
            self._model.train(was_training)
        expected = torch.cat([twice[: len(documents[0])], twice[-1:]])
        allowed = max(tolerance(self._model), SHARING_TOLERANCE)
        is_equal = torch.allclose(once, expected, rtol=0, atol=allowed * float(expected.abs().max()))
        return None if is_equal else "the model's results differ if they are computed once"

    def can_skip_padding_mask(self, pad_token_id: int) -> bool:
        """Whether padded rows have the same logits without a mask for the padding. Tried with sdpa only."""
        if attention_of(self._model) != "sdpa":
            return False
        rows = [{"input_ids": np.arange(3, 3 + length), "labels": np.full(length, IGNORED)} for length in (5, 9)]
        batch = model_inputs(PaddedCollator(pad_token_id)(rows))
        inputs = {key: value.to(self._model.device) for key, value in batch.items()}
        is_token, was_training = inputs["attention_mask"][..., None] > 0, self._model.training
        self._model.eval()
        register_padded_attention()
        try:
            with self._autocast(), torch.no_grad():
                expected = torch.where(is_token, self._model(**inputs).logits.float(), 0)
                with isolated_documents(self._model, PADDED):
                    found = torch.where(is_token, self._model(**inputs).logits.float(), 0)
        except Exception as error:
            reraise_device_error(error)
            return False  # the model chooses its attention in another way, whatever the error
        finally:
            self._model.train(was_training)
        return torch.allclose(found, expected, rtol=0, atol=tolerance(self._model) * float(expected.abs().max()))

    def output_layer(self) -> torch.nn.Linear | None:
        """The layer whose output is the logits; None if the logits are computed in another way."""
        # Three tokens, because a product with one row may use a different kernel.
        ids = torch.tensor([[1, 2, 3]], device=self._model.device)
        was_training = self._model.training
        self._model.eval()
        try:
            with self._autocast():
                return find_output_layer(self._model, lambda: self._model(input_ids=ids))
        except Exception as error:
            reraise_device_error(error)
            return None  # the model rejects this call: its own logits are used
        finally:
            self._model.train(was_training)

    def _autocast(self) -> Any:
        if self._mixed == "no":
            return nullcontext()
        dtype = torch.bfloat16 if self._mixed == "bf16" else torch.float16
        return torch.autocast(self._model.device.type, dtype=dtype)

    def _collate(
        self,
        attention: str | None,
        documents: Sequence[Sequence[int]],
        *,
        shares_prefixes: bool = False,
        numbers_documents: bool = False,
    ) -> dict[str, Any]:
        rows = [{"input_ids": np.array(ids), "labels": np.full(len(ids), IGNORED)} for ids in documents]
        collator = FlatCollator(
            0,
            shares_prefixes=shares_prefixes,
            lists_lengths=attention == ONE_BY_ONE,
            numbers_documents=numbers_documents,
        )
        batch = model_inputs(collator(rows))
        device = self._model.device
        return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
