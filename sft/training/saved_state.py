"""Can the state in a checkpoint be read by this program and the libraries that are installed? Asked before it is used.

A checkpoint may be undamaged and still have been written by a newer transformers or torch. With
`resume_from_checkpoint: auto` the one before is then taken.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import CheckpointError
from sft.common.outside_files import check_shape, outside_file, read_json
from sft.common.shapes import NUMBER, Each

STATE_FILE = "trainer_state.json"
_SETTINGS_FILES = ("config.json", "adapter_config.json", "generation_config.json")
_CALLBACK = {"args": dict, "attributes": dict}
_STATE_SHAPE = {
    "epoch!": NUMBER,
    "global_step!": int,
    "max_steps!": int,
    "logging_steps!": NUMBER,
    "eval_steps!": NUMBER,
    "save_steps!": NUMBER,
    "train_batch_size": int,
    "num_train_epochs!": NUMBER,
    "num_input_tokens_seen!": int,
    "total_flos!": NUMBER,
    "log_history": [{"step!": int}],
    "best_metric": NUMBER,
    "best_global_step": int,
    "best_model_checkpoint": str,
    "stateful_callbacks": Each((_CALLBACK, [_CALLBACK])),
}
_RANDOM_STATE_SHAPE = {"python!": tuple, "numpy!": tuple, "cpu!": torch.Tensor}


def find_unreadable(point: ResumePoint) -> list[str]:
    """What cannot be read of an undamaged checkpoint, file by file: `trainer_state.json: ...`; [] if all can be.

    Tensors are not read: only the headers and the structure around them.
    """
    problems: list[str] = []
    for name in {STATE_FILE: None, **point.manifest["files"]}:
        try:
            _read(point, name)
        except CheckpointError as error:
            problems += error.problems
    return problems


def _read(point: ResumePoint, name: str) -> None:
    """Read a file of a checkpoint as the libraries will do.

    Raises:
        CheckpointError: if it cannot be read.
    """
    path = point.path / name
    if name == STATE_FILE:
        _check_trainer_state(path, point.step)
    elif name in _SETTINGS_FILES:
        read_json(path, CheckpointError, name=name)
    elif path.suffix == ".safetensors":
        with outside_file(f"{name}: cannot be read", CheckpointError), safe_open(path, "pt") as file:
            file.keys()
    elif path.suffix in (".pt", ".pth") and path.parent == point.path:
        with outside_file(f"{name}: cannot be read", CheckpointError), safe_globals():
            document = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        if name.startswith("rng_state"):
            check_shape(document, CheckpointError, _RANDOM_STATE_SHAPE, name)
        elif name.startswith("optimizer"):
            check_shape(document, CheckpointError, {"state!": dict, "param_groups!": [dict]}, name)
        else:
            check_shape(document, CheckpointError, dict, name)


def _check_trainer_state(path: Path, step: int) -> None:
    state = read_json(path, CheckpointError, _STATE_SHAPE, name=STATE_FILE)
    with outside_file(f"{STATE_FILE}: this version of transformers cannot read it", CheckpointError):
        TrainerState(**state)
    if state["global_step"] != step:
        raise CheckpointError(f"{STATE_FILE}: is of step {state['global_step']}, and the checkpoint of step {step}")
