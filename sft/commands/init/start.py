"""Writes a first configuration from a few answers, which are asked for or given as options."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft.commands.init.data_inspection import inspect_data
from sft.commands.init.findings import METHODS, Choices, DataInfo, MachineInfo, ModelInfo
from sft.commands.init.fit import Fit, fit_methods, suggest_method
from sft.commands.init.machine_inspection import inspect_machine
from sft.commands.init.model_inspection import inspect_model
from sft.commands.init.settings import choose_settings
from sft.commands.init.writing import format_configuration
from sft.common.errors import ConfigError, UserError
from sft.common.optional_packages import is_installed, missing_package
from sft.common.text import counted, size
from sft.configuration.checks.packages import needs_bitsandbytes
from sft.configuration.command_line import InitOptions, program

Ask = Callable[[str], str]
Say = Callable[[str], None]
_DEFAULT_FILE = "my_config.yaml"
_METHOD_DESCRIPTIONS = {
    "full": "all weights",
    "lora": "adapters on frozen weights",
    "qlora": "adapters on frozen 4-bit weights",
}
_MAX_COLUMNS = 8
"""Columns that are listed."""


def start(options: InitOptions, ask: Ask | None, say: Say, check: Callable[[str], object]) -> int:
    """Write a first configuration. Returns the exit code.

    Args:
        options: options given with `--init`; the user is asked for the others.
        ask: shows a question and returns the answer; None if there is no terminal.
        say: prints a line.
        check: loads the file that was written, and raises a UserError if it is invalid.

    Raises:
        ConfigError: if there is no terminal and an option is missing or invalid.
    """
    if ask is None:
        _require_all(options)
    choices, machine, fit = _gather(options, ask, say)
    text = format_configuration(choices.config_file, choose_settings(choices, machine, fit))
    path = Path(choices.config_file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
    missing = _missing_package(choices, fit)
    if missing is None:
        check(str(path))
    for line in _closing_lines(choices, machine, fit, missing):
        say(line)
    return 0


def _gather(options: InitOptions, ask: Ask | None, say: Say) -> tuple[Choices, MachineInfo, Fit]:
    """Ask for what was not given, and inspect each thing as soon as it is named."""
    if ask is not None:
        say("A few questions. Press Enter for the value in brackets, Ctrl-C to quit without writing a file.")

    def answer(question: str, default: str | None, given: str | None, check: Callable[[str], Any]) -> Any:
        return _answer(question, default, given, check, ask, say)

    question = "Model: a folder, or a name on the Hugging Face Hub"
    model = answer(question, "examples/tiny-chat", options.model, inspect_model)
    say(_model_line(model))
    question = "Training data: a file, a folder or a glob, or a dataset on the Hub"
    data = answer(question, None, options.data, lambda name: inspect_data(name, model.tokenizer_file))
    for line in _data_lines(data):
        say(line)
    machine = inspect_machine()
    say(_machine_line(machine))
    num_gpus = 1
    if options.gpus is not None or machine.num_gpus > 1:
        question = f"GPUs to train on, 1 to {machine.num_gpus}"
        num_gpus = answer(question, str(machine.num_gpus), options.gpus, _positive_integer)
    fits = fit_methods(model, data, machine, num_gpus)
    if (memory := _memory_line(fits, machine)) is not None:
        say(memory)
    question = f"Method: {', '.join(f'{name} ({_METHOD_DESCRIPTIONS[name]})' for name in METHODS)}"
    method: str = answer(question, suggest_method(fits), options.method, _method)
    config_file = answer(
        "Write the configuration to",
        _DEFAULT_FILE,
        options.config_file,
        lambda name: _new_file(name, may_replace=options.overwrite),
    )
    choices = Choices(
        model=model,
        data=data,
        num_gpus=num_gpus,
        method=method,
        config_file=config_file,
        output_dir=options.output_dir or f"./runs/{Path(config_file).stem}",
    )
    return choices, machine, fits[method]


def _answer(
    question: str, default: str | None, given: str | None, check: Callable[[str], Any], ask: Ask | None, say: Say
) -> Any:
    """Return an answer that passes its check; print the problem and ask again until one does.

    Raises:
        UserError: if the answer was given as an option, and there is no terminal to ask again.
    """
    while True:
        text = given or ""
        if given is None and ask is not None:
            text = ask(f"{question}{f' [{default}]' if default else ''}: ").strip()
        try:
            return check(text or default or "")
        except UserError as error:
            if ask is None:
                raise
            for problem in error.problems:
                say(f"  {problem}")
            given = None


def _require_all(options: InitOptions) -> None:
    required = {"--model": options.model, "--data": options.data, "a file after --init": options.config_file}
    missing = [name for name, value in required.items() if value is None]
    if missing:
        raise ConfigError(
            f"command line: --init cannot ask questions without a terminal; add {', '.join(missing)}: "
            "python sft_main.py --init my.yaml --model NAME --data FILE [--gpus N] [--method full|lora|qlora]"
        )


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--gpus: expected an integer >= 1, found {text!r}.")
    return int(text)


def _method(text: str) -> str:
    if text.lower() not in METHODS:
        raise ConfigError(f"--method: unknown method {text!r}; choose {' | '.join(METHODS)}.")
    return text.lower()


def _new_file(name: str, *, may_replace: bool) -> str:
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{name!r} is not a YAML file; use a name that ends in .yaml.")
    if path.is_dir():
        raise ConfigError(f"{name} is a folder; name a file.")
    if path.exists() and not may_replace:
        raise ConfigError(f"{name} already exists; name another file, or add --overwrite to replace it.")
    return name


def _missing_package(choices: Choices, fit: Fit) -> str | None:
    """Return which choice requires a package that is not installed here; None if none does."""
    choice = "qlora" if choices.method == "qlora" else f"optim: {fit.optimizer}"
    if (choices.method == "qlora" or needs_bitsandbytes(fit.optimizer)) and not is_installed("bitsandbytes"):
        return f"{choice} {missing_package('bitsandbytes')}"
    return None


def _model_line(model: ModelInfo) -> str:
    if model.footprint is None and not model.class_name:
        return f"  {model.name}: {model.problem}. The name is used as given; the first run will look for the model."
    found = [model.class_name]
    if model.footprint is not None:
        found.append(f"{model.footprint.num_parameters:,} parameters")
    if model.context_length is not None:
        found.append(f"context length {model.context_length:,} tokens")
    return f"  {', '.join(found)}."


def _data_lines(data: DataInfo) -> Iterator[str]:
    if data.key == "dataset_name":
        yield f"  {data.name} is not a local path: it is used as the name of a dataset on the Hub, and not inspected."
        return
    rows = counted(data.num_rows, "row") if data.is_complete else f"first {data.num_rows:,} rows"
    how = "counted with the tokenizer" if data.are_tokens_counted else "estimated"
    yield (
        f"  {rows} in the format {data.format_name} (columns: {', '.join(data.columns[:_MAX_COLUMNS])}); the longest "
        f"has up to {data.max_tokens:,} tokens ({how})."
    )
    if data.dataset_columns:
        pairs = ", ".join(f"{theirs} as {ours}" for theirs, ours in data.dataset_columns.items())
        yield f"  Columns mapped by their names: {pairs}. Check the rows in the dry run."
    if data.unused_columns:
        yield f"  Unused columns: {', '.join(data.unused_columns[:_MAX_COLUMNS])}."
    if data.num_unanswerable:
        yield f"  {data.num_unanswerable:,} questions have no answer and will be skipped."
    if data.num_bad_rows:
        yield f"  {data.num_bad_rows:,} rows cannot be used and will be skipped; the first: {data.first_bad_row}"
    if data.validation is not None:
        yield f"  Validation data: {data.validation}, in the same folder."


def _machine_line(machine: MachineInfo) -> str:
    memory = size(machine.memory_bytes) if machine.memory_bytes else "unknown memory"
    if machine.num_gpus:
        return f"  This machine: {counted(machine.num_gpus, 'GPU')}, {machine.name}, {memory} each."
    return f"  This machine: no GPU, {counted(machine.cpu_count, 'core')}, {memory}."


def _memory_line(fits: dict[str, Fit], machine: MachineInfo) -> str | None:
    if not fits["full"].needed_bytes or machine.memory_bytes is None:
        return None
    each = [f"{name} {size(fit.needed_bytes)}{'' if fit.fits else ' (does not fit)'}" for name, fit in fits.items()]
    return f"  Estimated memory per device, of {size(machine.memory_bytes)}: {', '.join(each)}."


def _closing_lines(choices: Choices, machine: MachineInfo, fit: Fit, missing: str | None) -> Iterator[str]:
    command = shlex.join([*program("sft_main.py"), "--config_file", choices.config_file])
    if not fit.fits and machine.memory_bytes:
        yield (
            f"Note: {choices.method} does not fit: estimated {size(fit.needed_bytes)} per device, of "
            f"{size(machine.memory_bytes)}. Choose another method, a smaller model, or another machine."
        )
    if choices.num_gpus > max(machine.num_gpus, 1):
        available = counted(machine.num_gpus, "GPU") if machine.num_gpus else "no GPU"
        yield f"Note: the configuration is for {choices.num_gpus} GPUs, but this machine has {available}."
    if missing is not None:
        yield f"Note: {missing}"
    yield f"Wrote {choices.config_file}. Look at it, then run:"
    yield f"  {command} --dry_run    # check what it would train on"
    yield f"  {command}"
