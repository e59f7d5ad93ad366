"""Checkpoints that can be trusted: transformers' Trainer writes them aside, and they are named once they are whole.

Where main memory has room, training waits only until weights and optimizer state are copied there, and a thread writes
them. In any case the thread makes the digests and brings the files to the disk while training goes on. All of it by
Trainer's overrides. What stands in a checkpoint is Trainer's, less `training_args.bin` (a pickle, which nothing here
reads, with a token in it where one is set), and a manifest more.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from sft.checkpointing.manifest import find_damage
from sft.checkpointing.publish import UNFINISHED, describe_disk_error, publish, rotate
from sft.common.errors import CheckpointError, one_line
from sft.common.run_records import DistributedContext
from sft.modeling.sharded_state import (
    gather_optimizer_state,
    gather_weights,
    load_full_optimizer_state,
    load_full_weights,
    load_optimizer_shards,
    load_weight_shards,
    num_shards,
    save_shards,
)
from sft.modeling.sharding import is_sharded
from sft.modeling.state_copy import copy_to_memory, state_bytes
from sft.processes.agreement import agree_on_problem, open_cpu_group
from sft.training.hub_pushes import HubPushes

logger = logging.getLogger("sft.train")
_TRAINER_STATE = "trainer_state.json"
_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"
_PICKLED_ARGUMENTS = "training_args.bin"
_SETTINGS_OF_GROUPS = ("weight_decay", "betas", "eps", "momentum")
"""What an optimizer's state holds though it is a setting: as it is set now, not as it was."""


def _copy_if_it_can_be(state: Any) -> Any | None:
    """A copy in main memory; None where there turns out to be no room for it."""
    try:
        return copy_to_memory(state)
    except (MemoryError, RuntimeError) as error:  # the latter is torch's word for memory of a CPU that cannot be had
        logger.info("No copy of the state could be made (%s): training waits while it is written.", one_line(error))
        return None


