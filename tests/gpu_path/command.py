"""The command, and other functions, in a process with fake devices.

The model's trials run, but zeros compare as nothing: where only the numbers decide, the verdict is that of a model
which supports everything.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters
from transformers import GenerationMixin, TrainerCallback
from transformers.utils import import_utils

import trainer_utils
from sft.training import adapter_gradients, model_trials
from sft.training.progress import TrainingProgress
from tests.gpu_path import programs
from tests.gpu_path.counting import Counting, library
from tests.support.in_process import run_command

MOST_ANSWER_TOKENS = 4


def call_program(result: str, name: str, arguments: str) -> int:
    """Calls a function of `programs.py`; arguments and result are JSON."""
    prepare()
    Path(result).write_text(json.dumps(getattr(programs, name)(**json.loads(arguments))))
    return 0


def run_recorded(record: str, arguments: Sequence[str]) -> int:
    """Runs the command; what its steps did is written to `<record>.<rank>.json`."""
    prepare()
    steps: list[dict[str, Any]] = []

    def write() -> None:
        path = Path(f"{record}.{os.environ.get('RANK', '0')}.json")
        path.write_text(json.dumps({"steps": steps, **_measured()}))

    _count_steps(steps, write)
    status = run_command(arguments)
    write()
    return status


def prepare() -> None:
    """Replaces what a device without numbers cannot decide; switches off cuDNN's attention, which needs a device."""
    library().fake_cuda_read_settings()
    for function in vars(import_utils).values():  # the server that this process was forked from has no devices
        getattr(function, "cache_clear", lambda: None)()
    torch.backends.cuda.enable_cudnn_sdp(False)
    find_obstacle, find_output_layer = model_trials.find_obstacle, model_trials.find_output_layer

    def obstacle(*args: Any) -> str | None:
        found = find_obstacle(*args)
        by_numbers = ("computes different logits", "lets one document influence another")
        return None if found is not None and found.startswith(by_numbers) else found

    def output_layer(model: Any, call: Any) -> Any:
        find_output_layer(model, call)
        layer = model.get_output_embeddings()
        return layer if type(layer) is torch.nn.Linear else None

    can_skip_padding_mask = model_trials.ModelTrials.can_skip_padding_mask

    def can_skip(*args: Any) -> bool:
        with patch.object(torch, "allclose", return_value=True):
            return can_skip_padding_mask(*args)

    gradients_of = adapter_gradients.gradients_of

    def gradients(model: Any) -> tuple[list[str], list[bool]]:
        names, _ = gradients_of(model)
        return names, [True] * len(names)

    adapter_gradients.gradients_of = gradients
    model_trials.find_obstacle, model_trials.find_output_layer = obstacle, output_layer
    model_trials.ModelTrials.can_skip_padding_mask = can_skip
    _end_answers()


def count_on_cpu() -> None:
    """Keeps the counts of trained tokens, which give the speeds, in main memory."""
    create = TrainingProgress.__init__

    def create_on_cpu(progress: Any, context: Any, device: Any, **kwargs: Any) -> None:
        create(progress, context, torch.device("cpu"), **kwargs)

    TrainingProgress.__init__ = create_on_cpu


def _end_answers() -> None:
    """Whether an answer is complete is computed on the device: here it is, after some tokens."""
    has_unfinished, num_calls = GenerationMixin._has_unfinished_sequences, [0]

    def has_unfinished_for_a_while(*args: Any, **kwargs: Any) -> bool:
        num_calls[0] += 1
        return has_unfinished(*args, **kwargs) and num_calls[0] % (MOST_ANSWER_TOKENS + 1) > 0

    GenerationMixin._has_unfinished_sequences = has_unfinished_for_a_while


def _count_steps(steps: list[dict[str, Any]], write: Callable[[], None]) -> None:
    """Appends what each step counts, from its begin to the begin of the next one; the last ends with training.

    What is saved after training may end the process: `write` is called before.
    """
    counting, build_trainer = Counting(), trainer_utils.build_trainer

    class Steps(TrainerCallback):
        has_begun = False

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._end()
            self.has_begun = True
            counting.start()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self._end()
            write()

        def _end(self) -> None:
            if self.has_begun:
                steps.append({**counting.stop(), "compilations": _num_compilations()})

    def build(*args: Any) -> Any:
        training = build_trainer(*args)
        training.trainer.add_callback(Steps())
        return training

    trainer_utils.build_trainer = build


def _num_compilations() -> int:
    return counters["stats"]["unique_graphs"]


def _measured() -> dict[str, Any]:
    memory = torch.cuda.memory_stats() if torch.cuda.is_initialized() else {}
    return {
        "reserved": memory.get("reserved_bytes.all.peak", 0),
        "retries": memory.get("num_alloc_retries", 0),
        "graph_breaks": dict(counters["graph_break"]),
        "has_bitsandbytes_cuda": "bitsandbytes.backends.cuda.ops" in sys.modules,
    }


if __name__ == "__main__":
    sys.exit(run_recorded(sys.argv[1], sys.argv[2:]))
