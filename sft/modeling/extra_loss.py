"""Does the model's own loss have a term beside the cross-entropy that is not trained? Tried on a few tokens.

The load-balancing loss of a mixture of experts is trained or reported by itself (`router_loss.py`), where it is known.
Any other term is not trained, with a line in the log: what depends on the other tokens of a batch would depend on how a
step is split, and a run must stay the same for any split of its steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from sft.common.device_errors import reraise_device_error
from sft.modeling.few_tokens import call_on, few_tokens

_NUM_TOKENS = 16
_TOLERANCE = 2e-5
"""Of the difference between two computations from the same logits, as a share of the loss."""
_KNOWN_TOLERANCE = 2e-2
_COEFFICIENT = re.compile(r".*(aux|z_loss|router|balanc).*(coef|weight|alpha).*")


def untrained_loss_line(model: Any, router_loss: float | None = None) -> str | None:
    """A line about the term that is not trained; None if the model's loss is the cross-entropy alone.

    Args:
        model: on the device and in the types of training, under autocast if training uses it.
        router_loss: a term of the loss on these tokens that is dealt with elsewhere; None if there is none.
    """
    difference = _difference(model, router_loss or 0.0)
    config = model.config.get_text_config()
    causes = ", ".join(f"{key}: {value}" for key, value in _coefficients(config.to_dict()))
    if difference:
        what = f"a router loss ({causes} in config.json)" if causes else "another term"
        found = f"The model's own loss adds {what} to the cross-entropy, {difference:+.2g} on a few tokens"
    elif router_loss is None and causes and getattr(config, "output_router_logits", False):
        found = f"config.json asks for a router loss ({causes})"
    else:
        return None
    return (
        f"{found}. It is not trained: it would depend on how a step is split over micro-batches and processes. The "
        "loss of this run is the cross-entropy of the supervised tokens alone."
    )


def _difference(model: Any, known: float) -> float:
    """What the model's loss has beside the cross-entropy and a known term; 0 for nothing, or if it cannot be tried."""
    was_training = model.training
    model.eval()
    try:
        ids = torch.tensor([few_tokens(model, _NUM_TOKENS)], device=model.device)
        with torch.no_grad():
            output = call_on(model, ids, labels=ids)
        scores, loss = output.logits[0], float(output.loss)
        # Some models compute it in 16 bits, or expect labels that are shifted already.
        plain = [
            float(functional.cross_entropy(logits, targets))
            for each in (scores.float(), scores)
            for logits, targets in ((each[:-1], ids[0, 1:]), (each, ids[0]))
        ]
    except Exception as error:  # the model takes no labels, or its logits are not those of all tokens
        reraise_device_error(error)
        return 0.0
    finally:
        model.train(was_training)
    difference = min((loss - known - each for each in plain), key=abs)
    # A known term may be rounded to 16 bits.
    tolerance = _TOLERANCE * max(plain[0], 1.0) + _KNOWN_TOLERANCE * abs(known)
    return difference if abs(difference) > tolerance else 0.0


def _coefficients(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings that are the weight of such a term, without those of 0."""
    numbers = {key: value for key, value in settings.items() if isinstance(value, int | float) and value}
    return [(key, value) for key, value in numbers.items() if _COEFFICIENT.fullmatch(str(key))]
