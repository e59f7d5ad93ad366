"""The trainer.

`SFTTrainer` changes six things of transformers' Trainer, all by its overrides: the loss (a mean over the supervised
tokens of the whole global batch), the gradient of a step (summed over processes once, and made in smaller parts where
memory runs out), evaluation (sums over tokens), the order of rows (the same on any number of processes), what is
logged, and checkpoints (`sft/training/checkpointed_trainer.py`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from sft.batching.layout import model_inputs
from sft.batching.stream import MicroBatchStream
from sft.batching.transfer import to_device
from sft.checkpointing.checkpoints import list_checkpoints
from sft.checkpointing.resume_point import ResumePoint
from sft.common.data_records import TrainingData
from sft.common.errors import DataError
from sft.common.machine_records import MemoryLimits
from sft.common.run_records import BatchPlan, DistributedContext, EvaluationResult, ModelFootprint, TrainingResult
from sft.modeling.document_attention import isolated_documents
from sft.modeling.flops import training_flops
from sft.modeling.footprint import footprint
from sft.modeling.gradient_sum import broadcast_weights
from sft.modeling.random_state import RandomState
from sft.modeling.sharding import reshard_weights
from sft.modeling.supervised_loss import EvaluationSums, perplexity_of
from sft.processes.device_memory import peak_memory_bytes, total_memory_bytes
from sft.processes.device_peaks import device_peak_flops, matmul_dtype
from sft.processes.signals import Interrupted, StopRequest
from sft.reporting.summary import plan_facts
from sft.reporting.trackers.guard import quiet_tracker_threads
from sft.training.arguments import one_line_errors, trackers_take_checkpoints
from sft.training.assembly import (
    PreparedTraining,
    _add_display,
    _compile,
    _install_trackers,
    _metrics_log,
    _room_for_copies,
    _stream_from,
)
from sft.training.bad_steps import BadSteps
from sft.training.callbacks import EdgeCallback, EvaluationCut, OrderCallback, RecordCallback, StopCallback, StreamDrops
from sft.training.checkpointed_trainer import CheckpointedTrainer
from sft.training.evaluation_step import EvaluationStep
from sft.training.loaders import evaluation_sampler, rows_loader, stream_loader, training_sampler
from sft.training.progress import COUNTED, TrainingProgress
from sft.training.row_layout import RowLayout, unsupported_attention_as_config_error
from sft.training.running_means import RunningMeans
from sft.training.sharded_step import ShardedStep
from sft.training.step import StepGradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.train")


class SFTTrainer(CheckpointedTrainer):
    """transformers' Trainer with a token-weighted loss and evaluation, and an order of rows of our own."""

    # Our loss is already the mean over the accumulated global batch. (transformers >= 5.23 asks.)
    loss_is_scaled_for_ga = True
    stop: StopCallback | None = None
    """Sees to signals while training."""

    def __init__(
        self,
        *,
        context: DistributedContext,
        data: TrainingData,
        layout: RowLayout,
        size: ModelFootprint,
        plan: BatchPlan,
        stream: MicroBatchStream | None = None,
        stream_drops: StreamDrops | None = None,
        max_bad_steps: int = 3,
        **kwargs: Any,
    ):
        """Args:
        context: this process among all.
        data: what to train and evaluate on.
        layout: how rows become a micro-batch.
        size: of the model.
        plan: how many rows, or packs, a step takes.
        stream: micro-batches to train on in place of the rows of `data`.
        stream_drops: is told the rows that a stream lacks.
        max_bad_steps: in a row, whose loss or gradient is no finite number.
        kwargs: what `CheckpointedTrainer` takes.
        """
        super().__init__(
            context=context, train_dataset=stream or data.train, eval_dataset=data.validation,
            data_collator=layout.collator, **kwargs,
        )  # fmt: skip
        # Earlier versions of transformers ask this way whether the loss is scaled.
        self.model_accepts_loss_kwargs = True
        self.layout = layout
        self._size = size
        self._plan = plan
        self.products = matmul_dtype(self.args.bf16, self.args.fp16, self.model.dtype)
        """The type that matrix products are made in."""
        peak = device_peak_flops(context.device, self.products)
        self.progress = TrainingProgress(context, self.args.device, footprint=size, peak_flops=peak)
        self.means = RunningMeans(self, context, self.args.device)
        self.add_callback(self.means)
        self._stream_drops = stream_drops
        self.evaluation_step = EvaluationStep(
            layout.evaluation_collator, self.args.per_device_eval_batch_size, self.args.device,
            can_split=not self.is_sharded,
        )  # fmt: skip
        self.bad_steps = BadSteps(
            context, device=self.args.device, max_consecutive=max_bad_steps, locate_row=data.locate_row,
            drops_gradients=self.is_sharded,
        )  # fmt: skip
        self.step_gradient: StepGradient | None = None
        """None where FSDP or DeepSpeed sum the gradients of the weights that they spread."""
        self._sharded_step: ShardedStep | None = None
        if self.is_sharded:
            self._sharded_step = self._summed_in_parts()
        elif not self.is_deepspeed_enabled:
            self.step_gradient = self._own_gradient(context, layout, plan)
        self._stream_group = None
        if stream is not None and context.world_size > 1:
            self._stream_group = torch.distributed.new_group(backend="gloo")
        self.train_sampler = None if stream is not None else training_sampler(data.train, self.args, plan, context)
        self.remove_callback(PrinterCallback)

    def _own_gradient(self, context: DistributedContext, layout: RowLayout, plan: BatchPlan) -> StepGradient:
        """Takes the sum over processes from accelerate, which would wrap the model in DistributedDataParallel."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        if context.world_size > 1:
            # Marked as prepared, the model is not wrapped any more.
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
            broadcast_weights(weights)
        self.add_callback(self.bad_steps)
        return StepGradient(
            weights, layout.collator, plan.per_device_train_batch_size, context, num_chunks=plan.parts,
            bad_steps=None if self.args.fp16 else self.bad_steps, on_retry=self.means.restart_step,
        )  # fmt: skip

    def _summed_in_parts(self) -> ShardedStep:
        """Tells accelerate that the model is prepared: its weights are spread, and gradients sum themselves up."""
        reshard_weights(self.model)
        self.accelerator.prepare_model(self.model, evaluation_mode=True)
        self.add_callback(self.bad_steps)
        return ShardedStep(
            lambda: [weight for weight in self.model.parameters() if weight.requires_grad], self.bad_steps
        )

    def plan_now(self) -> BatchPlan:
        """The batch plan, with the parts that memory has made necessary."""
        return self._plan if self.step_gradient is None else replace(self._plan, parts=self.step_gradient.num_chunks)

    def resume_from(self, manifest: Mapping[str, Any]) -> None:
        """Counts on from where a checkpoint was saved (see `checkpoint_facts`)."""
        self.progress.seen_before = manifest.get("trained_on") or self.progress.seen_before
        self.means.resume_from(manifest.get("means"))

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches, epoch by epoch."""
        if self.train_sampler is None:
            return stream_loader(self.train_dataset, self.args)
        return rows_loader(self.train_dataset, self.train_sampler, self.data_collator, self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """This process's share of the evaluation rows."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        sampler = evaluation_sampler(rows, self.args.per_device_eval_batch_size, self.context)
        return rows_loader(rows, sampler, self.layout.evaluation_collator, self.args)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """The micro-batches of the next step, and how many supervised tokens they hold on all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        dropped = 0 if self.train_sampler is not None else self._take_dropped(batches)
        summed = [sum(batch["counts"][name] for batch in batches) for name in COUNTED]
        counts = torch.tensor([*summed, dropped], dtype=torch.float64)
        counts = to_device(counts, self.progress.counts.device)
        if self.context.world_size > 1:
            torch.distributed.all_reduce(counts)
        self.progress.counts += counts
        self.means.begin_step(counts[0])
        # All of them now: the device copies later ones while it computes the first.
        return [to_device(batch, device) for batch in batches], counts[0].to(device, torch.float32)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """What training on a micro-batch costs by the usual formula, without its padding (see `training_flops`)."""
        counts = inputs["counts"]
        return training_flops(self._size, tokens=counts["tokens"], squares=counts["squares"])

    def _take_dropped(self, batches: list[dict[str, Any]]) -> int:
        """Takes out of a stream's batches what no model takes; returns how many rows this process's batches lack.

        All processes learn of it, so that all of them stop where one must.

        Raises:
            DataError: if the stream cannot be read on, or a row that cannot be used is an error.
        """
        failed = [problem for batch in batches for problem in batch.get("failed", ())]
        dropped = [row for batch in batches for row in batch.pop("dropped", ())]
        found = [(failed, dropped)]
        if self.context.world_size > 1:
            found = [None] * self.context.world_size
            torch.distributed.all_gather_object(found, (failed, dropped), group=self._stream_group)
        problems = list(dict.fromkeys(problem for failures, _ in found for problem in failures))
        if problems:
            raise DataError(*problems)
        slots = self._plan.per_device_train_batch_size * len(batches) * self.context.world_size
        self._stream_drops.add([row for _, rows in found for row in rows], slots)
        return len(dropped)

    # Loss and evaluation

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Sum of the micro-batch's token losses over the supervised tokens of the whole global batch.

        Times the number of processes where FSDP or DeepSpeed average gradients over them.
        """
        total = self.layout.output.loss_sum(
            model,
            model_inputs(inputs),
            inputs,
            label_smoothing=self.args.label_smoothing_factor,
            count_hits=self.means.add_correct,
        )
        # A step of a stream may have no token at all: its sum is 0 then.
        times = self.context.world_size if self.step_gradient is None else 1
        loss = total * times / num_items_in_batch.clamp(min=1)
        return (loss, {}) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Adds a micro-batch to the step's gradient; the loss of the step comes with its last one."""

        def run(batch: Mapping[str, Any]) -> torch.Tensor:
            tensors = {name: value for name, value in batch.items() if name != "rows"}
            return super(SFTTrainer, self).training_step(model, tensors, num_items_in_batch)

        is_last = self.accelerator.sync_gradients
        if self._sharded_step is not None:
            return self._sharded_step.add(inputs, run, is_last=is_last)
        if self.step_gradient is None:
            return run(inputs)
        loss = self.step_gradient.add(inputs, run, is_last=is_last, step=self.state.global_step + 1)
        return loss * self.context.world_size  # the log takes the mean over processes

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Token-weighted loss, perplexity, token and sequence accuracy: the same whatever the batches."""
        # Not `accelerator.prepare_model`, as in Trainer's own loop: a model prepared for evaluation is marked as
        # prepared, and DeepSpeed would then never take it; the processes would drift apart in silence.
        model = self.model

        def losses_and_hits(part: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layout.output.losses_and_hits(model, model_inputs(part), part)

        model.eval()
        sums = EvaluationSums(self.args.device)
        with (
            unsupported_attention_as_config_error(),
            torch.no_grad(),
            self.accelerator.autocast(),
            isolated_documents(model, self.layout.attention),
            torch.compiler.set_stance("force_eager"),  # these batches have shapes of their own
        ):
            for batch in dataloader:
                for part, (losses, hits) in self.evaluation_step.run(batch, losses_and_hits):
                    sums.add(losses, hits, part["target_rows"], num_rows=part["counts"]["rows"])
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.context.world_size > 1:
            torch.distributed.all_reduce(sums.tensor)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in dataclasses.asdict(sums.result()).items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=sums.num_sequences)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates; the time it takes does not count as training.

        Random numbers are as before: a run that goes on from a checkpoint made before an evaluation would else draw
        others than the run that evaluated.
        """
        random_state, was_training = RandomState.capture(self.context.device), self.model.training
        try:
            with self.progress.paused("evaluating"):
                return super().evaluate(*args, **kwargs)
        finally:
            self.model.train(was_training)
            random_state.restore()

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float] | None:
        """Evaluates while training; None if a signal cut it short. A signal that came meanwhile is heard here."""
        try:
            metrics = super()._evaluate(*args, **kwargs)
        except EvaluationCut as cut:
            logger.info(
                "The evaluation at step %d is cut short; it is made when the run goes on.", self.state.global_step
            )
            self.stop.stop(cut.number, self.args, self.state, self.control)
            return None
        if self.stop is not None:
            self.stop.after_evaluation(self.args, self.state, self.control)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float] | None, trial: Any) -> bool:
        """Whether these weights are the best so far; where a signal has come, whether to save them (`best`)."""
        is_best = metrics is not None and super()._determine_best_metric(metrics=metrics, trial=trial)
        return is_best or (self.stop is not None and self.stop.stopped)

    def evaluate_now(self) -> None:
        """Makes up for an evaluation before the next step: the schedule may follow it, and the checkpoint may become
        the best.

        Raises:
            Interrupted: if a signal cuts it short; the checkpoint is there already.
        """
        metrics = self._evaluate(None, None)
        if metrics is None:
            raise Interrupted(self.stop.stopped_by)
        self._determine_best_metric(metrics=metrics, trial=None)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))

    def checkpoint_facts(self) -> dict[str, Any]:
        """What the next checkpoint's manifest says beside its files. All processes call it."""
        return {
            **super().checkpoint_facts(),
            "batch_plan": plan_facts(self.plan_now()),
            "trained_on": self.progress.seen(),
            "means": self.means.state_dict(),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.progress.paused("saving"):
            super()._save_checkpoint(model, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.means.finish()
        return super()._finalize_training(*args, **kwargs)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds perplexity, accuracy and speed since the last log, memory and utilization to what a step logs."""
        if self.means.mean_loss is not None and "train_loss" in logs:
            logs["train_loss"] = self.means.mean_loss  # Trainer's is of the steps since it began or went on
        if "loss" in logs:
            if not self.args.label_smoothing_factor:  # a smoothed loss is no mean of log probabilities
                logs["perplexity"] = perplexity_of(logs["loss"])
            accuracy = self.means.take_token_accuracy()
            if accuracy is not None:
                logs["token_accuracy"] = accuracy
            logs |= self.progress.step_metrics(is_stream=self.train_sampler is None)
        super().log(logs, start_time)


METRICS = tuple(field.name for field in dataclasses.fields(EvaluationResult))


def build_trainer(
    arguments: TrainingArguments,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: TrainingData,
    plan: BatchPlan,
    layout: RowLayout,
    context: DistributedContext,
    *,
    resume_point: ResumePoint | None,
    stream_drops: StreamDrops | None = None,
    compiling: Mapping[str, Any] | None = None,
    max_bad_steps: int = 3,
    facts: Mapping[str, Any] | None = None,
    keeps_parts: bool = False,
    limits: MemoryLimits | None = None,
) -> PreparedTraining:
    """Puts the trainer together.

    Raises:
        ConfigError: if a tracker or the optimizer needs a package that is not installed.

    Args:
        resume_point: the checkpoint to resume from; None for a fresh start.
        stream_drops: what becomes of rows of a stream that cannot be used.
        compiling: options of `torch.compile` for the model's layers; None leaves them as they are.
        max_bad_steps: in a row, until the run stops.
        facts: what checkpoints keep of the run, ready for JSON.
        keeps_parts: where weights are spread over processes, checkpoints hold them in parts.
        limits: of this process's memory; with None, what is saved is never copied first.
    """
    _compile(model, layout, compiling)
    request = StopRequest()
    step = resume_point.step if resume_point else 0
    if data.stream is not None:
        arguments.ignore_data_skip = True  # the stream itself begins where the checkpoint ends
    with one_line_errors():
        trainer = SFTTrainer(
            context=context, data=data, layout=layout, size=footprint(model), plan=plan,
            stream_drops=stream_drops, max_bad_steps=max_bad_steps,
            stream=_stream_from(data, plan, layout, context, first_step=step),
            facts=facts or {}, keeps_parts=keeps_parts,
            saves_in_background=not trackers_take_checkpoints(arguments),
            room_for_copies=_room_for_copies(context, limits),
            model=model, args=arguments, processing_class=tokenizer,
        )  # fmt: skip
        if not trainer.is_deepspeed_enabled:
            # An optimizer whose package is missing is refused here, before anything is written.
            trainer.create_optimizer()
    if resume_point:
        trainer.resume_from(resume_point.manifest)
    metrics_log = _metrics_log(arguments.output_dir, resume_point) if context.is_main_process else None
    stop = trainer.stop = StopCallback(request, trainer)
    trainer.add_callback(OrderCallback(trainer.train_sampler, plan.steps_per_epoch))
    trainer.add_callback(RecordCallback(metrics_log))
    trainer.add_callback(stop)
    trackers = _install_trackers(trainer, data, plan, first_step=step)
    display = _add_display(trainer, plan, first_step=step)
    return PreparedTraining(trainer=trainer, trackers=trackers, display=display, stop=stop, request=request)


def evaluate(trainer: SFTTrainer) -> EvaluationResult | None:
    """Evaluates on the validation data; None where there is none."""
    if trainer.eval_dataset is None:
        return None
    return _result_of(trainer.evaluate())


def train(prepared: PreparedTraining, *, resume_point: ResumePoint | None) -> TrainingResult:
    """Trains to the end, or until a signal asks for it to stop; the best model is loaded where that is asked for."""
    trainer = prepared.trainer
    # What was drawn before (sample answers, an evaluation) must not change the run.
    set_seed(trainer.args.seed)
    progress = trainer.progress
    trainer.resume_step = resume_point.step if resume_point else 0
    trainer.add_callback(EdgeCallback(trainer, trainer.plan_now().steps_per_epoch))
    progress.start()
    if resume_point:
        logger.info("Resuming from %s.", resume_point.path)
    apart = isolated_documents(trainer.model, trainer.layout.attention)
    with unsupported_attention_as_config_error(), prepared.request, apart, quiet_tracker_threads():
        try:
            output = trainer.train(resume_from_checkpoint=str(resume_point.path) if resume_point else None)
        except BaseException:
            trainer.let_saving_end()  # or it would still write when another run may
            raise
    if trainer.has_best_weights and not prepared.stop.stopped:
        logger.info("Loaded the best checkpoint, %s (%s %.4f).", trainer.state.best_model_checkpoint,
                    trainer.args.metric_for_best_model, trainer.state.best_metric)  # fmt: skip
    seconds = progress.seconds()
    supervised, tokens, rows, *_, dropped = progress.counts.tolist()
    peak, total = peak_memory_bytes(trainer.context.device), total_memory_bytes(trainer.context.device)
    checkpoints = list_checkpoints(trainer.args.output_dir)
    return TrainingResult(
        status="interrupted" if prepared.stop.stopped else "completed",
        stopped_by=prepared.stop.stopped_by,
        steps=output.global_step,
        epochs=float(trainer.state.epoch or 0.0) if trainer.train_sampler is not None else None,
        loss=trainer.means.mean_loss,
        seconds=seconds,
        examples_per_second=rows / seconds,
        tokens_per_second=tokens / seconds,
        supervised_tokens_per_second=supervised / seconds,
        model_flops_per_second=progress.model_flops() / seconds,
        mfu=progress.utilization(progress.model_flops() / seconds),
        rows_dropped=int(dropped),
        bad_steps=trainer.bad_steps.count,
        memory_shortages={
            "training": trainer.step_gradient.shortages if trainer.step_gradient else 0,
            "evaluation": trainer.evaluation_step.shortages,
        },
        peak_memory_bytes=peak,
        memory_share=peak / total if total else None,
        last_checkpoint=str(checkpoints[-1]) if checkpoints else None,
    )


def last_evaluation(trainer: SFTTrainer) -> EvaluationResult | None:
    """The model's evaluation as it now is: the last one made, if it was made of these weights, else a new one."""
    events = [event for event in trainer.state.log_history if "eval_loss" in event]
    if events and events[-1]["step"] == trainer.state.global_step and not trainer.has_best_weights:
        return _result_of(events[-1])
    return evaluate(trainer)


def _result_of(metrics: Mapping[str, float]) -> EvaluationResult:
    return EvaluationResult(**{name: metrics[f"eval_{name}"] for name in METRICS})
