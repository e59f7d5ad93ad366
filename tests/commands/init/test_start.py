"""The first configuration: questions, messages, and that a run accepts what was written."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
import yaml

from config_manager import load_config
from sft.commands.init import writing
from sft.commands.init.start import start
from sft.commands.init.writing import format_configuration
from sft.configuration.command_line import InitOptions
from sft_main import main
from tests.support import messages
from tests.support.in_process import run_command
from tests.support.init_data import MODEL, rows_file
from tests.support.paths import REPOSITORY
from tests.support.schema_check import check_schema_agrees

DATA = str(REPOSITORY / "examples" / "data" / "orders_train.jsonl")


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_written_configuration_is_sound_and_trains(method, capsys):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    small = rows_file("small_train.jsonl", [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)])
    assert main(["--init", "first.yaml", "--model", MODEL, "--data", small, "--method", method]) == 0
    said = capsys.readouterr().out
    assert messages.INIT_ROWS.format(rows=40, format="question_answer") in said
    assert messages.INIT_DRY_RUN.format(path="first.yaml") in said
    text = Path("first.yaml").read_text()
    # Every value has a reason, on its line or on the line above; headings of sections need none.
    lines = text.splitlines()
    for before, line in pairwise(lines):
        if line and not line.startswith("#") and not line.endswith("_config:"):
            assert "#" in line or before.strip().startswith("#"), line
    assert lines[0] == f"# yaml-language-server: $schema={(REPOSITORY / 'docs' / 'config.schema.json').as_uri()}"
    check_schema_agrees(text, [])
    given = yaml.safe_load(text)
    assert ("lora_config" in given, "quantization_config" in given) == (method != "full", method == "qlora")
    assert run_command(["--config_file", "first.yaml", "--dry_run"]) == 0
    assert messages.PREFLIGHT_OK in capsys.readouterr().out
    if method == "lora":
        assert (
            run_command(["--config_file", "first.yaml", "--max_steps=2", "--report_to=none", "--sample_prompts=[]"])
            == 0
        )
        assert Path("runs/first/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("path", "schema"),
    [("mine.yaml", "docs/config.schema.json"), ("examples/new/mine.yaml", "../../docs/config.schema.json")],
)
def test_the_schema_is_named_relative_to_a_file_in_the_checkout(path, schema):
    first, *_ = format_configuration(str(REPOSITORY / path), []).splitlines()
    assert first == f"# yaml-language-server: $schema={schema}"


def test_no_schema_is_named_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "_SCHEMA", tmp_path / "docs" / "config.schema.json")
    assert format_configuration("mine.yaml", []).startswith("# Written by `python sft_main.py --init`.")


def test_questions_without_an_answer_and_saved_datasets_get_their_keys(capsys):
    rows = [
        {"context": "It is 7.", "question": f"{i}?", "answers": {"text": ["7"] * (i % 3 > 0), "answer_start": []}}
        for i in range(60)
    ]
    datasets.Dataset.from_list(rows).save_to_disk("saved")
    assert main(["--init", "first.yaml", "--model", MODEL, "--data", "saved", "--method", "full"]) == 0
    said = capsys.readouterr().out
    assert messages.INIT_UNANSWERED.format(rows=20) in said
    assert messages.INIT_CANNOT_USE not in said
    given = yaml.safe_load(Path("first.yaml").read_text())
    assert {key: given.get(key) for key in ("train_file", "unanswerable", "on_bad_rows")} == {
        "train_file": "saved",
        "unanswerable": "skip",
        "on_bad_rows": None,
    }
    assert load_config("first.yaml").data.unanswerable == "skip"


def test_the_shipped_data_is_inspected(capsys):
    assert main(["--init=first.yaml", "--model", MODEL, "--data", DATA, "--gpus", "3", "--output_dir", "out"]) == 0
    said = capsys.readouterr().out
    assert messages.INIT_ROWS.format(rows="2,000", format="messages (columns: messages)") in said
    assert messages.INIT_VALIDATION.format(path="orders_validation.jsonl") in said
    assert messages.INIT_GPUS.format(gpus=3) in said
    config = load_config("first.yaml")
    assert config.distributed.num_gpus == 3
    assert config.training.global_batch_size == 18, "the first multiple of 3 from 16 up"
    assert config.data.validation_file.endswith("orders_validation.jsonl")
    assert messages.INIT_LONGEST.format(tokens=109) in said, "as a dry run counts it"
    assert config.data.max_seq_length == 128
    assert config.training.output_dir == "out"


def test_an_invalid_answer_is_asked_again_with_the_allowed_values():
    rows_file("data.jsonl", [{"prompt": "Hi", "completion": "Hello"}] * 30)
    Path("taken.yaml").write_text("mine\n")
    answers = iter(
        ["no/such/model/", "/no/such/place", MODEL, "dta.jsonl", "data.jsonl", "half", "LoRA"]
        + ["taken.yaml", "notes.txt", "new.yaml"]
    )
    asked, said = [], []

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    assert start(InitOptions(), ask, said.append, load_config) == 0
    text = "\n".join(said)
    for line in (
        "no folder '/no/such/place'",
        "no file or folder 'dta.jsonl'. Did you mean 'data.jsonl'?",
        "unknown method 'half'; choose full | lora | qlora.",
        "taken.yaml already exists",
        "use a name that ends in .yaml",
    ):
        assert line in text
    assert len({question.partition(":")[0] for question in asked}) <= 5
    assert Path("taken.yaml").read_text() == "mine\n"
    assert load_config("new.yaml").lora is not None


def test_nothing_is_overwritten_unless_asked_for(capsys):
    Path("mine.yaml").write_text("mine\n")
    command = ["--init", "mine.yaml", "--model", MODEL, "--data", DATA, "--method", "full"]
    assert main(command) == 2
    assert messages.ALREADY_EXISTS.format(path="mine.yaml") in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "mine\n"
    assert main([*command, "--overwrite"]) == 0
    assert load_config("mine.yaml").lora is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--init"], "add --model, --data, a file after --init"),
        (["--init", "a.yaml", "--model"], "--model: expected one argument, as in --model gpt2"),
        (["--init", "a.yaml", "--learning_rate", "1"], "--learning_rate cannot be combined with --init"),
        (
            ["--init", "a.yaml", "--model", MODEL, "--data", DATA, "--method", "half"],
            "unknown method 'half'; choose full",
        ),
        (["--init", "a.yaml", "--model", MODEL, "--data", DATA, "--gpus", "0"], "expected an integer >= 1"),
        (["--init", "a.yaml", "--model", MODEL, "--data", "/nowhere.jsonl"], "no file or folder '/nowhere.jsonl'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, arguments, line):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said
    assert not Path("a.yaml").exists()


def test_control_c_exits_without_a_traceback():
    terminal, own_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "sft_main.py"), "--init"],
        stdin=own_end,
        stdout=own_end,
        stderr=own_end,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    ) as process:
        os.close(own_end)
        shown, deadline = "", time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096).decode()
                if shown.endswith("]: "):
                    break
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.5)  # a signal between the question and the read is lost
            os.write(terminal, b"\x03")
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        assert process.poll() == 130, shown
    rest = b""
    while select.select([terminal], [], [], 0.2)[0]:
        try:
            rest += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    os.close(terminal)
    assert messages.NOTHING_WRITTEN in rest.decode()
    assert "Traceback" not in rest.decode()
