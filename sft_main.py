"""Fine-tunes a language model on chats or texts: `python sft_main.py --config_file my.yaml [--key value ...]`."""

from __future__ import annotations

if __name__ == "__main__":
    from sft.processes.first_signals import exit_on_signals

    exit_on_signals()  # the imports below take a while

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config_manager import load_config
from sft.checkpointing.output_lock import OutputLock
from sft.checkpointing.publish import describe_full_disk
from sft.common.errors import CheckpointError, ConfigError, UserError, located
from sft.configuration.batch_sizes import with_accumulation
from sft.configuration.command_line import Command, InitOptions, read_command, read_init
from sft.configuration.help import format_help
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_to_yaml, config_with_origins
from sft.processes.environment import exit_with_launcher, is_launched, launch_id, num_restarts, rank_of_this_process
from sft.processes.exit_records import exit_together, previous_final_exit, print_problems, record_exit
from sft.processes.heap import reuse_freed_memory
from sft.processes.libraries import (
    import_libraries,
    pause_garbage_collection,
    quiet_libraries,
    skip_final_garbage_collection,
)
from sft.processes.logs import configure_logging, rank_log
from sft.processes.signals import Interrupted, InterruptOnSignal, StopRequest, ignore_signals, signal_name
from sft.processes.watchdog import SLOW, Watchdog

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sft.checkpointing.resume_point import ResumePoint
    from sft.common.data_records import TrainingData
    from sft.common.run_records import DistributedContext, Precision, TrainingResult
    from sft.training.assembly import PreparedTraining
    from sft.training.row_layout import RowLayout

USAGE = """\
usage: python sft_main.py --config_file FILE [--key value ...]
       python sft_main.py --config_file FILE --dry_run [--show_rows 3,17] [--key value ...]
       python sft_main.py --config_file FILE --print_config [--key value ...]
       python sft_main.py --init [FILE] [--model NAME] [--data FILE] [--gpus N] [--method full|lora|qlora]
       ./launch_training.sh --config FILE [--gpus N] [--nodes N --node_rank R --rendezvous HOST:PORT] [--key value ...]

--dry_run does everything up to the first step, shows what would be trained on, and writes preflight.json into
output_dir; exit status 0 if a run would be sound, 2 with the reasons if not. --show_rows chooses the rows it shows.
--init writes a first configuration, with the reason for each value, for the model, data and machine that it finds; what
is not given is asked for. --print_config shows every setting in force and where it was given, and does nothing else.
--max_restarts N starts the processes again, from the newest checkpoint, where one died; --log_dir DIR keeps a log file
a rank; --nodes, --node_rank and --rendezvous HOST:PORT join several machines.

Ctrl-C, SIGTERM and SIGUSR1 finish the step and save (exit status 128 + the signal's number); a second one leaves at
once.

Every key below can stand in the YAML file or on the command line, which wins. Nested keys: --lora_config.r 8."""

logger = logging.getLogger("sft")


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status: 0; 2 for what a user can mend; 128 + its number where a signal ended it."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(f"{USAGE}\n{format_help()}")
        return 0 if arguments else 2
    configure_logging()
    try:
        if (options := read_init(arguments)) is not None:
            return _start(options)
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    with InterruptOnSignal():
        try:
            final = previous_final_exit()
            if final is not None:
                record_exit(final.exit_status, final.problems)
                return final.exit_status
            return _launch_or_run(arguments, read_command(arguments))
        except UserError as error:
            print_problems(error.problems)
            return error.exit_code
        except Interrupted as interrupted:
            is_told = record_exit(interrupted.exit_code)
            if rank_of_this_process() == 0 and not is_told:
                name = signal_name(interrupted.number)
                print(f"Ended by {name}, before or after training: no checkpoint was to be saved.", file=sys.stderr)
            return interrupted.exit_code


def _start(options: InitOptions) -> int:
    """Writes a first configuration; asks at a terminal what is not given."""
    try:
        quiet_libraries()
        from sft.commands.init.start import start  # not above: it looks at the model, and so needs transformers
        from sft.processes.first_signals import restore_default_handlers

        restore_default_handlers()
        return start(options, input if sys.stdin.isatty() else None, print, load_config)
    except (KeyboardInterrupt, EOFError):
        print("\nNothing was written.", file=sys.stderr)
        return 130


