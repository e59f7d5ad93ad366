"""The door to training: the trainer, how it is assembled, and how it trains and evaluates.

`SFTTrainer` is transformers' Trainer with these overrides: a loss that is the (weighted) mean over the trained tokens
of the global batch, a gradient that is summed over processes once a step (and computed in smaller chunks if memory runs
out), an order of rows that does not depend on the number of processes, and log figures. Its bases add clipping
(`sft/training/clipping.py`), evaluation (`evaluating_trainer.py`), saving (`checkpointed_trainer.py`) and loading
(`resuming_trainer.py`). Between steps, callbacks run (`callbacks.py`, `stopping.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments, set_seed

from sft.batching.stream import MicroBatchStream
from sft.batching.transfer import to_device
from sft.common.run_records import BatchPlan, EvaluationResult, TrainingResult
from sft.modeling.document_attention import isolated_documents
from sft.modeling.evaluation_sums import perplexity_of
from sft.modeling.flops import training_flops
from sft.processes.agreement import open_cpu_group
from sft.processes.device_peaks import device_peak_flops, matmul_dtype
from sft.processes.signals import StopRequest
from sft.processes.watchdog import SLOW, Watchdog
from sft.reporting.log_lines import plan_line
from sft.reporting.summary import plan_entries
from sft.reporting.trackers.guard import quiet_tracker_threads
from sft.training.arguments import compile_options, one_line_errors
from sft.training.assembly import (
    PreparedTraining,
    add_display,
    compile_model,
    install_run_trackers,
    open_metrics_log,
    open_stream,
)
from sft.training.bad_steps import BadSteps
from sft.training.callbacks import MissedEvaluationCallback, OrderCallback, RecordCallback, WatchCallback
from sft.training.clipping import ClippingTrainer
from sft.training.early_stopping import add_early_stopping
from sft.training.evaluating_trainer import EvaluatingTrainer
from sft.training.evaluations import evaluate_after, evaluate_before, evaluate_validation
from sft.training.gradients import build_step, loss_function
from sft.training.loaders import rows_loader, stream_loader, training_sampler
from sft.training.progress import COUNTED, TrainingProgress
from sft.training.results import training_result
from sft.training.router_balance import add_router_balance
from sft.training.row_layout import unsupported_attention_as_config_error
from sft.training.run_identity import saved_before_training
from sft.training.run_setup import RunSetup
from sft.training.running_means import RunningMeans
from sft.training.sample_answers import build_samples
from sft.training.scored_answers import add_scored_answers
from sft.training.sharded_step import ShardedStep
from sft.training.step import StepGradient
from sft.training.stopping import StopCallback
from sft.training.stream_drops import StreamDrops, take_dropped

logger = logging.getLogger("sft.train")


class SFTTrainer(ClippingTrainer):
    """transformers' Trainer with a token-weighted loss and our own order of rows."""

    train_dataset: Any
    """Stored rows, or a `MicroBatchStream`, which has no `train_sampler`."""
    # Our loss is already the mean over the accumulated global batch (transformers 5.23 and later read this).
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        setup: RunSetup,
        arguments: TrainingArguments,
        *,
        stream: MicroBatchStream | None = None,
        stream_drops: StreamDrops | None = None,
    ):
        """
        Args:
            setup: the run.
            arguments: transformers' settings.
            stream: micro-batches to train on instead of the stored rows.
            stream_drops: counts the rows that the stream drops.
        """
        context, layout, prepared = setup.context, setup.prepared.layout, setup.prepared
        self.products = matmul_dtype(arguments.bf16, arguments.fp16, prepared.model.dtype)
        peak = device_peak_flops(context.device, self.products)
        progress = TrainingProgress(context, arguments.device, footprint=prepared.footprint, peak_flops=peak)
        super().__init__(
            setup,
            arguments,
            progress,
            train_dataset=stream or setup.data.train,
            data_collator=layout.collator,
        )
        # Earlier versions of transformers read this one to decide whether the loss is scaled.
        self.model_accepts_loss_kwargs = True
        weighs = stream is not None or setup.data.report.train.weights is not None
        self.means = RunningMeans(self, context, self.args.device, keeps_plain_loss=weighs)
        self.add_callback(self.means)
        self.stream_drops = stream_drops
        self.bad_steps = BadSteps(
            context,
            device=self.args.device,
            max_consecutive=setup.config.training.max_bad_steps,
            locate_row=setup.data.locate_row,
        )
        self.early_stopping = add_early_stopping(self)
        self.router_balance = add_router_balance(self)
        self._loss_sum = loss_function(self)
        step = build_step(self, self._loss_sum, self.bad_steps)
        self._sharded_step = step if isinstance(step, ShardedStep) else None
        self.step_gradient = step if isinstance(step, StepGradient) else None
        """None where FSDP or DeepSpeed sum the gradients."""
        self._stream_group = open_cpu_group(context) if stream is not None else None
        self.train_sampler = None
        if stream is None:
            self.train_sampler = training_sampler(setup, self.args, context)
        self.remove_callback(PrinterCallback)

    def current_plan(self) -> BatchPlan:
        """The batch plan, with the number of chunks that a micro-batch is split into by now."""
        plan = self.setup.plan
        return plan if self.step_gradient is None else replace(plan, num_chunks=self.step_gradient.chunks.num_chunks)

    def restore_counts(self, manifest: Mapping[str, Any]) -> None:
        """Continues counting where a checkpoint was saved (see `manifest_entries`)."""
        self.progress.seen_before = manifest.get("trained_on") or self.progress.seen_before
        self.means.resume_from(manifest.get("means"))
        if self.early_stopping is not None:
            self.early_stopping.resume_from(manifest.get("early_stopping"))
        if self.step_gradient is not None:
            self.step_gradient.chunks.resume_from(manifest.get("chunks"))

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches, epoch by epoch."""
        if self.train_sampler is None:
            return stream_loader(self.train_dataset, self.args)
        return rows_loader(self.train_dataset, self.train_sampler, self.data_collator, self.args)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """The micro-batches of the next step, and their targets' weights (without weights: number) on all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        dropped = 0
        if self.train_sampler is None:
            assert self.stream_drops is not None  # given with a stream
            dropped = take_dropped(
                batches,
                self.stream_drops,
                self.setup.plan.per_device_train_batch_size,
                self.context,
                self._stream_group,
            )
        summed = (sum(batch["counts"][name] for batch in batches) for name in COUNTED)
        counts = dict(zip(COUNTED, self.progress.add_step([*summed, dropped]), strict=False))
        self.means.begin_step(counts["supervised"], counts["weighted_rows"])
        # All at once: the device copies later ones while it computes the first.
        batches, weight = [to_device(batch, device) for batch in batches], counts["weight"].to(device, torch.float32)
        divisor = torch.where(weight > 0, weight, 1)  # a step of a stream may have no target: its sum is 0
        if self.router_balance is not None:
            self.router_balance.begin_step(batches, divisor)
        return batches, divisor

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """FLOPs of training on a micro-batch, without its padding (see `training_flops`)."""
        counts = inputs["counts"]
        return training_flops(self.setup.prepared.footprint, tokens=counts["tokens"], squares=counts["squares"])

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Sum of the micro-batch's weighted token losses over the weights of the global batch.

        Multiplied by the number of processes where FSDP or DeepSpeed average gradients over them.
        """
        # A step's module computes the loss within its forward call, as DistributedDataParallel requires.
        is_step = self.step_gradient is not None and model is self.step_gradient.module
        total = model(inputs) if is_step else self._loss_sum(model, inputs)
        assert isinstance(num_items_in_batch, torch.Tensor)  # see `get_batch_samples`
        factor = self.context.world_size if self.step_gradient is None else 1
        loss = total * factor / num_items_in_batch
        return (loss, {}) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Adds a micro-batch to the step's gradient; the loss of the step comes with its last one."""

        def run(module: Any, batch: Mapping[str, Any]) -> torch.Tensor:
            tensors = {name: value for name, value in batch.items() if name != "rows"}
            return super(SFTTrainer, self).training_step(module, tensors, num_items_in_batch)

        is_last = self.accelerator.sync_gradients
        if self._sharded_step is not None:
            return self._sharded_step.add(inputs, partial(run, model), is_last=is_last)
        if self.step_gradient is None:
            return run(model, inputs)
        loss = self.step_gradient.add(inputs, run, is_last=is_last, step=self.state.global_step + 1)
        return loss * self.context.world_size  # the log takes the mean over processes

    # Checkpoints and logs

    def manifest_entries(self) -> dict[str, Any]:
        """What the next checkpoint's manifest contains besides its files. A collective operation."""
        return {
            **super().manifest_entries(),
            "batch_plan": plan_entries(self.current_plan()),
            "chunks": self.step_gradient and self.step_gradient.chunks.state_dict(),
            "trained_on": self.progress.seen(),
            "means": self.means.state_dict(),
            "early_stopping": self.early_stopping and self.early_stopping.state_dict(),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.progress.paused("saving"):
            super()._save_checkpoint(model, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.means.finish()
        return super()._finalize_training(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds perplexity, accuracy and speed since the last log, memory and utilization to what a step logs."""
        if self.means.mean_loss is not None and "train_loss" in logs:
            logs["train_loss"] = self.means.mean_loss  # Trainer's starts at the last resume
        if "loss" in logs:
            metrics = self.means.take_metrics()
            if not self.args.label_smoothing_factor:  # a smoothed loss is not a mean of log probabilities
                logs["perplexity"] = perplexity_of(metrics.get("loss_unweighted", logs["loss"]))
            logs |= metrics
            logs |= self.progress.step_metrics(is_stream=self.train_sampler is None)
        super().log(logs, start_time)


def build_trainer(setup: RunSetup, arguments: TrainingArguments) -> PreparedTraining:
    """Build the trainer of a run, with its callbacks, trackers and display.

    Args:
        setup: the run.
        arguments: transformers' settings, built from the same plan.

    Raises:
        ConfigError: if a tracker or the optimizer needs a package that is not installed.
    """
    config, data, plan = setup.config, setup.data, setup.plan
    logger.info(plan_line(plan, setup.context.device))
    compile_model(setup.prepared, compile_options(config.training))
    request = StopRequest()
    with one_line_errors():
        trainer = SFTTrainer(
            setup,
            arguments,
            stream=open_stream(setup),
            stream_drops=StreamDrops.for_data(config.data) if data.stream is not None else None,
        )
        if not trainer.is_deepspeed_enabled:
            # An optimizer whose package is missing is refused here, before anything is written.
            trainer.create_optimizer()
    if setup.resume is not None:
        trainer.restore_counts(setup.resume.manifest)
    stop = trainer.stop = StopCallback(request, trainer)
    trainer.add_callback(OrderCallback(trainer.train_sampler, plan.steps_per_epoch))
    trainer.add_callback(RecordCallback(open_metrics_log(setup)))
    trainer.add_callback(stop)
    trackers = install_run_trackers(trainer)
    display = add_display(trainer)
    samples = build_samples(trainer, trackers)
    return PreparedTraining(
        trainer=trainer,
        trackers=trackers,
        display=display,
        stop=stop,
        request=request,
        samples=samples,
        scored=add_scored_answers(trainer),
    )


def evaluate(trainer: EvaluatingTrainer) -> EvaluationResult | None:
    """Evaluates on the validation data; None if there is none."""
    return evaluate_validation(trainer)


def train(training: PreparedTraining) -> TrainingResult:
    """Trains to the end, or until a signal stops it; loads the best checkpoint if `load_best_model_at_end` is set."""
    trainer, resume = training.trainer, training.trainer.setup.resume
    set_seed(trainer.args.seed)  # random numbers that were drawn before (by answers, say) must not change the run
    trainer.resume_step = trainer.setup.first_step
    trainer.add_callback(MissedEvaluationCallback(trainer, trainer.setup.plan.steps_per_epoch))
    trainer.progress.start()
    if resume is not None:
        logger.info("Resuming from %s.", resume.path)
    isolated = isolated_documents(trainer.model, trainer.layout.attention)
    with unsupported_attention_as_config_error(), training.request, isolated, quiet_tracker_threads():
        try:
            output = trainer.train(resume_from_checkpoint=str(resume.path) if resume is not None else None)
        except BaseException:
            trainer.wait_for_saving()  # the thread must not still write when another run starts
            raise
    if trainer.has_best_weights and not training.stop.stopped:
        best, metric = trainer.state, trainer.args.metric_for_best_model
        logger.info("Loaded the best checkpoint, %s (%s %.4f).", best.best_model_checkpoint, metric, best.best_metric)
    return training_result(trainer, output.global_step, training.stop)


def train_and_evaluate(training: PreparedTraining, watchdog: Watchdog) -> TrainingResult:
    """Trains, with an evaluation and answers to the sample prompts before and after.

    Args:
        training: as `build_trainer` returns it.
        watchdog: receives what the run is doing, to notice when it hangs.
    """
    trainer, samples = training.trainer, training.samples
    trainer.add_callback(WatchCallback(watchdog))
    rows = {name: len(of_set) for name, of_set in trainer.validation_sets.items()}
    known = saved_before_training(trainer.setup.resume, trainer.setup.identity, rows)
    samples.restore(known.answers)
    watchdog.expect("evaluating before step", 1, patience=SLOW)
    trainer.before = evaluate_before(trainer, training.scored, known)
    before, at_ends = trainer.before.evaluation, trainer.before.at_ends
    watchdog.expect("sample answers", patience=SLOW)
    samples.ask(step=0)
    result = replace(train(training), eval_before=before, at_ends=at_ends)
    if result.status == "completed":
        watchdog.expect("evaluating at step", result.steps, patience=SLOW)
        after, at_end = evaluate_after(trainer, training.scored, result.steps)
        result = replace(result, eval_after=after, at_ends={**at_ends, **at_end})
        watchdog.expect("sample answers", patience=SLOW)
        result = replace(result, samples=samples.before_and_after())
    watchdog.expect("saving the model", patience=SLOW)
    if trainer.pushes_to_hub:
        watchdog.pause()  # an upload may take any time
    return result