class CheckpointedTrainer(Trainer):
    """Saves checkpoints whole or not at all, on all processes together."""

    def __init__(
        self,
        *,
        context: DistributedContext,
        facts: Mapping[str, Any] | None = None,
        saves_in_background: bool = True,
        keeps_parts: bool = False,
        room_for_copies: Callable[[int], int] = lambda before: 0,
        **kwargs: Any,
    ):
        """Args:
        context: this process among all.
        facts: what each checkpoint's manifest keeps of the run.
        saves_in_background: False where something reads a checkpoint as soon as Trainer has saved it.
        keeps_parts: where weights are spread over processes, each saves its own part.
        room_for_copies: bytes that copies of what is saved may take in main memory, where that many were taken
            before.
        kwargs: what transformers' Trainer takes.
        """
        self.hub = HubPushes(kwargs["args"], Path(kwargs["args"].output_dir, UNFINISHED))
        super().__init__(**kwargs)
        self.context = context
        self.facts = dict(facts or {})
        self._keeps_parts = keeps_parts
        self._cpu_group = open_cpu_group(context)
        self._saves_in_background = saves_in_background
        self._room_for_copies = room_for_copies
        self._copied_bytes = 0
        """Size of the largest copy so far."""
        self._to_write: list[Callable[[], None]] | None = None
        """Files of the checkpoint in work that the thread writes; None where all are written at once."""
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._publishing: Future[None] | None = None
        """The checkpoint's way to its name, on the process that sees to it."""
        self._unnamed_step: int | None = None
        """Of the checkpoint that is written and may have no name yet, on all processes."""
        self._saved_step: int | None = None
        self.resume_step = 0
        """The step that training goes on behind."""
        self._failures: list[str] = []
        self.has_best_weights = False
        """Whether the best checkpoint was loaded at the end."""

    def checkpoint_facts(self) -> dict[str, Any]:
        """What the next checkpoint's manifest says beside its files. All processes call it."""
        return {
            "step": self.state.global_step,
            "world_size": self.context.world_size,
            "save_only_model": self.args.save_only_model,
            **self.facts,
        }

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are spread over the processes."""
        return is_sharded(self.model)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Leaves spread weights where they are: on their devices."""
        if not is_sharded(model):
            super()._move_model_to_device(model, device)

    @property
    def _has_adapters(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes checkpoints, and looks for those to delete: not where the finished ones are."""
        return str(Path(self.args.output_dir, UNFINISHED))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint aside; once every process has written its part, it gets its name.

        Raises:
            CheckpointError: on all processes, if any of them cannot write; the checkpoints before it are untouched.
        """
        step = self.state.global_step
        if step == self._saved_step:
            return  # these weights are saved
        self.finish_saving()
        output = Path(self.args.output_dir)
        aside, target = Path(self._get_output_dir(trial), f"checkpoint-{step}"), output / f"checkpoint-{step}"
        is_last = self.control.should_training_stop or step >= self.state.max_steps
        ends_here = is_last or self.args.push_to_hub or not self._saves_in_background
        self._to_write = None if ends_here or not self._has_room_for_copies() else []
        self._unless_it_fails(lambda: self._write_aside(model, trial, aside, target))
        to_write, self._to_write = self._to_write or [], None
        self._go_on_together(step)
        facts = self.checkpoint_facts()
        if self.args.should_save:
            best = self.state.best_global_step
            self._publishing = self._background.submit(self._publish, aside, target, to_write, facts, best)
        self._unnamed_step = self._saved_step = step
        if ends_here:
            self.finish_saving()
        if self.args.push_to_hub and self.is_world_process_zero():
            self.hub.push_checkpoint(target, step)

    def _has_room_for_copies(self) -> bool:
        """Whether what is saved may be held twice for a while. Whoever is not asked to save copies nothing."""
        if self._keeps_parts or self.is_deepspeed_enabled:
            return False  # each process writes files of its own
        weights = {} if self._has_adapters else self.model.state_dict()
        size = state_bytes([weights, self._inner_optimizer.state])
        has_room = size <= self._room_for_copies(self._copied_bytes)
        self._copied_bytes = max(self._copied_bytes, size) if has_room else self._copied_bytes
        return has_room

    def _publish(
        self, aside: Path, target: Path, to_write: list[Callable[[], None]], facts: Mapping[str, Any],
        best_step: int | None,
    ) -> None:  # fmt: skip
        """In the thread: what is left to be written, then the checkpoint gets its name."""
        while to_write:
            to_write.pop(0)()  # and with it the copy that it holds
        (aside / _PICKLED_ARGUMENTS).unlink(missing_ok=True)
        publish(aside, target, facts)
        rotate(target.parent, limit=self.args.save_total_limit, best_step=best_step)

    def finish_saving(self) -> None:
        """Waits until the checkpoint that was saved last has its name. All processes call it.

        Raises:
            CheckpointError: on all processes, if it cannot have it.
        """
        if self._unnamed_step is None:
            return
        step, publishing = self._unnamed_step, self._publishing
        self._unnamed_step = self._publishing = None
        if publishing is not None:
            self._unless_it_fails(publishing.result)
        self._go_on_together(step)

    @property
    def has_failed_to_save(self) -> bool:
        """Whether this process's thread could not give the last checkpoint its name; `finish_saving` says why."""
        publishing = self._publishing
        return publishing is not None and publishing.done() and publishing.exception() is not None

    def let_saving_end(self) -> None:
        """Waits for this process's thread alone, where the run ends by an error and nothing is agreed on any more."""
        if self._publishing is not None and self._publishing.exception() is not None:
            logger.info(
                "checkpoint-%s was not written: %s.", self._unnamed_step, one_line(self._publishing.exception())
            )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer looks through checkpoints here, and may load the best."""
        self.finish_saving()
        return super()._finalize_training(*args, **kwargs)

    def _write_aside(self, model: Any, trial: Any, aside: Path, target: Path) -> None:
        """Trainer's own saving; then the best checkpoint gets the name in its state that it will have."""
        super()._save_checkpoint(model, trial)
        best = self.state.best_global_step
        best_folder = target.with_name(f"checkpoint-{best}")
        if best and (best_folder == target or best_folder.is_dir()):
            self.state.best_model_checkpoint = str(best_folder)
        if self.args.should_save:
            self.state.save_to_json(str(aside / _TRAINER_STATE))

    def _unless_it_fails(self, write: Any) -> None:
        """Notes that a disk does not take what is written: the other processes must learn of it before this one ends.

        Raises:
            Exception: any that is about something else.
        """
        try:
            write()
        except Exception as error:
            problem = describe_disk_error(error, self.args.output_dir)
            if problem is None:
                raise
            self._failures.append(problem)

    def _go_on_together(self, step: int) -> None:
        problem = agree_on_problem(self._failures[0] if self._failures else None, self.context, self._cpu_group)
        if problem is None:
            return
        if self.args.should_save:
            shutil.rmtree(self._get_output_dir(None), ignore_errors=True)
        raise CheckpointError(
            f"output_dir: checkpoint-{step} cannot be written to {self.args.output_dir}: {problem}. The checkpoints "
            "before it are untouched: make room (or it writable) and go on with resume_from_checkpoint: auto."
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model. Where a checkpoint's cannot be written, Trainer still goes on to its barrier."""
        if not _internal_call:
            super().save_model(output_dir)
        elif not self.is_sharded:
            self._unless_it_fails(lambda: super(CheckpointedTrainer, self).save_model(output_dir, _internal_call=True))
        elif not self._keeps_parts:  # which are written with the optimizer's
            weights = self.gather_whole_weights()
            if self.args.should_save:
                self._unless_it_fails(lambda: self._save(output_dir, state_dict=weights))

    def gather_whole_weights(self) -> dict[str, Any] | None:
        """Weights that are spread over processes (of adapters: these alone), on the main process; all must call it.

        None where they are not spread.
        """
        if not self.is_sharded:
            return None
        return gather_weights(self.model, keep=self.args.should_save, trained_only=self._has_adapters)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Saves them; of spread weights, what all processes do together comes before anything is written."""
        folder = Path(output_dir)
        if not self.is_sharded:
            state = None
            if self._to_write is not None and self.args.should_save:
                state = _copy_if_it_can_be(self.optimizer.state_dict())
            if state is None:
                super()._save_optimizer_and_scheduler(output_dir)
                return
            self._write_now_or_later(lambda: torch.save(state, folder / _OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULER)
            return
        if self._keeps_parts:
            place = (self.context.rank, self.context.world_size)
            save_shards(folder, self.model, self._inner_optimizer, place, trained_only=self._has_adapters)
        else:
            state = gather_optimizer_state(self._inner_optimizer, keep=self.args.should_save)
            if self.args.should_save:
                self._write_now_or_later(lambda: torch.save(state, folder / _OPTIMIZER))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULER)

    def _write_now_or_later(self, write: Callable[[], None]) -> None:
        """Leaves a file to the thread, where what it is made of is a copy."""
        if self._to_write is None:
            write()
        else:
            self._to_write.append(write)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves the model and what belongs to it; in the thread, if it can be copied meanwhile."""
        weights = None
        if self._to_write is not None and not self._has_adapters:
            # What was gathered from other processes is a copy.
            weights = state_dict if state_dict is not None else _copy_if_it_can_be(self.model.state_dict())
        if weights is None:
            self._save_folder(output_dir, state_dict)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self._to_write.append(lambda: self._save_folder(output_dir, weights))

    def _save_folder(self, output_dir: str | None, state_dict: dict | None) -> None:
        """Saves without the token, which Trainer would write down with the other arguments."""
        if state_dict is not None and self.is_deepspeed_enabled:
            # DeepSpeed's copies no longer show that a head is tied to the embedding: it would be saved a second time.
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            state_dict = {name: tensor for name, tensor in state_dict.items() if tied.get(name) not in state_dict}
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing while a checkpoint is written: it is sent once it has its name."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository on the Hub; where that cannot be reached now, it is tried again when there is something
        to send."""
        if self.is_world_process_zero():
            self.hub.open()
            self.hub_model_id = self.hub.repository

    # Loading

    def _reads_parts(self, checkpoint: str) -> bool:
        """Whether weights are read by our own hands: they are spread over processes, or were when they were saved."""
        return self.is_sharded or num_shards(Path(checkpoint)) > 0

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads a checkpoint's weights.

        Raises:
            CheckpointError: if it lacks some of them.
        """
        if not self._reads_parts(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        folder = Path(resume_from_checkpoint)
        load = load_weight_shards if num_shards(folder) else load_full_weights
        missing = load(folder, self.model)
        if missing:
            raise CheckpointError(
                f"resume_from_checkpoint: {folder} lacks {len(missing)} weights that are trained, {missing[0]} among "
                "them: it was saved under other names. Write fsdp.checkpoints: sharded, and start anew."
            )

    def _load_spread_state(self, folder: Path) -> None:
        if num_shards(folder):
            load_optimizer_shards(folder, self._inner_optimizer)
        else:
            load_full_optimizer_state(folder / _OPTIMIZER, self._inner_optimizer)
        self.lr_scheduler.load_state_dict(torch.load(folder / _SCHEDULER, weights_only=True))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads their state, with the settings of this run where they are others than before."""
        set_now = [dict(group) for group in self.optimizer.param_groups] if self.optimizer is not None else []
        if checkpoint is not None and self._reads_parts(checkpoint):
            self._load_spread_state(Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not isinstance(self.lr_scheduler, LambdaLR) or self.is_deepspeed_enabled:
            return
        for number, (group, new) in enumerate(zip(self.optimizer.param_groups, set_now, strict=True)):
            for name in _SETTINGS_OF_GROUPS:
                if name in new:
                    group[name] = new[name]
            base = new.get("initial_lr", new["lr"])
            factor = self.lr_scheduler.lr_lambdas[number](self.lr_scheduler.last_epoch)
            group["initial_lr"] = self.lr_scheduler.base_lrs[number] = base
            group["lr"] = base * factor
        best = Path(checkpoint).with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)  # also where the folder was moved meanwhile

    def _load_best_model(self) -> None:
        """Loads the best checkpoint, if it is what was written; else the weights stay those of the last step."""
        best = self.state.best_model_checkpoint
        damage = find_damage(Path(best)) if self.context.is_main_process else []
        problem = agree_on_problem("; ".join(damage) or None, self.context, self._cpu_group)
        if problem is not None:
            logger.info("load_best_model_at_end: the best checkpoint, %s, is damaged (%s). The run ends with the "
                        "weights of its last step instead.", best, problem)  # fmt: skip
            return
        if self._reads_parts(best):
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()
        self.has_best_weights = True

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple:
        """Trainer's numbers of epochs and steps. It would take a step more where a checkpoint is of the last one."""
        _num_epochs, *others = values = super().set_initial_training_values(*args, **kwargs)
        max_steps = others[-1]
        return (0, *others) if self.resume_step and self.resume_step >= max_steps else values