def _launch_or_run(arguments: Sequence[str], command: Command) -> int:
    config = load_config(command.config_file, command.overrides)
    if command.print_config:
        print(config_with_origins(config))
        return 0
    count, options = config.distributed.num_gpus or 1, command.launch
    if (count > 1 or options.nodes > 1 or options.max_restarts) and not is_launched() and not command.dry_run:
        where = f" on node {options.node_rank} of {options.nodes}" if options.nodes > 1 else ""
        logger.info("num_gpus is %d: starting %d processes (torchrun)%s.", count, count, where)
        from sft.processes.launcher import launch_processes  # not above: it imports torch

        return launch_processes(count, __file__, arguments, options)
    with rank_log(options.log_dir):
        quiet_libraries()
        try:
            with OutputLock() as lock, _watchdog(config, command) as watchdog:
                return exit_together(run(config, command, lock, watchdog))
        except UserError as error:
            raise located(error, config.origins) from None
        except Exception as error:
            problem = describe_full_disk(error)
            if problem is None:
                raise
            raise CheckpointError(
                f"{problem}. Checkpoints are untouched: make room and go on with resume_from_checkpoint: auto."
            ) from error


def _watchdog(config: SFTConfig, command: Command) -> Watchdog:
    """Looks on from when it is entered; not at a dry run, which a person waits for."""
    seconds = 0 if command.dry_run else config.training.hang_timeout_seconds
    return Watchdog(seconds, rank=rank_of_this_process(), folder=config.training.output_dir)


def run(config: SFTConfig, command: Command, lock: OutputLock, watchdog: Watchdog) -> int:
    """One run, top to bottom; a dry run ends before anything is trained.

    Args:
        config: checked settings.
        command: what was typed.
        lock, watchdog: of the output folder, to be taken; to be told of progress.
    """
    _log_lines(config.notices)
    is_rehearsal, extra = command.dry_run, config.training.extra_training_arguments
    from distributed_utils import start_distributed  # not above: it imports torch

    context = start_distributed(
        config.distributed,
        use_cpu=config.training.passed_through.use_cpu,
        is_dry_run=is_rehearsal,
        nodes=command.launch.nodes,
        timeout_seconds=config.training.passed_through.ddp_timeout,
    )
    reuse_freed_memory(config.training.reuse_freed_memory, context.device)
    import_libraries(
        is_dry_run=is_rehearsal, optimizer=config.training.optim, is_quantized=config.quantization is not None
    )

    from data_handler import prepare_data
    from model_manager import resolve_precision
    from sft.modeling.fitting import set_generation_defaults
    from sft.modeling.footprint import footprint
    from sft.modeling.tokenizer import load_tokenizer
    from sft.reporting.log_lines import plan_line
    from sft.training.arguments import build_training_arguments, compile_options, name_tracker_run, set_batch_sizes
    from sft.training.batch_size_trials import memory_limits, resolve_batches
    from sft.training.dry_run import check_data, show_preflight, stream_drops
    from sft.training.run_identity import check_resumable, facts_of_run, with_name_of_run

    _claim_output(config, context, lock, is_rehearsal=is_rehearsal)
    resume_point = _resolve_resume_point(config)
    config = with_name_of_run(config, resume_point)
    precision = resolve_precision(config.model, config.training, context, adapters_only=config.lora is not None)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(
        config.data, tokenizer, seed=config.training.seed, order_seed=extra.get("data_seed"),
        sample_prompts=config.logging.sample_prompts, show_rows=command.show_rows, on_progress=watchdog.on_preparation,
    )  # fmt: skip
    problems = check_data(config, data, is_rehearsal=is_rehearsal)
    limits = memory_limits(config.training, context)
    show = partial(show_preflight, config, data, problems, context, show_rows=command.show_rows, limits=limits)
    if not len(data.train):
        return show()
    # A rehearsal stands for several processes, but opens no group with them.
    own = replace(context, world_size=1) if is_rehearsal else context
    model, layout = load_model_and_layout(config, tokenizer, precision, own)
    eos_token_ids = set_generation_defaults(model, tokenizer, is_chat=data.is_chat)
    arguments = build_training_arguments(
        with_accumulation(config.training, context.world_size), config.logging, precision, own,
        has_validation=data.validation is not None,
        ddp_backend=None if is_rehearsal else config.distributed.ddp_backend,
    )  # fmt: skip
    plan = resolve_batches(config, data, model, layout, precision, context,
                           resume_point=resume_point, own=own, limits=limits)  # fmt: skip
    set_batch_sizes(arguments, plan)
    layout = layout.with_micro_batch_size(plan.per_device_train_batch_size)
    facts = facts_of_run(config, data, resume_point)
    check_resumable(resume_point, facts, plan)
    if is_rehearsal:
        return show(footprint(model), plan, precision, layout)
    logger.info(plan_line(plan, context.device))
    from sft.training.results import attach_report, save_and_report  # not above: a dry run does without Trainer
    from trainer_utils import build_trainer

    _prepare_output(config, context, resume_point, lock, model, tokenizer)
    name_tracker_run(arguments, facts["wandb_run_id"])
    prepared = build_trainer(
        arguments, model, tokenizer, data, plan, layout, context,
        resume_point=resume_point, stream_drops=stream_drops(config.data), compiling=compile_options(config.training),
        facts=facts, max_bad_steps=config.training.max_bad_steps, limits=limits,
        keeps_parts=config.fsdp is not None and config.fsdp.checkpoints == "sharded",
    )  # fmt: skip
    report = attach_report(config, prepared.trainer, data, facts, command.to_repeat)
    with report.reporting_failure():
        with prepared.on_terminal():
            result = _train_between_answers(config, prepared, data, eos_token_ids, resume_point, watchdog)
        with StopRequest():  # what is being written is finished, and then there is nothing left to stop
            status = save_and_report(
                config, prepared.trainer, prepared.trackers, data, plan, result, command.to_repeat, report
            )
            return _leave_together(status, context)


