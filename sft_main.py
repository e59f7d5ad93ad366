"""Fine-tunes a language model on chats or texts: `python sft_main.py --config_file my.yaml [--key value ...]`."""

from __future__ import annotations

if __name__ == "__main__":
    from sft.common.standard_streams import guard_standard_streams
    from sft.processes.first_signals import exit_on_signals

    guard_standard_streams()
    exit_on_signals()  # the imports below take a while

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from config_manager import load_config
from sft.checkpointing.output_lock import OutputLock
from sft.checkpointing.publish import describe_full_disk
from sft.common.device_errors import is_lost_connection, lost_connection_line
from sft.common.errors import CheckpointError, ConfigError, UserError, located
from sft.common.files import long_names_refused
from sft.common.standard_streams import continue_without_output, write_product
from sft.configuration.checks.machine import find_machine_notices, find_machine_problems
from sft.configuration.checks.steps import find_early_problems
from sft.configuration.command_line import Command, InitOptions, read_command, read_help, read_init
from sft.configuration.help import format_help, format_key_help
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_with_origins
from sft.processes.environment import exit_with_launcher, is_launched, rank_of_this_process
from sft.processes.exit_records import (
    exit_status_of_another,
    exit_together,
    previous_final_exit,
    print_problems,
    record_exit,
)
from sft.processes.first_signals import restore_default_handlers
from sft.processes.heap import reuse_freed_memory
from sft.processes.libraries import (
    import_libraries,
    pause_garbage_collection,
    quiet_libraries,
    skip_final_garbage_collection,
)
from sft.processes.logs import configure_logging, rank_log
from sft.processes.machine import look_at_machine
from sft.processes.output import ask, hide_known, print_errors, print_line, safe_text
from sft.processes.signals import Interrupted, InterruptOnSignal, StopRequest, ignore_signals, signal_name
from sft.processes.watchdog import Watchdog

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from sft.common.run_records import DistributedContext
    from sft.training.run_setup import RunSetup

USAGE = """\
usage: python sft_main.py --config_file FILE [--key value ...]
       python sft_main.py --config_file FILE --dry_run [--show_rows 3,17] [--key value ...]
       python sft_main.py --config_file FILE --print_config [--key value ...]
       python sft_main.py --help [KEY ...]
       python sft_main.py --init [FILE] [--model NAME] [--data FILE] [--gpus N] [--method full|lora|qlora]
       ./launch_training.sh --config FILE [--gpus N] [--nodes N --node_rank R --rendezvous HOST:PORT] [--key value ...]

--dry_run does everything up to the first step, shows the rows that would be trained on, and writes preflight.json to
output_dir; exit status 0 if a run could start, 2 with the reasons if not. --show_rows selects the rows that it shows.
--init writes a first configuration for your model, data and machine, with the reason for each value; it asks for what
is not given. --print_config prints every setting in force and where it comes from, and exits. --help KEY prints one key
with the reason for its default.
--max_restarts N restarts the processes from the newest checkpoint if one of them dies; --log_dir DIR writes one log
file for each rank; --nodes, --node_rank and --rendezvous HOST:PORT connect several machines.

Ctrl-C, SIGTERM and SIGUSR1 finish the current step and save a checkpoint (exit status 128 + the signal's number); a
second signal exits at once.

Every key below can be set in the YAML file or on the command line, which takes precedence. Nested keys:
--lora_config.r 8."""

logger = logging.getLogger("sft")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns 0, 2 for a user's error, or 128 + the number of the signal that ended it."""
    configure_logging()
    try:
        asked = read_help(arguments)
        if asked is not None or not arguments:
            write_product(f"{format_key_help(asked)}\n" if asked else f"{USAGE}\n{format_help()}\n")
            return 0 if arguments else 2
        if (options := read_init(arguments)) is not None:
            return _start(options)
    except UserError as error:
        print_problems(error.problems)
        return error.exit_code
    with InterruptOnSignal() as signals:
        try:
            with signals.raised():
                final = previous_final_exit()
                if final is not None:
                    record_exit(final.exit_status, final.problems)
                    return final.exit_status
                return _launch_or_run(arguments, read_command(arguments))
        except UserError as error:
            print_problems(error.problems)
            return error.exit_code
        except Interrupted as interrupted:
            is_reported = record_exit(interrupted.exit_code)
            if rank_of_this_process() == 0 and not is_reported:
                name = signal_name(interrupted.number)
                print_errors([f"Ended by {name} before or after training: there was no checkpoint to save."])
            return interrupted.exit_code
        except Exception as error:
            if not (is_launched() and is_lost_connection(error)):
                raise
            status = exit_status_of_another()
            if status is not None:
                return status  # the other process has said why
            print_errors([lost_connection_line(rank_of_this_process(), error)])
            return 1


@long_names_refused()
def _start(options: InitOptions) -> int:
    """Writes a first configuration; asks on a terminal for what is not given."""
    continue_without_output()
    try:
        quiet_libraries()
        from sft.commands.init.start import start  # imports transformers

        restore_default_handlers()
        return start(options, ask if sys.stdin.isatty() else None, print_line, load_config)
    except (KeyboardInterrupt, EOFError):
        print_errors(["", "Nothing was written."])
        return 130


@long_names_refused()
def _launch_or_run(arguments: Sequence[str], command: Command) -> int:
    """Start the processes of the run, or run as one of them."""
    config = load_config(command.config_file, command.overrides)
    if command.print_config:
        write_product(safe_text(f"{config_with_origins(config)}\n"))
        return 0
    continue_without_output()
    config = _checked_on_machine(config, command)
    count, options = config.distributed.num_gpus or 1, command.launch
    if (count > 1 or options.nodes > 1 or options.max_restarts) and not is_launched() and not command.dry_run:
        where = f" on node {options.node_rank} of {options.nodes}" if options.nodes > 1 else ""
        logger.info("num_gpus is %d: starting %d processes (torchrun)%s.", count, count, where)
        from sft.processes.launcher import launch_processes  # imports torch

        return launch_processes(count, __file__, arguments, options, use_cpu=config.training.passed_through.use_cpu)
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
                f"{problem}. Checkpoints are untouched: free disk space, then set resume_from_checkpoint: auto."
            ) from error


