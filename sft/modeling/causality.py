"""Is the model causal? Tried on a few tokens: no score may depend on a later token.

Training predicts each token from those before it. A model that also sees the tokens after it (BERT and other encoders,
XLNet) would copy the answers that it is trained on: its loss and accuracy would be perfect, its answers worthless.

Shapes: `N` tokens, `h` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from sft.common.device_errors import reraise_device_error
from sft.common.errors import ModelError, one_line
from sft.common.outside_files import outside_file
from sft.modeling.architecture import auto_class
from sft.modeling.few_tokens import call_on, few_tokens
from sft.modeling.random_state import RandomState

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("sft.model")
_NUM_TOKENS = 9
_MOST_PARAMETERS = 100_000_000
_LEAST_SHARE = 1e-5
"""Smallest gradient of the last token that counts, as a share of the largest one: a masked token's is exactly zero, but
for models that compute by Fourier transform; one of nine tokens that are seen has a share of 1e-3 and more."""


def check_computes(model: Any) -> None:
    """Run the model on a few tokens as in training: values of its config.json may only fail there.

    Random numbers are as before.

    Raises:
        ModelError: if it raises an error.
    """
    was_training, random_state = model.training, RandomState.capture(str(model.device))
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    problem = f"{name}: the model cannot compute even {_NUM_TOKENS} tokens; check the values in its config.json"
    try:
        with outside_file(problem, ModelError), torch.no_grad():
            model.train()
            call_on(model, torch.tensor([few_tokens(model, _NUM_TOKENS)], device=model.device))
    finally:
        model.train(was_training)
        random_state.restore()


def check_is_causal(model: Any) -> None:
    """Run the model on a few tokens; their scores must not depend on the last of them.

    Args:
        model: on the device and in the types of training, under autocast if training uses it.

    Raises:
        ModelError: if they do.
    """
    was_training = model.training
    model.eval()
    try:
        ids = torch.tensor([few_tokens(model, _NUM_TOKENS + 1)], device=model.device)
        sees = _sees_last_token(model, ids)
    except Exception as error:  # a model's own code may fail in any way
        reraise_device_error(error)
        logger.info("Could not test whether the model is causal: %s", one_line(error))
        return
    finally:
        model.train(was_training)
    if sees:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        encoder = " (is_decoder is false)" if getattr(base.config, "is_decoder", None) is False else ""
        raise ModelError(
            f"model_name_or_path: {type(base).__name__} is not causal{encoder}: its score of a token depends on the "
            "tokens after it, so it would learn to copy the answers, not to write them. Choose a decoder-only (causal) "
            "language model."
        )


def check_config_is_causal(config: "PretrainedConfig") -> None:
    """As `check_is_causal`, before there are weights: on a random model of one layer and few tokens.

    A layer of more than 100 million parameters is not tried: it is none of an encoder, and would take gigabytes.

    Args:
        config: of a model that transformers loads as a causal language model.

    Raises:
        ModelError: if it is not causal.
    """
    loader = auto_class(config) or AutoModelForCausalLM
    layers = getattr(config, "num_hidden_layers", None)
    settings: dict[str, Any] = {"num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0}
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == layers:
            settings[key] = value[:1]  # of each layer
    try:
        with torch.device("meta"):
            small = type(config).from_dict(config.to_dict() | settings)
            size = sum(weight.numel() for weight in loader.from_config(small).parameters())
        if size > _MOST_PARAMETERS:
            return
        random_state = RandomState.capture("cpu")
        model = loader.from_config(small, dtype=torch.float32)
        random_state.restore()
    except Exception as error:  # another shape of configuration: the run tries the model itself
        reraise_device_error(error)
        return
    check_is_causal(model)


def _sees_last_token(model: Any, ids: torch.Tensor) -> bool:
    """Whether scores at earlier positions depend on the last token; `ids` is `[1, N + 1]`, a substitute at its end."""
    try:
        return _gradient_reaches_last_token(model, ids[:, :-1])
    except RuntimeError as error:
        # Some models overwrite tensors that a backward pass needs, outside of training mode.
        reraise_device_error(error)
    changed = torch.cat([ids[:, :-2], ids[:, -1:]], dim=1)
    with torch.no_grad():
        before, after = _scores(model, ids[:, :-1]), _scores(model, changed)
    moved, moved_last = (before - after)[:-1].abs().max(), (before - after)[-1].abs().max()
    return bool(moved > 1e-2 * moved_last)


def _gradient_reaches_last_token(model: Any, ids: torch.Tensor) -> bool:
    embedded: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some models write into their embeddings

    with model.get_input_embeddings().register_forward_hook(keep), torch.enable_grad():
        scores = _scores(model, ids)
        # A different weight for each score: a plain sum may cancel out after a norm.
        weights = torch.linspace(-1, 1, scores.shape[1], device=scores.device)
        (gradient,) = torch.autograd.grad((scores[:-1] * weights).sum(), embedded[0])
    gradient = gradient.flatten(0, -2).float().abs()
    return bool(gradient[-1].max() > _LEAST_SHARE * gradient.max())


def _scores(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits, float32 `[N, V]`."""
    return call_on(model, ids).logits[0].float()
