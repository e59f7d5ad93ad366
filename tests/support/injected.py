"""Faults that a process puts into itself before its run starts."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = frozenset(
    "open write writelines __exit__ flush truncate fsync rename replace mkdir unlink remove rmdir "
    "serialize_file write_record write_end_of_file".split()
)
"""Functions in C by which Python and the libraries change the disk."""


@dataclass(frozen=True, slots=True)
class KilledInSave:
    """SIGKILL just before the N-th change of the disk in the save of a checkpoint, changes by the thread included."""

    step: int
    number: int | None
    """None only counts: the names of all changes go into `counted`."""
    counted: Path | None = None

    def __call__(self) -> None:
        from sft.training.checkpointed_trainer import CheckpointedTrainer

        changes: list[str] = []

        def look(frame: Any, event: str, function: Any) -> None:
            name = getattr(function, "__name__", "")
            if event != "c_call" or name not in CALLS or isinstance(function.__self__, str):
                return
            if name == "__exit__" and not isinstance(function.__self__, io.IOBase):
                return
            changes.append(name)
            if len(changes) == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        def watched(usual: Callable[..., Any], is_this: Callable[..., bool]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if not is_this(*args):
                    return usual(*args)
                sys.setprofile(look)
                try:
                    return usual(*args)
                finally:
                    sys.setprofile(None)
                    if self.counted is not None:
                        self.counted.write_text(json.dumps(changes))

            return call

        CheckpointedTrainer._save_checkpoint = watched(
            CheckpointedTrainer._save_checkpoint, lambda trainer, *_: trainer.state.global_step == self.step
        )
        CheckpointedTrainer._publish = watched(
            CheckpointedTrainer._publish, lambda trainer, staging, *_: staging.name == f"checkpoint-{self.step}"
        )


@dataclass(frozen=True, slots=True)
class KilledAtStep:
    """SIGKILL some time after a step was logged."""

    step: int
    seconds: float

    def __call__(self) -> None:
        def kill() -> None:
            time.sleep(self.seconds)
            os.kill(os.getpid(), signal.SIGKILL)

        _at_step(self.step, lambda: threading.Thread(target=kill, daemon=True).start())


@dataclass(frozen=True, slots=True)
class ClosedAtStep:
    """Makes a folder immutable, even for root, while the run continues."""

    step: int
    folder: Path

    def __call__(self) -> None:
        _at_step(self.step, lambda: subprocess.run(["chattr", "+i", str(self.folder)], check=True))


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The model raises torch's error for lack of memory once, in one process."""

    rank: int
    call: int
    """The N-th forward or backward pass of training, from 1."""
    where: str
    """`forward` or `backward`."""

    def __call__(self) -> None:
        import torch

        import trainer_utils

        if os.environ["RANK"] != str(self.rank):
            return
        build_trainer, calls = trainer_utils.build_trainer, []

        def fail(module: Any, *_: Any) -> None:
            if module.training:
                calls.append(1)
                if len(calls) == self.call:
                    raise torch.OutOfMemoryError("out of memory (test)")

        def build(setup: Any, *args: Any) -> Any:
            layer = setup.prepared.model.get_decoder().layers[0]
            if self.where == "forward":
                layer.register_forward_pre_hook(fail)
            else:
                layer.register_full_backward_pre_hook(fail)
            return build_trainer(setup, *args)

        trainer_utils.build_trainer = build


@dataclass(frozen=True, slots=True)
class TrackersDie:
    """Before step 3, TensorBoard's folder is deleted and wandb's process killed."""

    def __call__(self) -> None:
        import transformers

        import trainer_utils

        class Disturb(transformers.TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 2:
                    shutil.rmtree(Path(args.output_dir, "logs"))
                    for path in Path("/proc/self/task").glob("*/children"):
                        for pid in path.read_text().split():
                            if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                                os.kill(int(pid), signal.SIGKILL)

        build_trainer = trainer_utils.build_trainer

        def build(*args: Any, **kwargs: Any) -> Any:
            prepared = build_trainer(*args, **kwargs)
            prepared.trainer.add_callback(Disturb())
            return prepared

        trainer_utils.build_trainer = build


def _at_step(step: int, act: Callable[[], Any]) -> None:
    from sft.reporting.metrics_log import MetricsLog

    usual = MetricsLog.write

    def write(log: MetricsLog, at: int, values: Any) -> None:
        usual(log, at, values)
        if at == step and "loss" in values:
            act()

    MetricsLog.write = write
