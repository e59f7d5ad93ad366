"""State that FSDP2 shards over processes (`DTensor`, split along the first dimension): gathered, saved, loaded.

Full state is the same as that of an unsharded model and optimizer, so that sharded and unsharded runs resume from each
other's files. In shards, each process writes files of its own; any number of processes can read them. Files are loaded
without unpickling arbitrary objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from sft.modeling.saved_names import has_other_names, read_by_own_names

_WEIGHTS, _OPTIMIZER = "weights-{}-of-{}.safetensors", "optimizer-{}-of-{}.pt"
_FULL_ADAPTERS, _FULL_WEIGHTS = "adapter_model.safetensors", "model*.safetensors"


def gather_weights(model: nn.Module, *, keep: bool, trained_only: bool) -> dict[str, torch.Tensor]:
    """Gather full weights and persistent buffers in host memory. Collective: all processes must call it.

    Args:
        model: a model with sharded weights.
        keep: whether this process keeps the result; others return an empty mapping.
        trained_only: omit frozen weights.
    """
    return {
        name: full
        for name, tensor in _weights_of(model, trained_only=trained_only)
        if (full := _gathered(tensor, keep=keep)) is not None
    }


def gather_optimizer_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """Gather an optimizer's full state in host memory. Collective: all processes must call it.

    Args:
        optimizer: an optimizer of sharded weights.
        keep: whether this process keeps the result; others return a state without tensors.
    """
    return _with_state(optimizer.state_dict(), lambda _, __, value: _gathered(value, keep=keep))


def load_full_weights(folder: Path, model: nn.Module) -> list[str]:
    """Load this process's shards of the weights from a folder as `save_pretrained` writes it.

    Returns:
        Names of trained weights that are missing.
    """
    adapters = folder / _FULL_ADAPTERS
    with ExitStack() as open_files:
        files = [adapters] if adapters.is_file() else sorted(folder.glob(_FULL_WEIGHTS))
        read: dict[str, Callable[[], torch.Tensor]] = {}
        for path in files:
            file = open_files.enter_context(safe_open(path, "pt"))
            read |= {name: lambda file=file, name=name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if adapters.is_file():
            read = {name: read[saved] for saved, name in _adapter_names(model).items() if saved in read}
        elif has_other_names(folder, model):
            weights = read_by_own_names(folder, model)
            read = {name: partial(weights.__getitem__, name) for name in weights}
        return _set_weights(model, read)


def load_full_optimizer_state(path: Path, optimizer: Any) -> None:
    """Load this process's shards of an optimizer's state from a file of full state."""
    document = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    weights = _weights_in_order(optimizer)
    optimizer.load_state_dict(_with_state(document, lambda number, _, value: _sharded(value, weights[number])))


def save_shards(
    folder: Path, model: nn.Module, optimizer: Any, rank_and_world_size: tuple[int, int], *, trained_only: bool
) -> None:
    """Write this process's shards of weights and optimizer state. Not collective.

    Args:
        folder: folder of the checkpoint.
        model, optimizer: with sharded weights; with None for the optimizer, only weights are saved.
        rank_and_world_size: this process among all.
        trained_only: omit frozen weights.
    """
    number, count = rank_and_world_size[0] + 1, rank_and_world_size[1]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _own_shard(tensor) for name, tensor in _weights_of(model, trained_only=trained_only)}
    save_file(weights, folder / _WEIGHTS.format(number, count), metadata={"format": "pt"})
    if optimizer is not None:
        document = _with_state(optimizer.state_dict(), lambda _, __, value: _own_shard(value))
        torch.save(document, folder / _OPTIMIZER.format(number, count))


def num_shards(folder: Path) -> int:
    """Number of shards of a checkpoint's weights; 0 if they are saved in full."""
    names = (re.fullmatch(r"weights-1-of-(\d+)\.safetensors", path.name) for path in folder.glob("weights-1-of-*"))
    return next((int(match.group(1)) for match in names if match), 0)


def load_weight_shards(folder: Path, model: nn.Module) -> list[str]:
    """Load this process's shards of the weights from those that any number of processes wrote.

    Returns:
        Names of trained weights that are missing.
    """
    count = num_shards(folder)
    with ExitStack() as open_files:
        paths = [folder / _WEIGHTS.format(number, count) for number in range(1, count + 1)]
        files = [open_files.enter_context(safe_open(path, "pt")) for path in paths]
        saved = list(files[0].keys())
        like = model.state_dict()
        read = {name: partial(_read, files, name, like[name]) for name in saved if name in like}
        return _set_weights(model, read)