def _leave_together(status: int, context: "DistributedContext") -> int:
    """The largest status of all processes: one alone knows of the Hub, and none leaves while others still write."""
    from sft.processes.agreement import agree_on_smallest  # not above: it imports torch

    return -agree_on_smallest(-status, context)


def _claim_output(config: SFTConfig, context: "DistributedContext", lock: OutputLock, *, is_rehearsal: bool) -> None:
    """Makes sure that the output folder can be written, and that no other run writes there."""
    from sft.checkpointing.checkpoints import check_writable
    from sft.training.dry_run import begin_rehearsal

    check_writable(config.training.output_dir)
    if is_rehearsal:
        begin_rehearsal(config, context)
    elif context.is_main_process:
        lock.take(config.training.output_dir)


def _resolve_resume_point(config: SFTConfig) -> "ResumePoint | None":
    """As the settings say; where the launcher started the run again, the newest that this launch has saved."""
    from sft.checkpointing.checkpoints import resolve_checkpoint

    setting, output_dir = config.training.resume_from_checkpoint, config.training.output_dir
    if num_restarts():
        # Another launch's checkpoints lie there still where this one died before it could set them aside.
        record = Path(output_dir, "resolved_config.yaml")
        is_ours = record.is_file() and record.read_text(encoding="utf-8").startswith(_record_header())
        newest = resolve_checkpoint("auto", output_dir) if is_ours else None
        logger.info("A process died: started again, %s.", f"from {newest.path}" if newest else "from where it began")
        if newest is not None:
            return newest
    return resolve_checkpoint(setting, output_dir)


def _record_header() -> str:
    launch = f" Launch {launch_id()}." if launch_id() else ""
    return f"# The configuration of this run, every key. Runs again from the same folder.{launch}\n"


def load_model_and_layout(
    config: SFTConfig, tokenizer: "PreTrainedTokenizerBase", precision: "Precision", context: "DistributedContext"
) -> tuple["PreTrainedModel", "RowLayout"]:
    """The model, ready to train, and how rows become its micro-batches; says both in the log."""
    from transformers import set_seed

    from sft.modeling.fitting import fit_to_tokenizer
    from sft.modeling.footprint import footprint
    from sft.modeling.loading import load_model
    from sft.reporting.log_lines import model_line
    from sft.training.row_layout import resolve_layout

    training, longest = config.training, config.data.max_seq_length
    set_seed(training.seed)  # adapters and new embeddings start from random numbers
    model = load_model(
        config.model,
        config.lora,
        config.quantization,
        precision,
        context,
        gradient_checkpointing=training.gradient_checkpointing,
    )
    fit_to_tokenizer(model, tokenizer, longest, adapters_only=config.lora is not None)
    logger.info(model_line(footprint(model), _class_name(model), precision, config.quantization))
    keep_device = config.fsdp is not None and _spread_weights(model, config, precision, context)
    layout = resolve_layout(
        model, config.model, training, precision, context, pad_token_id=tokenizer.pad_token_id, max_seq_length=longest,
        keep_device=keep_device,
    )  # fmt: skip
    logger.info(layout.describe())
    return model, layout


