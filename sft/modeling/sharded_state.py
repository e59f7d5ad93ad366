"""State that FSDP2 spreads over processes (`DTensor`, cut along the first dimension): gathered, and dealt out.

Whole, it is what a model and an optimizer that are not spread have, so that either goes on from the other's files. In
parts, each process writes files of its own, and reads what it needs of them, whatever the number of processes was. No
file is read by a pickle that could run code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

_WEIGHTS, _OPTIMIZER = "weights-{}-of-{}.safetensors", "optimizer-{}-of-{}.pt"
_WHOLE_ADAPTERS, _WHOLE_WEIGHTS = "adapter_model.safetensors", "model*.safetensors"


def gather_weights(model: nn.Module, *, keep: bool, trained_only: bool) -> dict[str, torch.Tensor]:
    """Weights and saved buffers, whole, in main memory. All processes must call it.

    Args:
        model: with spread weights.
        keep: whether this process wants them; the others get an empty mapping.
        trained_only: leave out what is frozen.
    """
    return {
        name: whole
        for name, tensor in _weights_of(model, trained_only=trained_only)
        if (whole := _gathered(tensor, keep=keep)) is not None
    }


def gather_optimizer_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """An optimizer's state as if its weights were whole. All processes must call it.

    Args:
        optimizer: of spread weights.
        keep: whether this process wants it; the others get one without tensors.
    """
    return _with_state(optimizer.state_dict(), lambda _, __, value: _gathered(value, keep=keep))


def load_full_weights(folder: Path, model: nn.Module) -> list[str]:
    """Reads this process's part of the weights from a folder as `save_pretrained` writes it.

    Returns:
        Names of trained weights that are not there.
    """
    adapters = folder / _WHOLE_ADAPTERS
    with ExitStack() as open_files:
        files = [adapters] if adapters.is_file() else sorted(folder.glob(_WHOLE_WEIGHTS))
        read: dict[str, Callable[[], torch.Tensor]] = {}
        for path in files:
            file = open_files.enter_context(safe_open(path, "pt"))
            read |= {name: lambda file=file, name=name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if adapters.is_file():
            read = {name: read[saved] for saved, name in _adapter_names(model).items() if saved in read}
        return _set_weights(model, read)


def load_full_optimizer_state(path: Path, optimizer: Any) -> None:
    """Reads this process's part of an optimizer's state from a file that holds all of it."""
    document = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    weights = _weights_in_order(optimizer)
    optimizer.load_state_dict(_with_state(document, lambda number, _, value: _dealt_out(value, weights[number])))


def save_shards(folder: Path, model: nn.Module, optimizer: Any, place: tuple[int, int], *, trained_only: bool) -> None:
    """Writes this process's part of weights and optimizer. Talks to no other process.

    Args:
        folder: of the checkpoint.
        model, optimizer: with spread weights; None for the optimizer saves weights alone.
        place: this process's rank, and how many there are.
        trained_only: leave out what is frozen.
    """
    number, count = place[0] + 1, place[1]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _part(tensor) for name, tensor in _weights_of(model, trained_only=trained_only)}
    save_file(weights, folder / _WEIGHTS.format(number, count), metadata={"format": "pt"})
    if optimizer is not None:
        document = _with_state(optimizer.state_dict(), lambda _, __, value: _part(value))
        torch.save(document, folder / _OPTIMIZER.format(number, count))


def num_shards(folder: Path) -> int:
    """In how many parts a checkpoint's weights lie; 0 if they lie there whole."""
    names = (re.fullmatch(r"weights-1-of-(\d+)\.safetensors", path.name) for path in folder.glob("weights-1-of-*"))
    return next((int(match.group(1)) for match in names if match), 0)


def load_weight_shards(folder: Path, model: nn.Module) -> list[str]:
    """Reads this process's part of the weights from what any number of processes wrote.

    Returns:
        Names of trained weights that are not there.
    """
    count = num_shards(folder)
    with ExitStack() as open_files:
        paths = [folder / _WEIGHTS.format(number, count) for number in range(1, count + 1)]
        files = [open_files.enter_context(safe_open(path, "pt")) for path in paths]
        there = list(files[0].keys())
        like = model.state_dict()
        read = {
            name: lambda name=name: _joined([lambda file=file: file.get_tensor(name) for file in files], like[name])
            for name in there
            if name in like
        }
        return _set_weights(model, read)