def load_optimizer_shards(folder: Path, optimizer: Any) -> None:
    """Load this process's shards of the optimizer's state in the same way."""
    count, weights = num_shards(folder), _weights_in_order(optimizer)
    paths = [folder / _OPTIMIZER.format(number, count) for number in range(1, count + 1)]
    shards = [torch.load(path, weights_only=True, mmap=True, map_location="cpu") for path in paths]

    def own(number: int, name: str, _: Any) -> Any:
        values = [shard["state"][number][name] for shard in shards]
        if not torch.is_tensor(values[0]) or values[0].dim() == 0:
            return values[0]
        full = _joined(iter(values), weights[number])
        return _sharded(full, weights[number])

    optimizer.load_state_dict(_with_state(shards[0], own))


def _weights_of(model: nn.Module, *, trained_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of what is saved; a weight under two names (a tied head) once."""
    once = dict(model.named_parameters())
    twice = dict(model.named_parameters(remove_duplicate=False)).keys() - once.keys()
    for name, tensor in model.state_dict().items():  # which reshards weights that a forward pass gathered
        is_omitted = trained_only and not (name in once and once[name].requires_grad)
        if name not in twice and not is_omitted:
            yield name, tensor


def _weights_in_order(optimizer: Any) -> list[torch.Tensor]:
    """Weights in the order in which an optimizer's state numbers them."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _with_state(document: Mapping[str, Any], change: Callable[[int, str, Any], Any]) -> dict[str, Any]:
    """An optimizer's state with each value changed, in the same order on all processes."""
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
            value = _sharded(read[name](), tensor)
            _local(tensor).copy_(_local(value))
    return sorted(trained - read.keys())


def _gathered(value: Any, *, keep: bool) -> Any:
    """A full tensor in host memory, or None for one that is not kept. Other values are returned unchanged."""
    if not torch.is_tensor(value):
        return value
    # Always a copy, which may be written while training continues.
    full = _full_tensor(cast(DTensor, value.detach())) if isinstance(value, DTensor) else value.detach().clone()
    return full.cpu() if keep else None


def _full_tensor(shard: DTensor) -> torch.Tensor:
    """The tensor of which each process has some rows. Collective.

    Not by `DTensor.full_tensor`: with gloo that reads a GPU's memory as if it were main memory (torch 2.11 to 2.13).
    """
    local, mesh = shard.to_local(), shard.device_mesh
    rows = -(-shard.shape[0] // mesh.size())  # of each process; the last ones may have fewer
    padded = local.new_zeros((rows, *shard.shape[1:]))
    padded[: len(local)] = local
    full = local.new_empty((rows * mesh.size(), *shard.shape[1:]))
    distributed.all_gather_into_tensor(full, padded, group=mesh.get_group())
    # A copy where rows were filled up: what is written to disk would contain them.
    return full if len(full) == shard.shape[0] else full[: shard.shape[0]].clone()


def _own_shard(value: Any) -> Any:
    return _local(value).detach().cpu().contiguous().clone() if torch.is_tensor(value) else value


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded(full: Any, like: torch.Tensor) -> Any:
    """A value sharded as `like` is; values of another shape (step counts) are returned unchanged."""
    if not torch.is_tensor(full) or not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    mesh = like.device_mesh
    shards = full.chunk(mesh.size(), dim=0)  # as FSDP splits: the last processes may get less, or nothing
    rank = mesh.get_local_rank()
    own = shards[rank] if rank < len(shards) else full[:0]
    return DTensor.from_local(
        own.to(like.to_local().device), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _read(files: Sequence[Any], name: str, like: torch.Tensor) -> torch.Tensor:
    return _joined((file.get_tensor(name) for file in files), like)


def _joined(shards: Iterator[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The full tensor of saved shards; of one that every process saved in full, the first."""
    first = next(shards)
    return first if first.shape == like.shape else torch.cat([first, *shards], dim=0)


def _adapter_names(model: nn.Module) -> dict[str, str]:
    """The name that peft gives an adapter's weight in a file -> its name in the model."""
    placeholders = {name: torch.empty(0) for name in model.state_dict()}
    names = {id(tensor): name for name, tensor in placeholders.items()}
    saved = get_peft_model_state_dict(model, state_dict=placeholders)
    return {name: names[id(tensor)] for name, tensor in saved.items()}
