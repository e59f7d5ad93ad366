"""One run of the trainer: put together, trained, evaluated."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from batching.stream import MicroBatchStream
from device_memory import peak_memory_bytes, room_for_a_copy, total_memory_bytes
from machine_types import MemoryLimits
from model_manager import footprint
from modeling.compiling import compile_layers
from modeling.document_attention import documents_apart
from reporting.console import place_line
from reporting.environment import device_name
from reporting.metrics_log import MetricsLog
from reporting.run_text import describe_run
from reporting.terminal import live_terminal
from row_layout import RowLayout, told_of_attention
from run_state.checkpoints import checkpoint_step, list_checkpoints
from run_state.interruption import StopRequest
from run_state.manifest import read_manifest
from sft_types import BatchPlan, DistributedContext, EvaluationResult, TrainingData, TrainingResult
from tracker_guard import quiet_tracker_threads
from trackers import Trackers, install_trackers
from trainer_utils import SFTTrainer
from training_arguments import one_line_errors, tensorboard_folder, trackers_take_checkpoints
from training_callbacks import EdgeCallback, OrderCallback, RecordCallback, StopCallback, StreamDrops
from training_display import DisplayCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.train")
METRICS = tuple(field.name for field in dataclasses.fields(EvaluationResult))


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTraining:
    """A trainer with what `train` needs beside it."""

    trainer: SFTTrainer
    trackers: Trackers
    display: DisplayCallback | None
    """What a person sees; None in other processes than the first."""
    stop: StopCallback
    request: StopRequest

    @contextmanager
    def on_terminal(self) -> Iterator[None]:
        """Shows on a terminal, while this lasts, how far training is."""
        with live_terminal() as line:
            if self.display is not None:
                self.display.line = line
            yield


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
    keeps_parts: bool = False,
    limits: MemoryLimits | None = None,
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
        keeps_parts: where weights are spread over processes, checkpoints hold them in parts.
        limits: of this process's memory; with None, what is saved is never copied first.
    """
    _compile(model, layout, compiling)
    request = StopRequest()
    step = checkpoint_step(checkpoint) if checkpoint else 0
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
    if checkpoint:
        trainer.go_on_from(read_manifest(checkpoint))
    metrics_log = _metrics_log(arguments.output_dir, checkpoint) if context.is_main_process else None
    stop = trainer.stop = StopCallback(request, trainer)
    trainer.add_callback(OrderCallback(trainer.train_sampler, plan.steps_per_epoch))
    trainer.add_callback(RecordCallback(metrics_log))
    trainer.add_callback(stop)
    trackers = _install_trackers(trainer, data, plan, first_step=step)
    display = _add_display(trainer, plan, first_step=step)
    return PreparedTraining(trainer=trainer, trackers=trackers, display=display, stop=stop, request=request)


def _room_for_copies(context: DistributedContext, limits: MemoryLimits | None) -> Callable[[int], int]:
    if limits is None:
        return lambda before: 0
    return lambda before: room_for_a_copy(context.device, limits.budget_bytes, before)


def _compile(model: "PreTrainedModel", layout: RowLayout, options: Mapping[str, Any] | None) -> None:
    if options is not None:
        count = compile_layers(model, has_one_shape=layout.has_one_shape, **options)
        logger.info("Compiling %d layers, at the first steps.", count)


def _install_trackers(trainer: SFTTrainer, data: TrainingData, plan: BatchPlan, *, first_step: int) -> Trackers:
    description = describe_run(
        trainer.facts.get("configuration", {}), data.report, footprint(trainer.model), plan, trainer.context,
        products=trainer.products, peak_flops=trainer.progress.peak_flops,
    )  # fmt: skip
    return install_trackers(trainer, description, first_step=first_step)


def _add_display(trainer: SFTTrainer, plan: BatchPlan, *, first_step: int) -> DisplayCallback | None:
    if not trainer.context.is_main_process:
        return None
    has_tensorboard = "tensorboard" in trainer.args.report_to
    logger.info(
        place_line(
            device_name(trainer.context.device), trainer.args.output_dir,
            tensorboard_folder() if has_tensorboard else None,
        )
    )  # fmt: skip
    display = DisplayCallback(
        trainer.progress, first_step=first_step, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch,
        has_validation=trainer.eval_dataset is not None,
    )  # fmt: skip
    trainer.add_callback(display)
    return display


def _metrics_log(output_dir: str, checkpoint: Path | None) -> MetricsLog:
    """The run's record, without what came behind the checkpoint that it goes on from."""
    path = Path(output_dir, "metrics.jsonl")
    if checkpoint is None:
        return MetricsLog(path)
    step = checkpoint_step(checkpoint)
    known = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history
    num_evaluations = sum("eval_loss" in event and event["step"] == step for event in known)
    return MetricsLog(path, resume_step=step, num_evaluations=num_evaluations)


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
    trainer.resume_step = checkpoint_step(checkpoint) if checkpoint else 0
    trainer.add_callback(EdgeCallback(trainer, trainer.plan_now().steps_per_epoch))
    progress.start()
    if checkpoint:
        logger.info("Going on from %s.", checkpoint)
    apart = documents_apart(trainer.model, trainer.layout.attention)
    with told_of_attention(), prepared.request, apart, quiet_tracker_threads():
        try:
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
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
