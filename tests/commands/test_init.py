"""The first configuration: what is asked, what is found, and that a run takes what was written."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from config_manager import load_config
from sft.commands.init.data_inspection import inspect_data
from sft.commands.init.findings import DataInfo, MachineInfo, ModelInfo
from sft.commands.init.fit import choose_global_batch_size, choose_max_seq_length, fit_methods, suggest_method
from sft.commands.init.model_inspection import inspect_model
from sft.commands.init.start import start
from sft.common.errors import DataError, ModelError
from sft.common.run_records import ModelFootprint
from sft.configuration.command_line import InitOptions
from sft_main import main
from tests.support import messages
from tests.support.in_process import run_command
from tests.support.parts import REPOSITORY

MODEL = str(REPOSITORY / "examples" / "tiny-chat")
DATA = str(REPOSITORY / "examples" / "data" / "orders_train.jsonl")
EIGHT_BILLION = ModelFootprint(
    num_parameters=8_030_261_248, num_trainable_parameters=8_030_261_248, weight_bytes=4 * 8_030_261_248,
    hidden_size=4096, num_layers=32, vocab_size=128_256, intermediate_size=14_336, num_attention_heads=32,
    num_lookup_parameters=525_336_576,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    logging.getLogger("sft").handlers.clear()


def rows_file(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_what_is_written_is_sound_and_trains(method, capsys):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    small = rows_file("small_train.jsonl", [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)])
    assert main(["--init", "first.yaml", "--model", MODEL, "--data", small, "--method", method]) == 0
    said = capsys.readouterr().out
    assert "40 rows in the format question_answer" in said
    assert "--config_file first.yaml --dry_run" in said
    text = Path("first.yaml").read_text()
    # Every value has its reason, beside it or in the line above; headings of sections speak for themselves.
    lines = text.splitlines()
    for before, line in pairwise(lines):
        if line and not line.startswith("#") and not line.endswith("_config:"):
            assert "#" in line or before.strip().startswith("#"), line
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


def test_the_shipped_data_is_looked_at(capsys):
    assert main(["--init=first.yaml", "--model", MODEL, "--data", DATA, "--gpus", "3", "--output_dir", "out"]) == 0
    said = capsys.readouterr().out
    assert "2,000 rows in the format messages (columns: messages)" in said
    assert "orders_validation.jsonl, in the same folder." in said
    assert "Note: the configuration is for 3 GPUs" in said
    config = load_config("first.yaml")
    assert config.distributed.num_gpus == 3
    assert config.training.global_batch_size == 18, "the first multiple of 3 from 16 up"
    assert config.data.validation_file.endswith("orders_validation.jsonl")
    assert "the longest has up to 109 tokens (counted with the tokenizer)" in said, "as a dry run counts it"
    assert config.data.max_seq_length == 128
    assert config.training.output_dir == "out"


def test_a_bad_answer_is_asked_again_with_what_is_allowed():
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
    assert "mine.yaml already exists; name another file, or add --overwrite" in capsys.readouterr().err
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


def test_control_c_leaves_without_a_traceback():
    terminal, own_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "sft_main.py"), "--init"], stdin=own_end, stdout=own_end, stderr=own_end,
        start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    ) as process:  # fmt: skip
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
    assert "Nothing was written." in rest.decode()
    assert "Traceback" not in rest.decode()


def test_inspect_model_counts_parameters_without_weights(model_folder):
    facts = inspect_model(model_folder("llama"))
    from tests.support.parts import build_model

    assert facts.footprint.num_parameters == sum(p.numel() for p in build_model("llama").parameters())
    assert facts.context_length == 128
    with pytest.raises(ModelError, match=r"no config\.json"):
        inspect_model(".")


def test_inspect_model_says_when_it_is_nowhere():
    facts = inspect_model("nobody/nothing")
    assert facts.footprint is None
    assert "it is not in the Hub's cache, and was not found on the Hub" in facts.problem


def test_inspect_data_counts_rows_that_cannot_be_used():
    good = [{"question": "One?", "answer": "1"}] * 9
    facts = inspect_data(rows_file("rows.jsonl", [*good, {"question": "Two?", "answer": ""}]), None)
    assert (facts.num_rows, facts.num_bad_rows, facts.format_name) == (10, 1, "question_answer")
    assert facts.first_bad_row.startswith("rows.jsonl:10: ")
    assert not facts.are_tokens_counted


def test_inspect_data_says_when_the_chat_template_cannot_be_asked(tmp_path):
    rows = rows_file("rows.jsonl", [{"question": "One?", "answer": "1"}] * 300)
    counted = inspect_data(rows, str(Path(MODEL, "tokenizer.json")))
    (tmp_path / "tokenizer.json").write_bytes(Path(MODEL, "tokenizer.json").read_bytes())
    alone = inspect_data(rows, str(tmp_path / "tokenizer.json"))
    assert (counted.are_tokens_counted, alone.are_tokens_counted) == (True, False)
    assert counted.max_tokens < alone.max_tokens
    texts = inspect_data(rows_file("texts.jsonl", [{"text": "Some words."}]), str(Path(MODEL, "tokenizer.json")))
    assert texts.are_tokens_counted


def test_inspect_data_takes_columns_by_what_they_are_called():
    facts = inspect_data(rows_file("rows.jsonl", [{"id": 1, "user_query": "One?", "reply": "1"}]), None)
    assert facts.dataset_columns == {"user_query": "prompt", "reply": "completion"}
    with pytest.raises(DataError, match="match no known format"):
        inspect_data(rows_file("odd.jsonl", [{"a": "1", "b": "2"}]), None)


def test_inspect_data_takes_an_unknown_name_for_a_dataset_on_the_hub():
    assert inspect_data("openai/gsm8k", None).key == "dataset_name"
    with pytest.raises(DataError, match="no file or folder"):
        inspect_data("./openai/gsm8k", None)


def test_a_method_is_suggested_by_the_memory_there_is():
    model = ModelInfo(name="eight", footprint=EIGHT_BILLION, context_length=131_072)
    data = DataInfo(name="x", num_rows=2000, max_tokens=1000)

    def fits(gib: int):
        machine = MachineInfo(device="cuda", name="a GPU", num_gpus=1, memory_bytes=gib * 2**30, cpu_count=8)
        return fit_methods(model, data, machine, 1)

    assert suggest_method(fits(12)) == "qlora"
    assert suggest_method(fits(24)) == "lora"
    assert suggest_method(fits(192)) == "full"
    tight, roomy = fits(24)["lora"], fits(80)["lora"]
    assert tight.fits
    assert tight.gradient_checkpointing
    assert roomy.micro_batch_size >= tight.micro_batch_size
    assert not fits(24)["full"].fits
    for fit in fits(80).values():
        assert not fit.fits or fit.needed_bytes <= 0.9 * 80 * 2**30


def test_choose_max_seq_length_holds_the_longest_row_within_the_positions():
    model = ModelInfo(name="m", context_length=512)
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=109), model) == 128
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=200), model) == 256
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=300), model) == 384
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=5000), model) == 512
    assert choose_max_seq_length(DataInfo(name="x"), model) == 512


@pytest.mark.parametrize(("rows", "gpus", "expected"), [(100, 1, 8), (2000, 1, 16), (2000, 3, 18), (90_000, 8, 32)])
def test_choose_global_batch_size_is_a_multiple_of_the_gpus(rows, gpus, expected):
    assert choose_global_batch_size(DataInfo(name="x", num_rows=rows), gpus) == expected
