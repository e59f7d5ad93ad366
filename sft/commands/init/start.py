"""From a few answers, typed or given as options, to a configuration on disk that a dry run finds sound."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft.commands.init.choices import Fit, choose_settings, fit_methods, suggest_method
from sft.commands.init.data_look import look_at_data
from sft.commands.init.facts import METHODS, Answers, DataFacts, MachineFacts, ModelFacts
from sft.commands.init.machine_look import look_at_machine
from sft.commands.init.model_look import look_at_model
from sft.commands.init.writing import as_yaml
from sft.common.errors import ConfigError, UserError
from sft.common.optional_packages import is_installed, missing_package
from sft.common.text import counted, size
from sft.configuration.checks.packages import needs_bitsandbytes
from sft.configuration.command_line import InitOptions

Ask = Callable[[str], str]
Say = Callable[[str], None]
_DEFAULT_FILE = "my_config.yaml"
_METHOD_WORDS = {
    "full": "all weights",
    "lora": "adapters on frozen weights",
    "qlora": "adapters on frozen weights in 4 bits",
}


def start(options: InitOptions, ask: Ask | None, say: Say, check: Callable[[str], object]) -> int:
    """Writes a first configuration. Returns the exit status.

    Args:
        options: what was typed behind `--init`; what is missing there is asked for.
        ask: shows a question and brings the answer; None where nobody can be asked.
        say: shows a line.
        check: loads the file that was written, and raises if it is not sound.

    Raises:
        ConfigError: if nobody can be asked and something is missing or wrong.
    """
    if ask is None:
        _need_all(options)
    answers, machine, fit = _gather(options, ask, say)
    lines = choose_settings(answers, machine, fit)
    text = as_yaml(answers.config_file, lines)
    path = Path(answers.config_file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
    if (missing := _missing_package(answers, fit)) is None:
        check(str(path))
    for line in _last_words(answers, machine, fit, missing):
        say(line)
    return 0


def _gather(options: InitOptions, ask: Ask | None, say: Say) -> tuple[Answers, MachineFacts, Fit]:
    """Asks what was not given, and looks at each thing as soon as it is named."""
    if ask is not None:
        say("A few questions; Enter takes what stands in brackets, Ctrl-C leaves without writing anything.")
    model = _answer(
        "Model: a folder, or a name on the Hugging Face Hub", "examples/tiny-chat", options.model,
        look_at_model, ask, say,
    )  # fmt: skip
    say(_model_line(model))
    data = _answer(
        "Training data: a file, a folder or a glob, or a dataset on the Hub", None, options.data,
        lambda place: look_at_data(place, model.tokenizer_file), ask, say,
    )  # fmt: skip
    for line in _data_lines(data):
        say(line)
    machine = look_at_machine()
    say(_machine_line(machine))
    num_gpus = 1
    if options.gpus is not None or machine.num_gpus > 1:
        question = f"GPUs to train on, 1 to {machine.num_gpus}"
        num_gpus = _answer(question, str(machine.num_gpus), options.gpus, _whole_number, ask, say)
    fits = fit_methods(model, data, machine, num_gpus)
    if (line := _fit_line(fits, machine)) is not None:
        say(line)
    method = _answer(
        f"What is trained: {', '.join(f'{name} ({_METHOD_WORDS[name]})' for name in METHODS)}", suggest_method(fits),
        options.method, _method, ask, say,
    )  # fmt: skip
    config_file = _answer(
        "Write the configuration to", _DEFAULT_FILE, options.config_file,
        lambda place: _free_file(place, may_replace=options.overwrite), ask, say,
    )  # fmt: skip
    output_dir = options.output_dir or f"./runs/{Path(config_file).stem}"
    answers = Answers(
        model=model, data=data, num_gpus=num_gpus, method=method, config_file=config_file, output_dir=output_dir
    )
    return answers, machine, fits[method]


def _answer(
    question: str, default: str | None, given: str | None, check: Callable[[str], Any], ask: Ask | None, say: Say
) -> Any:
    """An answer that passes its check; asked again, with what is wrong, until one does.

    Raises:
        UserError: if it was given as an option and nobody can be asked for another.
    """
    while True:
        if given is None and ask is None:
            given = default or ""
        text = given if given is not None else ask(f"{question}{f' [{default}]' if default else ''}: ").strip()
        try:
            return check(text or default or "")
        except UserError as error:
            if ask is None:
                raise
            for problem in error.problems:
                say(f"  {problem}")
            given = None


def _need_all(options: InitOptions) -> None:
    needed = {"--model": options.model, "--data": options.data, "a file behind --init": options.config_file}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ConfigError(
            f"command line: --init can ask nothing here, since this is no terminal; give {', '.join(missing)}: "
            "python sft_main.py --init my.yaml --model NAME --data FILE [--gpus N] [--method full|lora|qlora]"
        )


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--gpus: expected an integer >= 1, found {text!r}.")
    return int(text)


def _method(text: str) -> str:
    if text.lower() not in METHODS:
        raise ConfigError(f"--method: {text!r} is unknown; choose {' | '.join(METHODS)}.")
    return text.lower()


def _free_file(place: str, *, may_replace: bool) -> str:
    path = Path(place).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{place!r} is no name for a YAML file; let it end with .yaml.")
    if path.is_dir():
        raise ConfigError(f"{place} is a folder; name a file.")
    if path.exists() and not may_replace:
        raise ConfigError(f"{place} is there already; name another file, or add --overwrite to replace it.")
    return place


def _model_line(model: ModelFacts) -> str:
    if model.footprint is None and not model.class_name:
        return f"  {model.name}: {model.problem}. It is taken as it is; the first run will look for it."
    found = [model.class_name]
    if model.footprint is not None:
        found.append(f"{model.footprint.num_parameters:,} parameters")
    if model.positions is not None:
        found.append(f"{model.positions:,} positions")
    return f"  {', '.join(found)}."


def _data_lines(data: DataFacts) -> Iterator[str]:
    if data.key == "dataset_name":
        yield f"  {data.place} is not here, so it is taken for a dataset on the Hub, and not looked at."
        return
    rows = counted(data.rows, "row") if data.is_complete else f"the first {data.rows:,} rows looked at"
    how = "counted with its tokenizer" if data.are_tokens_counted else "estimated"
    yield (
        f"  {rows}, read as {data.format_name} (columns: {', '.join(data.columns[:8])}); the longest has up to "
        f"{data.longest_row:,} tokens ({how})."
    )
    if data.mapped:
        pairs = ", ".join(f"{theirs} as {ours}" for theirs, ours in data.mapped.items())
        yield f"  Taken by their names: {pairs}. Look at the dry run's rows whether that is right."
    if data.unused_columns:
        yield f"  Not used: {', '.join(data.unused_columns[:8])}."
    if data.bad_rows:
        yield f"  {data.bad_rows:,} cannot be used and would be left out; the first: {data.first_bad_row}"
    if data.validation is not None:
        yield f"  {data.validation} lies beside it and is taken for validation."


def _machine_line(machine: MachineFacts) -> str:
    memory = size(machine.memory_bytes) if machine.memory_bytes else "unknown memory"
    if machine.num_gpus:
        return f"  This machine: {counted(machine.num_gpus, 'GPU')}, {machine.name}, {memory} each."
    return f"  This machine: no GPU, {counted(machine.cpu_count, 'core')}, {memory}."


def _fit_line(fits: dict[str, Fit], machine: MachineFacts) -> str | None:
    if not fits["full"].needed_bytes or machine.memory_bytes is None:
        return None
    each = [f"{name} {size(fit.needed_bytes)}{'' if fit.fits else ' (too much)'}" for name, fit in fits.items()]
    return f"  Predicted memory a device, of {size(machine.memory_bytes)}: {', '.join(each)}."


def _missing_package(answers: Answers, fit: Fit) -> str | None:
    """What needs a package that is not installed here, and which; None if nothing does."""
    needs = "qlora" if answers.method == "qlora" else f"optim: {fit.optimizer}"
    if (answers.method == "qlora" or needs_bitsandbytes(fit.optimizer)) and not is_installed("bitsandbytes"):
        return f"{needs} {missing_package('bitsandbytes')}"
    return None


def _last_words(answers: Answers, machine: MachineFacts, fit: Fit, missing: str | None) -> Iterator[str]:
    file = shlex.quote(answers.config_file)
    if not fit.fits and machine.memory_bytes:
        yield (
            f"Note: {answers.method} is predicted to need {size(fit.needed_bytes)} a device and there are "
            f"{size(machine.memory_bytes)}: choose another method, a smaller model, or another machine."
        )
    if answers.num_gpus > max(machine.num_gpus, 1):
        there = counted(machine.num_gpus, "GPU") if machine.num_gpus else "no GPU"
        yield f"Note: it is for {answers.num_gpus} GPUs, and this machine has {there}."
    if missing is not None:
        yield f"Note: {missing}"
    yield f"Wrote {answers.config_file}. Look at it, then:"
    yield f"  python sft_main.py --config_file {file} --dry_run    # what would be trained on, and is it sound?"
    yield f"  python sft_main.py --config_file {file}"
