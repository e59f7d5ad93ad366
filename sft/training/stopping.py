"""Ending training on a signal: after the same step on every process, with a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from sft.processes.agreement import open_cpu_group
from sft.processes.signals import StopRequest


class EvaluationInterrupted(Exception):
    """A signal interrupted an evaluation during training, on any rank; all ranks raise it at the same batch."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class StopCallback(TrainerCallback):
    """Ends training after the step in which a signal came, on all ranks at the same step, with a checkpoint.

    An evaluation is interrupted; the resumed run repeats it. A checkpoint that could not be written ends training too,
    with an error.
    """

    def __init__(self, request: StopRequest, trainer: Any):
        """
        Args:
            request: keeps the signal.
            trainer: with `context`, `has_failed_to_save` and `finish_saving`.
        """
        self._request = request
        self._trainer = trainer
        self._group = open_cpu_group(trainer.context)  # a flag in main memory does not wait for a GPU
        self.stopped_by = 0
        """Number of the signal that ended training, on any rank; 0 for none."""

    @property
    def stopped(self) -> bool:
        """Whether a signal ended training before its last step."""
        return self.stopped_by != 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number, has_failed = self._agreed()
        if has_failed:
            self._trainer.finish_saving()
        if number and state.global_step < state.max_steps:
            self.stop(number, args, state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.is_in_train:
            number, _ = self._agreed()
            if number:
                raise EvaluationInterrupted(number)

    def after_evaluation(self, args: Any, state: Any, control: Any) -> None:
        """Called after an evaluation: if a signal came meanwhile, no further step starts."""
        number, _ = self._agreed()
        if number and state.global_step < state.max_steps:
            self.stop(number, args, state, control)

    def stop(self, number: int, args: Any, state: Any, control: Any) -> None:
        """Ends training at this step, with a checkpoint. A collective operation."""
        self.stopped_by = number
        control.should_save = True
        control.should_training_stop = True
        if args.logging_strategy == "epoch" and float(state.epoch).is_integer():
            control.should_log = True  # before the checkpoint: a resumed run starts the next epoch

    def _agreed(self) -> tuple[int, bool]:
        """The signal that came on any rank (0 for none), and whether any rank's checkpoint could not be written."""
        found = torch.tensor([self._request.number, self._trainer.has_failed_to_save])
        if self._group is not None:
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found[0]), bool(found[1])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:
            # Trainer treats a stop as the end of an epoch, but the process is to end soon.
            control.should_log = control.should_evaluate = control.should_save = False
