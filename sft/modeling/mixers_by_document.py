"""Convolutions, recurrences and state spaces of a packed row: such a mixer alone runs document by document.

A mixer passes on what came before within a row, and only some take the boundaries of documents, by kernels of packages
that may be missing. The rest of the model needs no boundaries, so it stays packed: a pre-hook hands the mixer the first
document, a hook after it runs the others and joins the results. Hooks are public, leave the names of weights and the
module's class alone, and are inert in a call without boundaries, as in generation.

Which modules need this is tried: one row is run, and in each part of a layer the gradient of the row's second half with
respect to its first half must be zero if the two halves are declared documents.

Shapes: `N` tokens of the row, `L` of a document, `h` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sft.common.device_errors import reraise_device_error
from sft.modeling.document_attention import UnsupportedAttention, isolated_documents
from sft.modeling.few_tokens import base_of, few_tokens, without_cache
from sft.modeling.varlen_kernel import KernelObstacle

_NUM_TOKENS = 14
_FIRST = 5
"""Tokens of the first document."""
_OF_THE_ROW = (
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "document_lengths",
    "shared_prefixes",
    "seq_idx",
)
"""Arguments that describe the whole row; a document alone gets none of them."""
_HIDDEN = "hidden_states"
_Call = tuple[tuple[Any, ...], dict[str, Any]]


def find_mixers(
    model: Any, lay_out: Callable[[list[list[int]]], Mapping[str, Any]], attention: str | None
) -> list[str]:
    """The parts of layers that pass on something between documents, by their names in the model.

    Args:
        model: on the device and in the types of training, under autocast if training uses it.
        lay_out: makes the inputs of a call from documents' tokens: on the model's device, all in one row.
        attention: the attention that isolates documents (see `isolated_documents`).
    """
    tokens = few_tokens(model, _NUM_TOKENS)
    of_two = lay_out([tokens[:_FIRST], tokens[_FIRST:]])
    found: list[str] = []

    def hook(name: str) -> Callable[..., _Call | None]:
        def try_part(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
            if not _passes_on(module, args, kwargs | {key: of_two[key] for key in kwargs.keys() & of_two.keys()}):
                return None
            found.append(name)
            return args, _without_row(kwargs)  # some refuse even the boundaries of a single document

        return try_part

    was_training = model.training
    model.eval()
    handles = [part.register_forward_pre_hook(hook(name), with_kwargs=True) for name, part in _parts_of_layers(model)]
    try:
        with torch.no_grad(), isolated_documents(model, attention):
            model(**lay_out([tokens]), **without_cache(model))
    except Exception as error:  # a model's own code may fail in any way
        reraise_device_error(error)
        return []
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return list(dict.fromkeys(found))


def run_by_document(model: Any, names: Sequence[str]) -> list[Any]:
    """Run these modules document by document wherever the model is called with the boundaries of documents.

    Args:
        model: with or without adapters.
        names: as `find_mixers` returns them.

    Returns:
        The handles of the hooks; `remove` of all of them undoes it.
    """
    if not names:
        return []
    row, base = _Row(without_cache(model)), base_of(model)
    handles = [base.register_forward_pre_hook(row.note, with_kwargs=True)]
    for name in names:
        mixer, calls = model.get_submodule(name), _Calls(row)
        handles.append(mixer.register_forward_pre_hook(calls.begin, with_kwargs=True))
        handles.append(mixer.register_forward_hook(calls.finish, with_kwargs=True))
    return handles


class _Row:
    """The documents of the row that the model computes, for mixers that are not passed the boundaries."""

    def __init__(self, without_cache: Mapping[str, Any]):
        self._without_cache = without_cache
        self.lengths: list[int] | None = None

    @torch.compiler.disable
    def note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        self.lengths = _lengths(kwargs)
        # A cache would hand the state after one document on to the next.
        return None if self.lengths is None else (args, kwargs | dict(self._without_cache))


class _Calls:
    """The calls of one mixer that remain after that for the first document."""

    def __init__(self, row: _Row):
        self._row = row
        self._remaining: list[_Call] = []

    @torch.compiler.disable
    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        self._remaining = []
        # Under gradient checkpointing layers run again without the model, so what the layer passes on comes first.
        lengths = _lengths(kwargs) or self._row.lengths
        hidden = _hidden(args, kwargs)
        if hidden is None or lengths is None or len(lengths) < 2 or sum(lengths) != hidden.shape[1]:
            return None
        first, *self._remaining = _split_call(args, kwargs, lengths, tuple(hidden.shape[:2]))
        return first

    @torch.compiler.disable
    def finish(self, module: nn.Module, _: tuple[Any, ...], __: dict[str, Any], output: Any) -> Any:
        if not self._remaining:
            return None
        remaining, self._remaining = self._remaining, []
        outputs = [output, *(module.forward(*args, **kwargs) for args, kwargs in remaining)]
        if not isinstance(output, tuple):
            return torch.cat(outputs, dim=1)
        joined = zip(*outputs, strict=True)
        return tuple(torch.cat(each, dim=1) if torch.is_tensor(each[0]) else each[0] for each in joined)


def _split_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], lengths: Sequence[int], shape: tuple[int, ...]
) -> list[_Call]:
    """The call for each document: tensors of the row `[1, N, ...]` in parts, all else as it is."""

    def parts(value: Any) -> Iterator[Any]:
        if torch.is_tensor(value) and tuple(value.shape[:2]) == shape:
            yield from value.split(list(lengths), dim=1)
        elif isinstance(value, tuple):
            yield from zip(*(parts(each) for each in value), strict=True)
        else:
            yield from (value for _ in lengths)

    kept = _without_row(kwargs)
    positional = zip(*(parts(value) for value in args), strict=True) if args else (() for _ in lengths)
    by_name = zip(*(parts(value) for value in kept.values()), strict=True) if kept else (() for _ in lengths)
    return [(each, dict(zip(kept, values, strict=True))) for each, values in zip(positional, by_name, strict=True)]


def _parts_of_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The direct children of every module in a list of modules."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            for index, layer in module.named_children():
                yield from ((f"{name}.{index}.{key}", part) for key, part in layer.named_children())


def _without_row(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in _OF_THE_ROW}


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The hidden states `[1, N, h]` of a call; None if it has none."""
    value = args[0] if args else kwargs.get(_HIDDEN)
    is_row = torch.is_tensor(value) and value.ndim == 3 and value.shape[0] == 1 and value.is_floating_point()
    return value if is_row else None


