"""Saving checkpoints that are complete or absent, on all processes together.

transformers' Trainer writes the files into a temporary folder; a manifest and one rename then publish them. Where main
memory has room, training waits only while weights and optimizer state are copied there, and a thread writes them. The
thread computes the digests and calls fsync in any case, while training continues. A checkpoint holds what Trainer
writes, without `training_args.bin` (a pickle that nothing here reads, and that would hold the Hub's token), and the
manifest.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sft.checkpointing.publish import UNFINISHED, describe_disk_error, publish, rotate
from sft.common.device_errors import is_out_of_memory
from sft.common.errors import CheckpointError, UserError, one_line
from sft.common.threads import CHECKPOINT_THREAD
from sft.modeling.adapters import saved_adapter_state
from sft.modeling.saved_folder import finish_saved_folder
from sft.modeling.sharded_state import gather_optimizer_state, gather_weights, save_shards
from sft.modeling.state_copy import StateCopier, state_bytes
from sft.processes.agreement import agree_on_problem
from sft.processes.device_memory import memory_for_copy, peak_memory_bytes
from sft.processes.environment import trackers_take_checkpoints
from sft.training.bfloat16_adamw import own_optimizer
from sft.training.callbacks import SpecialTokensCallback
from sft.training.hub_pushes import HubPushes
from sft.training.output_folder import confirm_output
from sft.training.resuming_trainer import OPTIMIZER, SCHEDULER, ResumingTrainer
from sft.training.run_identity import BeforeTraining
from sft.training.run_setup import RunSetup

logger = logging.getLogger("sft.train")
_TRAINER_STATE = "trainer_state.json"
_PICKLED_ARGUMENTS = "training_args.bin"


class CheckpointedTrainer(ResumingTrainer):
    """Publishes complete checkpoints only."""

    def __init__(self, setup: RunSetup, arguments: TrainingArguments, **kwargs: Any):
        """
        Args:
            setup: the run.
            arguments: transformers' settings.
            kwargs: further arguments of transformers' Trainer.
        """
        self.setup = setup
        self.before = BeforeTraining()
        """What was measured before the first step; each checkpoint keeps it."""
        passed = setup.config.training.passed_through
        self.pushes_to_hub = passed.push_to_hub
        unfinished = Path(str(arguments.output_dir), UNFINISHED)
        self.hub = HubPushes(arguments, unfinished, token=passed.hub_token)
        super().__init__(
            setup.context,
            arguments,
            model=setup.prepared.model,
            processing_class=setup.prepared.tokenizer,
            optimizer_cls_and_kwargs=own_optimizer(setup.config.training.optim, arguments),
            **kwargs,
        )
        self.add_callback(SpecialTokensCallback(setup.prepared.model))
        if self.pushes_to_hub and self.is_world_process_zero():
            self.hub.open()
        fsdp = setup.config.fsdp
        self._saves_shards = fsdp is not None and fsdp.checkpoints == "sharded"
        self._saves_in_background = not trackers_take_checkpoints(arguments.report_to or ())
        self._copied_bytes = 0
        """Size of the largest copy so far."""
        self._weights_copier, self._optimizer_copier = StateCopier(), StateCopier()
        self._to_write: list[Callable[[], None]] | None = None
        """Files of the current checkpoint that the thread writes; None if all are written at once."""
        self._background = ThreadPoolExecutor(1, CHECKPOINT_THREAD)
        self._publishing: Future[None] | None = None
        """The publication of a checkpoint, on the process that publishes."""
        self._unpublished_step: int | None = None
        """Step of the checkpoint that is written and may not be published yet, on all processes."""
        self._saved_step: int | None = None
        self._failures: list[str] = []

    def manifest_entries(self) -> dict[str, Any]:
        """What the next checkpoint's manifest contains besides its files. A collective operation."""
        return {
            "step": self.state.global_step,
            "world_size": self.context.world_size,
            "save_only_model": self.args.save_only_model,
            "peak_memory_bytes": peak_memory_bytes(self.context.device),
            **self.setup.identity.as_manifest(),
            **self.before.as_manifest(),
        }

    @property
    def _has_adapters(self) -> bool:
        return hasattr(self.model, "peft_config")

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes checkpoints, and looks for those to delete: not where the finished ones are."""
        return str(self.output_dir / UNFINISHED)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint; it is published once every process has written its files.

        Raises:
            CheckpointError: on all processes, if any of them cannot write; earlier checkpoints are untouched.
        """
        step = self.state.global_step
        if step == self._saved_step:
            return  # this step is saved already
        self.finish_saving()
        self.confirm_output()
        unfinished = Path(self._get_output_dir(trial), f"checkpoint-{step}")
        target = self.output_dir / f"checkpoint-{step}"
        is_last = self.control.should_training_stop or step >= self.state.max_steps
        ends_here = is_last or self.pushes_to_hub or not self._saves_in_background
        # From a GPU, copies are faster even if the run then waits for the thread.
        may_copy = not ends_here or self.context.device.startswith("cuda")
        self._to_write = [] if may_copy and self._has_room_for_copies() else None
        self._note_failure(lambda: self._write_files(model, trial, unfinished, target))
        to_write, self._to_write = self._to_write or [], None
        self._check_all_saved(step)
        entries = self.manifest_entries()
        if self.args.should_save:
            best = self.state.best_global_step
            self._publishing = self._background.submit(self._publish, unfinished, target, to_write, entries, best)
        self._unpublished_step = self._saved_step = step
        if ends_here:
            self.finish_saving()
        if self.pushes_to_hub and self.is_world_process_zero():
            self.hub.push_checkpoint(target, step)

    def confirm_output(self) -> None:
        """Confirms that the output folder is still that of this run. A collective operation.

        Raises:
            CheckpointError: on all processes, if nothing must be saved in it.
        """
        problem = None
        if self.context.is_main_process:
            try:
                confirm_output(self.setup)
            except UserError as error:
                problem = one_line(error, longest=2000)
        problem = agree_on_problem(problem, self.context, self._control_group)
        if problem is not None:
            raise CheckpointError(problem)

    def _has_room_for_copies(self) -> bool:
        """Whether main memory has room for a copy of what is saved."""
        if self._saves_shards or self.is_deepspeed_enabled:
            return False  # each process writes its own files
        size = state_bytes([self._saved_state(), self._inner_optimizer.state])
        held = self._weights_copier.held_bytes + self._optimizer_copier.held_bytes
        room = memory_for_copy(self.context.device, self.setup.limits.budget_bytes, self._copied_bytes)
        has_room = size - held <= room
        self._copied_bytes = max(self._copied_bytes, size) if has_room else self._copied_bytes
        return has_room

    def _publish(
        self,
        unfinished: Path,
        target: Path,
        to_write: list[Callable[[], None]],
        entries: Mapping[str, Any],
        best_step: int | None,
    ) -> None:
        """In the thread: writes the remaining files, then publishes the checkpoint."""
        while to_write:
            to_write.pop(0)()  # frees the copy that it holds
        (unfinished / _PICKLED_ARGUMENTS).unlink(missing_ok=True)
        publish(unfinished, target, entries)
        rotate(target.parent, limit=self.args.save_total_limit, best_step=best_step)

    def finish_saving(self) -> None:
        """Waits until the last checkpoint is published. A collective operation.

        Raises:
            CheckpointError: on all processes, if it could not be published.
        """
        if self._unpublished_step is None:
            return
        step, publishing = self._unpublished_step, self._publishing
        self._unpublished_step = self._publishing = None
        if publishing is not None:
            self._note_failure(publishing.result)
        self._check_all_saved(step)

    @property
    def has_failed_to_save(self) -> bool:
        """Whether this process's thread failed to publish the last checkpoint; `finish_saving` raises the reason."""
        publishing = self._publishing
        return publishing is not None and publishing.done() and publishing.exception() is not None

    def wait_for_saving(self) -> None:
        """Waits for this process's thread alone, after an error, when processes no longer agree on anything."""
        error = None if self._publishing is None else self._publishing.exception()
        if error is not None:
            logger.info("checkpoint-%s was not written: %s.", self._unpublished_step, one_line(error))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Waits for the last checkpoint first: Trainer lists checkpoints here, and may load the best one."""
        self.finish_saving()
        return super()._finalize_training(*args, **kwargs)

    def _write_files(self, model: Any, trial: Any, unfinished: Path, target: Path) -> None:
        """Trainer's own saving; its state then names the best checkpoint as it will be named once published."""
        super()._save_checkpoint(model, trial)
        best = self.state.best_global_step
        best_folder = target.with_name(f"checkpoint-{best}")
        if best and (best_folder == target or best_folder.is_dir()):
            self.state.best_model_checkpoint = str(best_folder)
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / _TRAINER_STATE))

    def _note_failure(self, write: Any) -> None:
        """Runs a writing operation; a disk error is kept, since the other processes must be informed first.

        Raises:
            Exception: any error that is not about the disk.
        """
        try:
            write()
        except Exception as error:
            problem = describe_disk_error(error, self.output_dir)
            if problem is None:
                raise
            self._failures.append(problem + (self.setup.lock.whereabouts() if self.setup.lock is not None else ""))

    def _check_all_saved(self, step: int) -> None:
        problem = agree_on_problem(self._failures[0] if self._failures else None, self.context, self._control_group)
        if problem is None:
            return
        if self.args.should_save:
            shutil.rmtree(self._get_output_dir(None), ignore_errors=True)
        raise CheckpointError(
            f"output_dir: checkpoint-{step} cannot be written to {self.args.output_dir}: {problem}. Earlier "
            "checkpoints are untouched: free space (or make the folder writable), then resume with "
            "resume_from_checkpoint: auto."
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model. If that fails in a checkpoint, Trainer must still reach its barrier."""
        if not _internal_call:
            super().save_model(output_dir)
        elif not self.is_sharded:
            self._note_failure(lambda: super(CheckpointedTrainer, self).save_model(output_dir, _internal_call=True))
        elif not self._saves_shards:  # shards are written with the optimizer's state
            weights = self.gather_full_weights()
            if self.args.should_save:
                self._note_failure(lambda: self._save(output_dir, state_dict=weights))

    def gather_full_weights(self) -> dict[str, Any] | None:
        """Sharded weights, gathered on the main process (adapters only, if there are any). A collective operation.

        Returns:
            None where the model is not sharded, and on other processes.
        """
        if not self.is_sharded:
            return None
        return gather_weights(self.model, keep=self.args.should_save, trained_only=self._has_adapters)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Saves the state of optimizer and schedule. For a sharded model, gathers it before anything is written."""
        folder = Path(output_dir)
        if not self.is_sharded:
            state = None
            if self._to_write is not None and self.args.should_save:
                state = _try_to_copy(self._optimizer_copier, self.optimizer.state_dict())
            if state is None:
                super()._save_optimizer_and_scheduler(output_dir)
                return
            self._write_now_or_later(lambda: torch.save(state, folder / OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER)
            return
        if self._saves_shards:
            rank_and_world_size = (self.context.rank, self.context.world_size)
            save_shards(folder, self.model, self._inner_optimizer, rank_and_world_size, trained_only=self._has_adapters)
        else:
            state = gather_optimizer_state(self._inner_optimizer, keep=self.args.should_save)
            if self.args.should_save:
                self._write_now_or_later(lambda: torch.save(state, folder / OPTIMIZER))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER)

    def _write_now_or_later(self, write: Callable[[], None]) -> None:
        """Leaves a file to the thread if its content was copied."""
        if self._to_write is None:
            write()
        else:
            self._to_write.append(write)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves the model with its tokenizer; in the thread, if the weights can be copied."""
        weights = None
        if self._to_write is not None:
            # Weights gathered from other processes are a copy already.
            weights = state_dict
            if weights is None:
                weights = _try_to_copy(self._weights_copier, self._saved_state())
        if weights is None:
            self._save_folder(output_dir, state_dict)
            return
        assert output_dir is not None
        assert self._to_write is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self._to_write.append(lambda: self._save_folder(output_dir, weights))

    def _saved_state(self) -> dict[str, Any]:
        """The weights that a checkpoint contains, where they are not sharded."""
        return saved_adapter_state(self.model) if self._has_adapters else self.model.state_dict()

    def _save_folder(self, output_dir: str | None, state_dict: dict | None) -> None:
        """Trainer's own saving, with tied weights once, then what makes the files readable elsewhere."""
        if state_dict is not None and self.is_deepspeed_enabled:
            # In DeepSpeed's copies a tied output layer looks like a second tensor; it would be saved twice.
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            state_dict = {name: tensor for name, tensor in state_dict.items() if tied.get(name) not in state_dict}
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # Trainer calls this on every process
            finish_saved_folder(output_dir or str(self.args.output_dir), self.processing_class)


def _try_to_copy(copier: StateCopier, state: Any) -> Any | None:
    """A copy in main memory; None if it does not fit after all."""
    try:
        return copier.copy(state)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        logger.info("The state could not be copied (%s): training waits until it is written.", one_line(error))
        return None
