"""Training: the trainer, and one run of it.

`SFTTrainer` changes six things of transformers' Trainer, all by its overrides: the loss (a mean over the supervised
tokens of the whole global batch), the gradient of a step (summed over processes once, and made in smaller parts where
memory runs out), evaluation (sums over tokens), the order of rows (the same on any number of processes), what is
logged, and checkpoints (`checkpointed_trainer.py`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from bad_steps import BadSteps
from batching.layout import model_inputs
from batching.moving import moved
from batching.order import RankBatchSampler
from batching.stream import MicroBatchStream
from checkpointed_trainer import CheckpointedTrainer
from device_memory import peak_memory_bytes, total_memory_bytes
from evaluation_step import EvaluationStep
from model_manager import footprint
from modeling.compiling import compile_layers
from modeling.document_attention import documents_apart
from modeling.flops import training_flops
from modeling.gradient_sum import broadcast_weights
from modeling.random_state import RandomState
from modeling.supervised_loss import EvaluationSums
from reporting.metrics_log import MetricsLog
from reporting.summary import plan_facts
from row_layout import RowLayout, told_of_attention
from run_state.checkpoints import checkpoint_step, list_checkpoints
from run_state.interruption import StopRequest
from sft_errors import DataError
from sft_types import (
    BatchPlan,
    DistributedContext,
    EvaluationResult,
    ModelFootprint,
    TrainingData,
    TrainingResult,
)
from training_arguments import continue_tensorboard, one_line_errors
from training_batches import evaluation_sampler, rows_loader, stream_loader, training_sampler
from training_callbacks import OrderCallback, RecordCallback, StopCallback, StreamDrops
from training_progress import COUNTED, TrainingProgress
from training_step import StepGradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.train")
METRICS = tuple(field.name for field in dataclasses.fields(EvaluationResult))


class SFTTrainer(CheckpointedTrainer):
    """transformers' Trainer with a token-weighted loss and evaluation, and an order of rows of our own."""

    # Our loss is already the mean over the accumulated global batch. (transformers >= 5.23 asks.)
    loss_is_scaled_for_ga = True

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
        self.progress = TrainingProgress(context, self.args.device)
        self._stream_drops = stream_drops
        self.evaluation_step = EvaluationStep(
            layout.evaluation_collator, self.args.per_device_eval_batch_size, self.args.device
        )
        self.bad_steps = BadSteps(context, device=self.args.device, most_in_a_row=max_bad_steps, place_of=data.place_of)
        self.step_gradient: StepGradient | None = None
        """None where FSDP or DeepSpeed sum the gradients of the weights that they spread."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.step_gradient = self._own_gradient(context, layout, plan)
        self._stream_group = None
        if stream is not None and context.world_size > 1:
            self._stream_group = torch.distributed.new_group(backend="gloo")
        self.train_sampler: RankBatchSampler | None = None
        if stream is None:
            self.train_sampler = training_sampler(data.train, self.args, plan, context)
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
            weights, layout.collator, plan.per_device_train_batch_size, context, parts=plan.parts,
            bad_steps=None if self.args.fp16 else self.bad_steps,
        )  # fmt: skip

    def plan_now(self) -> BatchPlan:
        """The batch plan, with the parts that memory has made necessary."""
        return self._plan if self.step_gradient is None else replace(self._plan, parts=self.step_gradient.parts)

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
        counts = moved(counts, self.progress.counts.device)
        if self.context.world_size > 1:
            torch.distributed.all_reduce(counts)
        self.progress.counts += counts
        # All of them now: the device copies later ones while it computes the first.
        return [moved(batch, device) for batch in batches], counts[0].to(device, torch.float32)

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

        if self.step_gradient is None:
            return run(inputs)
        is_last = self.accelerator.sync_gradients
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
        # prepared, and FSDP would then never take it; the processes would drift apart in silence.
        model = self.model

        def losses_and_hits(part: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layout.output.losses_and_hits(model, model_inputs(part), part)

        was_training = model.training
        model.eval()
        sums = EvaluationSums(self.args.device)
        with (
            told_of_attention(),
            torch.no_grad(),
            self.accelerator.autocast(),
            documents_apart(model, self.layout.attention),
            torch.compiler.set_stance("force_eager"),  # these batches have shapes of their own
        ):
            for batch in dataloader:
                for part, (losses, hits) in self.evaluation_step.run(batch, losses_and_hits):
                    sums.add(losses, hits, part["target_rows"], num_rows=part["counts"]["rows"])
        model.train(was_training)
        if self.context.world_size > 1:
            torch.distributed.all_reduce(sums.tensor)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in dataclasses.asdict(sums.result()).items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=sums.num_sequences)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates; the time it takes does not count as training.

        Random numbers are as before: a run that goes on from a checkpoint made before an evaluation would else draw
        others than the run that evaluated.
        """
        random_state = RandomState.of(self.context.device)
        with self.progress.paused():
            metrics = super().evaluate(*args, **kwargs)
        random_state.restore()
        return metrics

    def checkpoint_facts(self) -> dict[str, Any]:
        """What the next checkpoint's manifest says beside its files."""
        return {**super().checkpoint_facts(), "batch_plan": plan_facts(self.plan_now())}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.progress.paused():
            super()._save_checkpoint(model, trial)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds speed since the last log, and memory, to what a step logs."""
        if "loss" in logs:
            logs |= self.progress.figures(is_stream=self.train_sampler is None)
        super().log(logs, start_time)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTraining:
    """A trainer with what `train` needs beside it."""

    trainer: SFTTrainer
    stop: StopCallback
    request: StopRequest


def build_trainer(
    arguments: TrainingArguments,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: TrainingData,
    plan: BatchPlan,
    layout: RowLayout,
    context: DistributedContext,
    *,
    checkpoint: Path | None,
    stream_drops: StreamDrops | None = None,
    compiling: Mapping[str, Any] | None = None,
    max_bad_steps: int = 3,
    facts: Mapping[str, Any] | None = None,
) -> PreparedTraining:
    """Puts the trainer together.

    Raises:
        ConfigError: if a tracker or the optimizer needs a package that is not installed.

    Args:
        checkpoint: what training will go on from; None for a fresh start.
        stream_drops: what becomes of rows of a stream that cannot be used.
        compiling: options of `torch.compile` for the model's layers; None leaves them as they are.
        max_bad_steps: in a row, until the run stops.
        facts: what checkpoints keep of the run, ready for JSON.
    """
    if compiling is not None:
        count = compile_layers(model, has_one_shape=layout.has_one_shape, **compiling)
        logger.info("Compiling %d layers, at the first steps.", count)
    request = StopRequest()
    step = checkpoint_step(checkpoint) if checkpoint else 0
    if data.stream is not None:
        arguments.ignore_data_skip = True  # the stream itself begins where the checkpoint ends
    with one_line_errors():
        trainer = SFTTrainer(
            context=context,
            data=data,
            layout=layout,
            size=footprint(model),
            plan=plan,
            stream_drops=stream_drops,
            max_bad_steps=max_bad_steps,
            stream=_stream_from(data, plan, layout, context, first_step=step),
            facts=facts or {},
            model=model,
            args=arguments,
            processing_class=tokenizer,
        )
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            # An optimizer whose package is missing is refused here, before anything is written.
            trainer.create_optimizer()
    if checkpoint and context.is_main_process:
        continue_tensorboard(trainer, step)
    metrics_log = _metrics_log(arguments.output_dir, checkpoint) if context.is_main_process else None
    stop = StopCallback(request, context)
    trainer.add_callback(OrderCallback(trainer.train_sampler, plan.steps_per_epoch))
    trainer.add_callback(RecordCallback(metrics_log, plan.total_steps))
    trainer.add_callback(stop)
    return PreparedTraining(trainer=trainer, stop=stop, request=request)


def _metrics_log(output_dir: str, checkpoint: Path | None) -> MetricsLog:
    """The run's record, without the steps behind the checkpoint that it goes on from."""
    return MetricsLog(Path(output_dir, "metrics.jsonl"), resume_step=checkpoint and checkpoint_step(checkpoint))