def _lengths(kwargs: Mapping[str, Any]) -> list[int] | None:
    """The documents' lengths that a call is passed; reading them from the boundaries waits for a GPU."""
    if kwargs.get("document_lengths") is not None:
        return list(kwargs["document_lengths"])
    boundaries = kwargs.get("cu_seq_lens_q")
    return None if boundaries is None else [length for length in boundaries.diff().tolist() if length]


def _passes_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the second document of a call's row depends on the first, or the module refuses to tell them apart."""
    hidden = _hidden(args, kwargs)
    if hidden is None or hidden.shape[1] != _NUM_TOKENS:
        return False
    leaf = hidden.detach().requires_grad_()
    args, kwargs = ((leaf, *args[1:]), kwargs) if args else (args, kwargs | {_HIDDEN: leaf})
    try:
        with torch.enable_grad():
            output = module.forward(*args, **kwargs)
            output = output[0] if isinstance(output, tuple) else output
            if not torch.is_tensor(output) or output.shape[:2] != hidden.shape[:2] or not output.requires_grad:
                return False
            # A different weight for each value: a plain sum may cancel out after a norm.
            weights = torch.linspace(-1, 1, output.shape[-1], device=output.device)
            (gradient,) = torch.autograd.grad((output[:, _FIRST:].float() * weights).sum(), leaf, allow_unused=True)
    except (UnsupportedAttention, KernelObstacle):
        return False
    except Exception as error:  # some refuse rows of several documents without a package
        reraise_device_error(error)
        return True
    return gradient is not None and bool(gradient[:, :_FIRST].abs().max() > 0)
