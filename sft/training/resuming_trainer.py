"""Loading checkpoints: weights, optimizer and schedule, also of sharded models; the best checkpoint at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from sft.checkpointing.manifest import find_damage
from sft.checkpointing.named_files import linked_files, named_files_of
from sft.common.errors import CheckpointError
from sft.common.outside_files import outside_file
from sft.common.run_records import DistributedContext
from sft.modeling.saved_names import has_other_names
from sft.modeling.sharded_state import (
    load_full_optimizer_state,
    load_full_weights,
    load_optimizer_shards,
    load_weight_shards,
    num_shards,
)
from sft.modeling.sharding import is_sharded
from sft.processes.agreement import agree_on_problem, open_cpu_group

logger = logging.getLogger("sft.train")
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
_CONFIG = "config.json"
_SETTINGS_OF_GROUPS = ("weight_decay", "betas", "eps", "momentum")
"""Settings that are also saved in an optimizer's state: the values of this run take precedence."""


class ResumingTrainer(Trainer):
    """transformers' Trainer that also loads sharded models, and never loads a damaged best checkpoint."""

    # transformers declares these as `X | None`. The model is always given; the others are set before training.
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR

    def __init__(self, context: DistributedContext, arguments: TrainingArguments, **kwargs: Any):
        """
        Args:
            context: this process among all.
            arguments: transformers' settings.
            kwargs: further arguments of transformers' Trainer.
        """
        super().__init__(args=arguments, **kwargs)
        self.context = context
        self._control_group = open_cpu_group(context)
        """For what processes agree on in main memory; None for one process."""
        self.resume_step = 0
        """The step that training resumes after."""
        self.resumed_from = Path()
        """The checkpoint that training resumes from."""
        self.has_best_weights = False
        """Whether the best checkpoint was loaded at the end."""

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are sharded over the processes."""
        return is_sharded(self.model)

    @property
    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def output_dir(self) -> Path:
        """Where the run writes."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _loads_itself(self, checkpoint: str) -> bool:
        """Whether our own code loads the checkpoint: the model is sharded, or was when it was saved."""
        return self.is_sharded or num_shards(Path(checkpoint)) > 0

    def _has_other_names(self, checkpoint: Path) -> bool:
        """Whether Trainer would find only some of the weights, and log no more than a warning."""
        return not self.is_deepspeed_enabled and has_other_names(checkpoint, self.model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; of a checkpoint, only the files that its manifest names are read."""
        if not isinstance(resume_from_checkpoint, str):
            return super().train(resume_from_checkpoint, *args, **kwargs)
        self.resumed_from = Path(resume_from_checkpoint)
        with named_files_of(self.resumed_from) as folder:
            return super().train(str(folder), *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads a checkpoint's weights.

        Raises:
            CheckpointError: if they cannot be loaded into the model, or trained weights are missing.
        """
        folder = Path(resume_from_checkpoint)
        with outside_file(f"resume_from_checkpoint: the weights in {folder} cannot be loaded", CheckpointError):
            if not (self._loads_itself(resume_from_checkpoint) or self._has_other_names(folder)):
                with _with_readable_config(folder) as readable:
                    super()._load_from_checkpoint(str(readable), model)
                return
            load = load_weight_shards if num_shards(folder) else load_full_weights
            missing = load(folder, self.model)
        if missing:
            raise CheckpointError(
                f"resume_from_checkpoint: {folder} lacks {len(missing)} trained weights, for example {missing[0]}: it "
                "was saved under other names. Write fsdp.checkpoints: sharded, and start a new run."
            )

    def _load_sharded_state(self, folder: Path) -> None:
        if num_shards(folder):
            load_optimizer_shards(folder, self._inner_optimizer)
        else:
            load_full_optimizer_state(folder / OPTIMIZER, self._inner_optimizer)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads the state of optimizer and schedule; changed settings keep the values of this run."""
        set_now = [dict(group) for group in self.optimizer.param_groups] if self.optimizer is not None else []
        problem = f"resume_from_checkpoint: the state of optimizer and schedule in {checkpoint} cannot be loaded"
        with outside_file(problem, CheckpointError):
            if checkpoint is not None and self._loads_itself(checkpoint):
                self._load_sharded_state(Path(checkpoint))
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
        best = self.resumed_from.with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)  # the folder may have been moved

    def _load_best_model(self) -> None:
        """Loads the best checkpoint unless it is damaged; then the model keeps the weights of the last step."""
        best = self.state.best_model_checkpoint
        assert best is not None  # otherwise Trainer does not call this
        damage = find_damage(Path(best)) if self.context.is_main_process else []
        problem = agree_on_problem("; ".join(damage) or None, self.context, self._control_group)
        if problem is not None:
            logger.info(
                "load_best_model_at_end: the best checkpoint, %s, is damaged (%s). The run ends with the weights of "
                "its last step instead.",
                best,
                problem,
            )
            return
        with named_files_of(Path(best)) as folder:
            self.state.best_model_checkpoint = str(folder)
            try:
                if self._loads_itself(str(folder)) or self._has_other_names(folder):
                    self._load_from_checkpoint(str(folder))
                else:
                    super()._load_best_model()
            finally:
                self.state.best_model_checkpoint = best
        self.has_best_weights = True

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Trainer's numbers of epochs and steps; zero epochs if the checkpoint is that of the last step.

        Otherwise Trainer would train one more step.
        """
        values = super().set_initial_training_values(*args, **kwargs)
        _num_epochs, *others, max_steps = values
        return (0, *others, max_steps) if self.resume_step and self.resume_step >= max_steps else values


@contextmanager
def _with_readable_config(checkpoint: Path) -> Iterator[Path]:
    """The checkpoint as Trainer can load it: without its config.json, if that is not readable without its class.

    Trainer reads the version of transformers there, for a warning, with the base class of all configurations. That
    fails for some rotary positions (YaRN by the ratio of two lengths).
    """
    try:
        if (checkpoint / _CONFIG).is_file():
            PretrainedConfig.from_json_file(str(checkpoint / _CONFIG))
    except Exception:  # any, since the class checks its values in its own ways
        names = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if not path.is_dir()]
        with linked_files(checkpoint, [name for name in names if name != _CONFIG]) as view:
            yield view
        return
    yield checkpoint