def load_optimizer_shards(folder: Path, optimizer: Any) -> None:
    """Reads this process's part of the optimizer's state likewise."""
    count, weights = num_shards(folder), _weights_in_order(optimizer)
    paths = [folder / _OPTIMIZER.format(number, count) for number in range(1, count + 1)]
    parts = [torch.load(path, weights_only=True, mmap=True, map_location="cpu") for path in paths]

    def own(number: int, name: str, _: Any) -> Any:
        values = [part["state"][number][name] for part in parts]
        if not torch.is_tensor(values[0]) or values[0].dim() == 0:
            return values[0]
        whole = _joined([lambda value=value: value for value in values], weights[number])
        return _dealt_out(whole, weights[number])

    optimizer.load_state_dict(_with_state(parts[0], own))


def _weights_of(model: nn.Module, *, trained_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of what is saved; a weight that stands in two places (a tied head) once."""
    once = dict(model.named_parameters())
    twice = dict(model.named_parameters(remove_duplicate=False)).keys() - once.keys()
    for name, tensor in model.state_dict().items():  # which brings the parts back where a forward pass gathered them
        is_left_out = trained_only and not (name in once and once[name].requires_grad)
        if name not in twice and not is_left_out:
            yield name, tensor


def _weights_in_order(optimizer: Any) -> list[torch.Tensor]:
    """As an optimizer's state numbers them."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _with_state(document: Mapping[str, Any], change: Callable[[int, str, Any], Any]) -> dict[str, Any]:
    """An optimizer's state with each value changed; the order is the same on all processes."""
    state = {
        number: {name: change(number, name, value) for name, value in values.items()}
        for number, values in document["state"].items()
    }
    return {**document, "state": state}


@torch.no_grad()
def _set_weights(model: nn.Module, read: Mapping[str, Callable[[], torch.Tensor]]) -> list[str]:
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, tensor in model.state_dict().items():
        if name in read:
            value = _dealt_out(read[name](), tensor)
            _local(tensor).copy_(_local(value))
    return sorted(trained - read.keys())


def _gathered(value: Any, *, keep: bool) -> Any:
    """A value whole, in main memory; None for tensors that are not wanted. Not a tensor: as it is."""
    if not torch.is_tensor(value):
        return value
    # A copy in any case: it may be written while training goes on.
    whole = value.detach().full_tensor() if isinstance(value, DTensor) else value.detach().clone()
    return whole.cpu() if keep else None


def _part(value: Any) -> Any:
    return _local(value).detach().cpu().contiguous().clone() if torch.is_tensor(value) else value


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _dealt_out(whole: Any, like: torch.Tensor) -> Any:
    """This process's part of a value, spread as `like` is; what is not of its shape stays as it is (step counts)."""
    if not torch.is_tensor(whole) or not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    mesh = like.device_mesh
    parts = whole.chunk(mesh.size(), dim=0)  # as FSDP cuts: the last processes may get less, or nothing
    rank = mesh.get_local_rank()
    own = parts[rank] if rank < len(parts) else whole[:0]
    return DTensor.from_local(
        own.to(like.to_local().device), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _joined(parts: Sequence[Callable[[], torch.Tensor]], like: torch.Tensor) -> torch.Tensor:
    """What was written in parts, whole again; what every process had whole, from the first."""
    first = parts[0]()
    return first if first.shape == like.shape else torch.cat([first, *(part() for part in parts[1:])], dim=0)


def _adapter_names(model: nn.Module) -> dict[str, str]:
    """The name that peft gives an adapter's weight in a file -> its name in the model."""
    from peft import get_peft_model_state_dict

    stand_ins = {name: torch.empty(0) for name in model.state_dict()}
    names = {id(tensor): name for name, tensor in stand_ins.items()}
    saved = get_peft_model_state_dict(model, state_dict=stand_ins)
    return {name: names[id(tensor)] for name, tensor in saved.items()}