def _spread_weights(
    model: "PreTrainedModel", config: SFTConfig, precision: "Precision", context: "DistributedContext"
) -> bool:
    """Spreads the weights over the processes, where there are several; says so in the log.

    Returns:
        Whether they are spread, or would be: a rehearsal of several processes leaves them where they are.
    """
    from sft.modeling.sharding import shard_weights

    if context.world_size == 1:
        is_rehearsal = (config.distributed.num_gpus or 1) > 1
        if not is_rehearsal:
            logger.info("fsdp is off: there is one process, and nothing to spread weights over.")
        return is_rehearsal
    if precision.mixed == "fp16":
        raise ConfigError("fsdp: computes in bfloat16 or float32, and this GPU has no bfloat16; write fp16: false.")
    count = shard_weights(
        model, context.device.partition(":")[0], context.world_size,
        mixed=precision.mixed, reshard_after_forward=config.fsdp.reshard_after_forward,
    )  # fmt: skip
    logger.info("Weights are spread over %d processes (FSDP2), %d layers one by one.", context.world_size, count)
    return True


def _train_between_answers(
    config: SFTConfig, prepared: "PreparedTraining", data: "TrainingData", eos_token_ids: list[int],
    resume_point: "ResumePoint | None", watchdog: Watchdog,
) -> "TrainingResult":  # fmt: skip
    """Trains, with an evaluation and answers to the sample prompts before and after."""
    from sft.training.callbacks import WatchCallback
    from sft.training.run_identity import first_evaluation
    from sft.training.sample_answers import build_samples
    from trainer_utils import evaluate, last_evaluation, train

    trainer = prepared.trainer
    samples = build_samples(
        trainer, prepared.trackers, data.sample_prompts, eos_token_ids, resume_point,
        max_new_tokens=config.logging.sample_max_new_tokens, at_evaluations=config.logging.sample_at_evaluations,
    )  # fmt: skip
    trainer.add_callback(WatchCallback(watchdog))
    watchdog.expect("evaluating before step", 1, patience=SLOW)
    if trainer.is_deepspeed_enabled:
        logger.info(
            "DeepSpeed takes the model when training begins, so there is no evaluation before and there are no sample "
            "answers; and it sums gradients itself, so a step without a finite one is not left out."
        )
        eval_before = None
    else:
        eval_before = first_evaluation(resume_point, trainer.facts) or evaluate(trainer)
    trainer.facts["eval_before"] = eval_before and asdict(eval_before)
    watchdog.expect("sample answers", patience=SLOW)
    samples.ask(step=0)
    result = replace(train(prepared, resume_point=resume_point), eval_before=eval_before)
    if result.status == "completed":
        watchdog.expect("evaluating at step", result.steps, patience=SLOW)
        result = replace(result, eval_after=last_evaluation(trainer))
        watchdog.expect("sample answers", patience=SLOW)
        result = replace(result, samples=samples.before_and_after())
    watchdog.expect("saving the model", patience=SLOW)
    if trainer.args.push_to_hub:
        watchdog.pause()  # sending it may take any time
    return result


def _prepare_output(
    config: SFTConfig, context: "DistributedContext", resume_point: "ResumePoint | None", lock: OutputLock,
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase",
) -> None:  # fmt: skip
    """Makes the output folder, sets aside what this run does not go on from, and writes down the configuration."""
    from sft.checkpointing.checkpoints import set_aside_earlier_run, set_aside_later_checkpoints
    from sft.checkpointing.publish import clear_unfinished
    from sft.modeling.saving import make_adapters_portable

    if not context.is_main_process:
        return
    output = Path(config.training.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.take(output)
        clear_unfinished(output)
        resumes_here = resume_point is not None and resume_point.is_in(output)
        aside = set_aside_later_checkpoints(output, resume_point) if resumes_here else set_aside_earlier_run(output)
        (output / "resolved_config.yaml").write_text(_record_header() + config_to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output_dir: {output} cannot be written: {error.strerror}.") from None
    if aside is not None and resumes_here:
        logger.info("Checkpoints after %s were moved to %s.", resume_point.name, aside)
    elif aside is not None:
        logger.info("%s holds an earlier run: its checkpoints and records were moved to %s.", output, aside)
    make_adapters_portable(model, tokenizer, config.training.output_dir, gguf_file=config.model.gguf_file)


def _class_name(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def _log_lines(lines: Sequence[str]) -> None:
    for line in lines:
        logger.info(line)


if __name__ == "__main__":
    pause_garbage_collection()
    exit_with_launcher()
    status = main(sys.argv[1:])
    ignore_signals(is_launched=is_launched())
    if not is_launched():
        skip_final_garbage_collection()
    elif status == 0:  # all processes left together; after an error the others may be in a collective operation
        from sft.processes.process_group import close_process_group

        close_process_group()
    sys.exit(status)
