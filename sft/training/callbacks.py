"""What happens between the trainer's steps: the order of rows, the records, the end on request."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from sft.batching.order import RankBatchSampler
from sft.common.data_records import DroppedRow
from sft.common.errors import DataError
from sft.processes.signals import StopRequest
from sft.processes.watchdog import SLOW, Watchdog
from sft.reporting.metrics_log import MetricsLog

logger = logging.getLogger("sft.train")
TOLD_DROPS = 10
"""Dropped rows of a stream that are named; all are counted."""
SLOTS_THAT_TELL = 1000
"""Rows of a stream to be read before a share of them means something."""


class OrderCallback(TrainerCallback):
    """Tells the sampler which epoch comes: by the step, so that a resumed run finds the same order."""

    def __init__(self, sampler: RankBatchSampler | None, steps_per_epoch: int):
        """Args:
        sampler: None for a stream, which has no epochs: there the share of all steps is told in their place.
        steps_per_epoch: of the batch plan.
        """
        self._sampler = sampler
        self._steps_per_epoch = steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._sampler is not None:
            self._sampler.set_epoch(state.global_step // self._steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._sampler is None:
            # Trainer counts from where a resumed stream began.
            state.epoch = state.global_step / self._steps_per_epoch


class EdgeCallback(TrainerCallback):
    """Makes up for an evaluation, where the run goes on from a checkpoint that was saved before it or in its middle."""

    def __init__(self, trainer: Any, steps_per_epoch: int):
        """Args:
        trainer: with `resume_step` and `evaluate_now`.
        steps_per_epoch: of the batch plan.
        """
        self._trainer = trainer
        self._steps_per_epoch = steps_per_epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self._trainer.resume_step
        is_edge = step % self._steps_per_epoch == 0 and self._trainer.train_sampler is not None
        is_due = {"epoch": is_edge, "steps": step % max(state.eval_steps, 1) == 0}.get(str(args.eval_strategy.value))
        was_made = any("eval_loss" in event and event["step"] == step for event in state.log_history)
        if step > 0 and is_due and step >= (args.eval_delay or 0) and not was_made:
            self._trainer.evaluate_now()


class StreamDrops:
    """What becomes of rows of a stream that cannot be used: they are told and counted, or they end the run."""

    def __init__(self, *, stops_run: Callable[[str], bool], max_share: float):
        """Args:
        stops_run: whether a single row that is dropped for this reason ends the run.
        max_share: of the rows read; more than that dropped ends the run, once enough were read to tell.
        """
        self._stops_run = stops_run
        self._max_share = max_share
        self.counts: Counter[str] = Counter()
        """Reason -> rows, of all processes."""
        self._read = 0

    def add(self, dropped: Sequence[DroppedRow], slots: int) -> None:
        """Takes what the next step lacks.

        Args:
            dropped: the rows, of all processes.
            slots: rows that were read for the step, by all processes.

        Raises:
            DataError: if that ends the run.
        """
        lines = [f"{row.source}: {row.problem.message} ({row.problem.reason})" for row in dropped]
        stopping = [line for line, row in zip(lines, dropped, strict=True) if self._stops_run(row.problem.reason)]
        if stopping:
            raise DataError(
                *(f"{line}." for line in stopping),
                "Mend the rows, or write on_bad_rows: skip (on_too_long: drop) to leave them out and count them.",
            )
        for line in lines[: max(TOLD_DROPS - self.counts.total(), 0)]:
            logger.info("dropped  %s.", line)
        self._read += slots
        self.counts.update(row.problem.reason for row in dropped)
        bad = self.counts.total() - self.counts["too_long"]
        if self._read >= SLOTS_THAT_TELL and bad / self._read > self._max_share:
            raise DataError(
                f"{bad:,} of the {self._read:,} rows streamed so far are dropped ({bad / self._read:.1%}): more than "
                f"max_bad_row_share {self._max_share:g} allows. Mend the data, or raise it."
            )


class RecordCallback(TrainerCallback):
    """Writes every log event into `metrics.jsonl`."""

    def __init__(self, metrics_log: MetricsLog | None):
        self._metrics_log = metrics_log

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True  # or what was trained since the last log would never be told

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._metrics_log is not None and logs is not None:
            self._metrics_log.write(state.global_step, logs)


class EvaluationCut(Exception):
    """A signal came in the middle of an evaluation while training, on any rank; all raise it at the same batch."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class StopCallback(TrainerCallback):
    """Ends training after the step in which a signal came, on all ranks at the same step, with a checkpoint.

    An evaluation is cut short: it is made when the run goes on. A checkpoint that could not be written ends training
    too, with an error.
    """

    def __init__(self, request: StopRequest, trainer: Any):
        """Args:
        request: remembers a signal.
        trainer: with `context`, `has_failed_to_save` and `finish_saving`.
        """
        self._request = request
        self._trainer = trainer
        self._group = None
        if trainer.context.world_size > 1:
            # A flag in main memory needs no GPU to wait for.
            self._group = torch.distributed.new_group(backend="gloo")
        self.stopped_by = 0
        """Number of the signal that ended training, on whichever rank it came; 0 for none."""

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
                raise EvaluationCut(number)

    def after_evaluation(self, args: Any, state: Any, control: Any) -> None:
        """To be called when an evaluation, and what follows it, is done: no further step is begun."""
        number, _ = self._agreed()
        if number and state.global_step < state.max_steps:
            self.stop(number, args, state, control)

    def stop(self, number: int, args: Any, state: Any, control: Any) -> None:
        """Ends training at this step, with a checkpoint. All ranks call it."""
        self.stopped_by = number
        control.should_save = True
        control.should_training_stop = True
        if args.logging_strategy == "epoch" and float(state.epoch).is_integer():
            control.should_log = True  # before the checkpoint: what goes on from it is another epoch

    def _agreed(self) -> tuple[int, bool]:
        """The signal that came on any rank (0 for none), and whether any rank's checkpoint could not be written."""
        found = torch.tensor([self._request.number, self._trainer.has_failed_to_save])
        if self._group is not None:
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found[0]), bool(found[1])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:
            # Trainer takes a stop for the end of an epoch; whoever asked for it waits for the process to be gone.
            control.should_log = control.should_evaluate = control.should_save = False


class WatchCallback(TrainerCallback):
    """Tells the watchdog of each step, micro-batch and evaluation batch, and what comes next. To be added last."""

    def __init__(self, watchdog: Watchdog):
        self._watchdog = watchdog
        self._patience = SLOW
        """With steps: much is done for the first time in the first."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._patience = 1
        self._expect_next(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watchdog.expect("evaluating at step", state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watchdog.expect("ending the training at step", state.global_step, patience=SLOW)

    def _expect_next(self, state: Any, control: Any) -> None:
        if control.should_evaluate:
            self._watchdog.expect("evaluating at step", state.global_step, patience=self._patience)
        elif control.should_save:
            self._watchdog.expect("saving at step", state.global_step, patience=SLOW)
        else:
            self._watchdog.expect("in step", state.global_step + 1, patience=self._patience)