def _stream_from(
    data: TrainingData, plan: BatchPlan, layout: RowLayout, context: DistributedContext, *, first_step: int
) -> MicroBatchStream | None:
    """The micro-batches from a step on, where rows are streamed."""
    if data.stream is None:
        return None
    return MicroBatchStream(
        data.stream,
        layout.collator,
        plan.per_device_train_batch_size,
        rank=context.rank,
        world_size=context.world_size,
        first_micro_batch=first_step * plan.gradient_accumulation_steps,
    )


def evaluate(trainer: SFTTrainer) -> EvaluationResult | None:
    """Evaluates on the validation data; None where there is none."""
    if trainer.eval_dataset is None:
        return None
    return _result_of(trainer.evaluate())


def train(prepared: PreparedTraining, *, checkpoint: Path | None) -> TrainingResult:
    """Trains to the end, or until a signal asks for it to stop; the best model is loaded where that is asked for."""
    trainer = prepared.trainer
    # What was drawn before (sample answers, an evaluation) must not change the run.
    set_seed(trainer.args.seed)
    progress = trainer.progress
    progress.start()
    if checkpoint:
        logger.info("Going on from %s.", checkpoint)
    with told_of_attention(), prepared.request, documents_apart(trainer.model, trainer.layout.attention):
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best and not prepared.stop.stopped:
        logger.info("Loaded the best checkpoint, %s (%s %.4f).", best, trainer.args.metric_for_best_model,
                    trainer.state.best_metric)  # fmt: skip
    seconds = progress.seconds()
    supervised, tokens, rows, _, dropped = progress.counts.tolist()
    steps_here = output.global_step - (checkpoint_step(checkpoint) if checkpoint else 0)
    peak, total = peak_memory_bytes(trainer.context.device), total_memory_bytes(trainer.context.device)
    checkpoints = list_checkpoints(trainer.args.output_dir)
    return TrainingResult(
        status="interrupted" if prepared.stop.stopped else "completed",
        stopped_by=prepared.stop.stopped_by,
        steps=output.global_step,
        epochs=float(trainer.state.epoch or 0.0) if trainer.train_sampler is not None else None,
        loss=output.training_loss if steps_here else None,
        seconds=seconds,
        examples_per_second=rows / seconds,
        tokens_per_second=tokens / seconds,
        supervised_tokens_per_second=supervised / seconds,
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
    best_was_loaded = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    if events and events[-1]["step"] == trainer.state.global_step and not best_was_loaded:
        return _result_of(events[-1])
    return evaluate(trainer)


def _result_of(metrics: Mapping[str, float]) -> EvaluationResult:
    return EvaluationResult(**{name: metrics[f"eval_{name}"] for name in METRICS})