def _checked_on_machine(config: SFTConfig, command: Command) -> SFTConfig:
    """Refuses what cannot work on this machine, before processes are started and torch is imported; adds notices."""
    machine = look_at_machine(
        asks_bfloat16=config.training.bf16 is True, asks_compiler=config.training.torch_compile is True
    )
    problems = list(find_machine_problems(config, machine, is_dry_run=command.dry_run))
    if not command.dry_run:  # which lists them with its other findings
        problems += [finding.line for finding in find_early_problems(config)]
    if problems:
        raise located(ConfigError(*problems), config.origins)
    notices = find_machine_notices(config, machine, nodes=command.launch.nodes)
    return replace(config, notices=(*config.notices, *notices))


def _watchdog(config: SFTConfig, command: Command) -> Watchdog:
    """The watchdog of this process; it does not watch a dry run."""
    seconds = 0 if command.dry_run else config.training.hang_timeout_seconds
    return Watchdog(seconds, rank=rank_of_this_process(), folder=config.training.output_dir)


def run(config: SFTConfig, command: Command, lock: OutputLock, watchdog: Watchdog) -> int:
    """One run, top to bottom; a dry run ends before training. Returns the exit status, the same on all processes."""
    context = _start_process(config, command)
    # torch and transformers take seconds to import: `--help` and a configuration error do not wait for them.
    from data_handler import prepare_data
    from model_manager import load_model, load_tokenizer
    from sft.training.arguments import build_training_arguments
    from sft.training.batch_size_trials import memory_limits, resolve_batches
    from sft.training.compile_trial import settle_layout
    from sft.training.decided_precision import decide_precision
    from sft.training.dry_run import DryRun, check_data, show_preflight
    from sft.training.model_preparation import prepare_model
    from sft.training.output_folder import claim_output, find_resume_point
    from sft.training.run_checks import check_run
    from sft.training.run_identity import check_resume, identify_run, with_shown_run_name
    from sft.training.run_setup import RunSetup

    claim_output(config, context, lock, is_dry_run=command.dry_run)
    resume = find_resume_point(config)
    config = with_shown_run_name(config, resume)
    actual = replace(context, world_size=1) if command.dry_run else context  # a dry run represents all processes
    precision = decide_precision(config, actual, resume)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(
        config.data,
        tokenizer,
        seed=config.training.seed,
        order_seed=config.training.passed_through.data_seed,
        sample_prompts=config.logging.sample_prompts,
        show_rows=command.show_rows,
        on_progress=watchdog.on_preparation,
    )
    problems = check_data(config, data, is_dry_run=command.dry_run)
    limits = memory_limits(config.training, context)
    dry_run = DryRun(
        config=config, data=data, problems=problems, context=context, limits=limits, show_rows=command.show_rows
    )
    if not len(data.train):
        return show_preflight(dry_run)
    model = load_model(config, tokenizer, precision, actual, resume=resume)
    prepared = prepare_model(config, model, tokenizer, precision, actual, is_chat=data.is_chat, resume=resume)
    plan = resolve_batches(config, data, prepared, context, actual=actual, limits=limits, resume=resume)
    prepared = settle_layout(config, data, prepared, plan, actual, resume, is_dry_run=command.dry_run)
    identity = identify_run(config, data, prepared, context.device, resume)
    check_resume(resume, identity, plan)
    setup = RunSetup(
        config=config,
        context=context,
        data=data,
        prepared=prepared,
        plan=plan,
        limits=limits,
        identity=identity,
        resume=resume,
        lock=lock,
        command=hide_known(command.to_repeat),
    )
    arguments = build_training_arguments(setup, actual)
    dry_run = check_run(dry_run, setup, arguments, is_dry_run=command.dry_run)
    return show_preflight(dry_run, prepared, plan) if command.dry_run else _train_and_save(setup, arguments, watchdog)


def _start_process(config: SFTConfig, command: Command) -> "DistributedContext":
    """Joins the other processes, and imports torch and transformers quickly."""
    from distributed_utils import start_distributed  # imports torch

    for notice in config.notices:
        logger.info(notice)
    context = start_distributed(
        config.distributed,
        use_cpu=config.training.passed_through.use_cpu,
        is_dry_run=command.dry_run,
        nodes=command.launch.nodes,
        timeout_seconds=config.training.passed_through.ddp_timeout,
    )
    reuse_freed_memory(config.training.reuse_freed_memory, context.device)
    import_libraries(
        is_dry_run=command.dry_run, optimizer=config.training.optim, is_quantized=config.quantization is not None
    )
    return context


def _train_and_save(setup: "RunSetup", arguments: "TrainingArguments", watchdog: Watchdog) -> int:
    """Trains, saves the model, and writes the records; the report shows a failure too."""
    # A dry run does not need Trainer, which takes seconds to import.
    from sft.training.output_folder import prepare_output
    from sft.training.results import attach_report, save_and_report
    from trainer_utils import build_trainer, train_and_evaluate

    prepare_output(setup)
    training = build_trainer(setup, arguments)
    report = attach_report(training)
    with report.reporting_failure():
        with training.on_terminal():
            result = train_and_evaluate(training, watchdog)
        with StopRequest():  # a signal no longer interrupts: what is being saved is finished
            return save_and_report(training, result, report)


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
