"""Which modules does text pass through? Tried on a few tokens, since models differ in more ways than names could tell.

A vision tower, a projector of images, or a head for other predictions is in the model and takes no part in a text run:
an adapter there would stay as it was initialized.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sft.common.device_errors import reraise_device_error
from sft.common.errors import one_line
from sft.common.text import percent
from sft.modeling.architecture import other_inputs
from sft.modeling.few_tokens import call_on, few_tokens
from sft.modeling.own_parameters import kinds_of, num_parameters, own_parameters, unpacked_count

logger = logging.getLogger("sft.model")
_NUM_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPath:
    """What a row of text showed about the modules of a model, by their names."""

    unused: Sequence[str] = ()
    """The largest modules with parameters that text does not reach."""
    unsuited: Sequence[str] = ()
    """Linear layers that return more than a tensor (some routers do), which an adapter cannot add to."""


def try_text_path(model: Any) -> TextPath:
    """Run the model on a few tokens; where it fails, every module counts as reached, and a line is logged.

    Args:
        model: without adapters, on any device.
    """
    outputs: dict[int, Any] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        outputs[id(module)] = type(output)

    was_training, hooks = model.training, [module.register_forward_hook(note) for module in model.modules()]
    model.eval()
    try:
        ids = torch.tensor([few_tokens(model, _NUM_TOKENS)], device=model.device)
        with torch.enable_grad():
            used = _parameters_behind(call_on(model, ids).logits)
    except Exception as error:  # a model's own code may fail in any way
        reraise_device_error(error)
        logger.info("Could not test which layers text passes through, so all of them count: %s", one_line(error))
        return TextPath()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    reached = outputs.keys() | {
        id(module) for module in model.modules() if any(id(each) in used for each in module.parameters(recurse=False))
    }
    return TextPath(
        unused=tuple(_unreached(model, "", reached)),
        unsuited=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not issubclass(outputs.get(id(module), torch.Tensor), torch.Tensor)
        ),
    )


def unused_line(model: Any, unused: Sequence[str], *, adapters: bool) -> str | None:
    """A line about modules that a row of text does not reach; None if there are none.

    Args:
        model: with or without adapters.
        unused: as `try_text_path` finds them.
        adapters: whether adapters are trained, or all weights.
    """
    if not unused:
        return None
    counts = [unpacked_count(value) for name, value in own_parameters(model) if is_inside(name, unused)]
    share = percent(sum(counts), num_parameters(model))
    return (
        f"Text does not reach {kinds_of(unused)} ({share} of the parameters), which "
        f"{'gets no adapters' if adapters else 'is frozen, and saved as it is'}."
    )


def freeze_unused_modules(model: Any) -> None:
    """Freeze, with a line, what text does not reach in a run that trains all weights.

    Tried where the model has more than one part: they have no gradient, and stay as they are.
    """
    if model.config.get_text_config() is model.config and not other_inputs(model.config):
        return
    unused = try_text_path(model).unused
    for name, weight in model.named_parameters():
        if is_inside(name, unused):
            weight.requires_grad_(False)
    line = unused_line(model, unused, adapters=False)
    if line is not None:
        logger.info(line)


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a module or parameter of this name is one of the modules, or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _parameters_behind(output: torch.Tensor) -> set[int]:
    """The ids of the parameters that an output was computed from, by its graph: some modules use others' weights."""
    found: set[int] = set()
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _unreached(module: nn.Module, name: str, reached: Set[int]) -> Iterator[str]:
    children = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
    kinds = {type(child) for _, child in children if _is_reached(child, reached)}
    for child_name, child in children:
        if _is_reached(child, reached):
            yield from _unreached(child, child_name, reached)
        # An expert that none of the few tokens was routed to stands beside others of its kind.
        elif not (isinstance(module, nn.ModuleList) and type(child) in kinds) and any(True for _ in child.parameters()):
            yield child_name


def _is_reached(module: nn.Module, reached: Set[int]) -> bool:
    return any(id(each) in reached for each in module.modules())
