"""Evaluation as sums over supervised tokens: the same results for any batch size and number of processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from sft.batching.layout import model_inputs
from sft.common.training_data import RowDataset
from sft.configuration.evaluation_sets import UNNAMED
from sft.modeling.document_attention import isolated_documents
from sft.modeling.evaluation_sums import EvaluationSums
from sft.modeling.expert_load import ExpertLoad
from sft.modeling.experts import expert_counts
from sft.modeling.random_state import RandomState
from sft.processes.signals import Interrupted
from sft.training.checkpointed_trainer import CheckpointedTrainer
from sft.training.evaluation_step import EvaluationStep
from sft.training.loaders import SetLoader, evaluation_sampler, rows_loader
from sft.training.progress import TrainingProgress
from sft.training.row_layout import unsupported_attention_as_config_error
from sft.training.run_setup import RunSetup
from sft.training.stopping import EvaluationInterrupted, StopCallback

logger = logging.getLogger("sft.train")


class EvaluatingTrainer(CheckpointedTrainer):
    """Evaluates without side effects: random numbers, the model's mode and the training clock stay as they were."""

    eval_dataset: RowDataset | None
    products: str
    """The dtype in which matrix products are computed. Set by `SFTTrainer`."""
    stop: StopCallback | None = None
    """Handles signals during training."""
    _reported_missing_load = False

    def __init__(self, setup: RunSetup, arguments: TrainingArguments, progress: TrainingProgress, **kwargs: Any):
        """
        Args:
            setup: the run.
            arguments: transformers' settings.
            progress: the training clock, which an evaluation pauses.
            kwargs: see `CheckpointedTrainer`.
        """
        super().__init__(setup, arguments, eval_dataset=setup.data.validation, **kwargs)
        self.progress = progress
        self.layout = setup.prepared.layout
        self.evaluation_step = EvaluationStep(
            self.layout.evaluation_collator,
            self.args.per_device_eval_batch_size,
            self.args.device,
            can_split=not self.is_sharded,
        )

    @property
    def validation_sets(self) -> Mapping[str, RowDataset]:
        """The validation rows by the names of their sets; an only set without a name is `validation`."""
        if self.eval_dataset is None:
            return {}
        return self.setup.data.validation_sets or {"validation": self.eval_dataset}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This process's share of the rows of each evaluation set: by default of those of the validation data.

        Sets do not share batches, so that each has the figures that it would have alone.
        """
        # Trainer hands on `eval_dataset`, the rows of all sets.
        sets = eval_dataset if isinstance(eval_dataset, Mapping) else self.validation_sets
        loaders = {}
        for name, rows in sets.items():
            sampler = evaluation_sampler(rows, self.args.per_device_eval_batch_size, self.context)
            loaders[name] = rows_loader(rows, sampler, self.layout.evaluation_collator, self.args)
        return SetLoader(loaders)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Token-weighted loss, perplexity, token and sequence accuracy, and how often experts are chosen.

        Over all rows as `eval_loss` and so on, and where sets have names, over each of them as `eval_<name>_loss`.
        """
        # Trainer's own loop calls `accelerator.prepare_model`, which marks the model as prepared: DeepSpeed would then
        # never take it, and the weights of the processes would diverge without an error.
        model = self.model

        def compute(chunk: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
            with load.recorded() as chosen:
                losses, hits = self.layout.output.losses_and_hits(model, model_inputs(chunk), chunk)
            return losses, hits, load.counts_of(chosen, chunk)

        model.eval()
        of_sets = {name: EvaluationSums(self.args.device) for name in dataloader.loaders}
        load = ExpertLoad(model, self.args.device)
        with (
            unsupported_attention_as_config_error(),
            torch.no_grad(),
            self.accelerator.autocast(),
            isolated_documents(model, self.layout.attention),
            torch.compiler.set_stance("force_eager"),  # evaluation batches have other shapes
        ):
            for name, batch in dataloader:
                for chunk, (losses, hits, counts) in self.evaluation_step.run(batch, compute):
                    of_sets[name].add(losses, hits, chunk)
                    load.add(counts)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.context.world_size > 1:
            for sums in of_sets.values():
                torch.distributed.all_reduce(sums.tensor)
            torch.distributed.all_reduce(load.counts)
        experts = load.metrics()
        if not experts:
            self._report_missing_load()
        total = EvaluationSums(self.args.device)
        for sums in of_sets.values():
            total.merge(sums)
        found: dict[str, Any] = total.result().scores() | experts
        for name, sums in of_sets.items():
            if name not in UNNAMED.values():
                found |= {f"{name}_{metric}": value for metric, value in sums.result().scores().items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        predictions = cast(Any, None)  # not kept
        return EvalLoopOutput(predictions=predictions, label_ids=None, metrics=metrics, num_samples=total.num_sequences)

    def _report_missing_load(self) -> None:
        if expert_counts(self.model) and not self._reported_missing_load:
            self._reported_missing_load = True
            logger.info(
                "How often experts are chosen is not logged: this model does not pass their numbers to its experts."
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates. The time that it takes does not count as training, and random numbers are restored."""
        with self.without_trace():
            return super().evaluate(*args, **kwargs)

    def measure(self, kind: str, sets: Mapping[str, RowDataset]) -> dict[str, float]:
        """Evaluates sets that choose nothing: no callback but the log sees the figures, as `<kind>_loss` and so on."""
        with self.without_trace():
            found = self.evaluation_loop(self.get_eval_dataloader(sets), kind, metric_key_prefix=kind)
        metrics = cast(dict[str, float], found.metrics)
        self.log(dict(metrics))
        return metrics

    @contextmanager
    def without_trace(self) -> Iterator[None]:
        """Context after which random numbers and the model's mode are as before; the clock of training stands still.

        A run that resumes from a checkpoint made before an evaluation would otherwise draw other random numbers than
        the run that evaluated.
        """
        random_state, was_training = RandomState.capture(self.context.device), self.model.training
        try:
            with self.progress.paused("evaluating"):
                yield
        finally:
            self.model.train(was_training)
            random_state.restore()

    def _evaluate(  # type: ignore[override]  # Trainer's never returns None
        self, *args: Any, **kwargs: Any
    ) -> dict[str, float] | None:
        """Evaluates during training; None if a signal interrupted it. A signal that came meanwhile is handled here."""
        try:
            metrics = super()._evaluate(*args, **kwargs)
        except EvaluationInterrupted as interrupted:
            logger.info(
                "The evaluation at step %d was interrupted; the resumed run will repeat it.", self.state.global_step
            )
            assert self.stop is not None  # it raised the error
            self.stop.stop(interrupted.number, self.args, self.state, self.control)
            return None
        if self.stop is not None:
            self.stop.after_evaluation(self.args, self.state, self.control)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float] | None, trial: Any) -> bool:
        """Whether these weights are the best so far; after a signal, whether to save them (`save_strategy: best`)."""
        is_best = metrics is not None and super()._determine_best_metric(metrics=metrics, trial=trial)
        return is_best or (self.stop is not None and self.stop.stopped)

    def evaluate_now(self) -> None:
        """Evaluates before the next step, where the interrupted run did not get to it.

        The schedule may depend on the result, and the checkpoint may become the best one.

        Raises:
            Interrupted: if a signal interrupts it; the checkpoint exists already.
        """
        metrics = self._evaluate(None, None)
        if metrics is None:
            assert self.stop is not None
            raise Interrupted(self.stop.stopped_by)
        self._determine_best_metric(metrics=metrics, trial=None)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(self.output_dir / f"checkpoint-{self.state.global_step}")
