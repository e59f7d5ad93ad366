"""The command lines of all commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from config_manager import load_config
from sft.common.errors import ConfigError
from sft.common.machine_records import LaunchOptions
from sft.configuration.command_line import InitOptions, OneLineParser, number, program, read_command, read_init
from tests.support import messages
from tests.support.configurations import BASE, load, problems_of
from tests.support.paths import REPOSITORY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--show_rows", "3"], "command line: --show_rows requires --dry_run."),
        (["--dry_run", "--show_rows", "0"], "--show_rows: expected row numbers from 1, as in 3,17; found '0'."),
        (["--dry_run", "--show_rows", "a,b"], "found 'a,b'."),
        (["--dry_run", "--show_rows"], "--show_rows: expected one argument, as in --show_rows 3,17."),
        (["--dry_run=maybe"], "--dry_run: expected true or false, found 'maybe'."),
        (["--config_file"], "expected one argument, as in --config_file my.yaml."),
        (["--log_dir", "--seed"], "--log_dir: expected one argument, as in --log_dir logs."),
        (["--rendezvous", "node1"], "--rendezvous: expected HOST:PORT of node 0, as in node1:29500; found 'node1'."),
        (["--rendezvous", "node1:29500"], "--rendezvous requires several machines"),
        (["--nodes", "2"], "--nodes 2 requires --node_rank (of this machine, 0 to 1) and --rendezvous HOST:PORT"),
        (["--node_rank", "1"], "--node_rank is 1, but must be below --nodes (1)"),
    ],
)
def test_read_command_rejects(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_command(arguments)


def test_read_command_reports_all_invalid_launch_options_at_once():
    with pytest.raises(ConfigError) as caught:
        read_command(["--nodes", "0", "--max_restarts", "x"])
    assert caught.value.problems == (
        "command line: --max_restarts: expected an integer >= 0, found 'x'.",
        "command line: --nodes: expected an integer >= 1, found '0'.",
    )


def test_read_command_separates_options_and_settings():
    command = read_command(["--config_file", "a.yaml", "--dry_run", "--show_rows=3, 17,3", "--learning_rate", "1"])
    assert (command.config_file, command.dry_run, command.show_rows) == ("a.yaml", True, (3, 17))
    assert command.overrides == ("--learning_rate", "1")
    again = read_command(["--config=a.yaml", "--resume_from_checkpoint", "auto", "--seed", "1"])
    start = shlex.join(program("sft_main.py"))
    assert again.to_repeat == f"{start} --config=a.yaml --seed 1"
    secret = read_command(["--config", "a.yaml", "--hub_token", "hf_x", "--push_to_hub_token=hf_y"])
    assert secret.to_repeat == f"{start} --config a.yaml"
    assert again.show_rows == ()


@pytest.mark.parametrize(
    "settings",
    [
        ["--max_steps", "-1"],
        ["--lora_config.r", "8", "--bf16"],
        ["--sample_prompts", "a b", "-- c", "-d"],
        ["--output_dir=a b=c"],
        ["--dry_ru"],
        ["stray"],
    ],
)
def test_read_command_leaves_settings_as_they_were_typed(settings):
    assert read_command([*settings, "--config", "a.yaml"]).overrides == tuple(settings)
    assert read_command(["--config=a.yaml", *settings]).overrides == tuple(settings)


def test_read_command_leaves_a_double_dash_to_be_rejected():
    assert read_command(["--config=a.yaml", "--", "--seed", "1"]).overrides == ("--", "--seed", "1")


@pytest.mark.parametrize(
    ("arguments", "is_on"),
    [(["--dry_run"], True), (["--dry_run=true"], True), (["--dry_run=False"], False), (["--dry_run", "true"], True)],
)
def test_a_switch_takes_an_optional_value(arguments, is_on):
    assert read_command(arguments).dry_run is is_on


def test_read_command_reads_launch_options():
    arguments = "--nodes=2 --node_rank 1 --rendezvous [::1]:29500 --max_restarts 3 --log_dir logs".split()
    expected = LaunchOptions(nodes=2, node_rank=1, rendezvous="[::1]:29500", max_restarts=3, log_dir="logs")
    assert read_command(arguments).launch == expected


def test_read_init_is_for_init_alone():
    assert read_init(["--config_file", "a.yaml"]) is None
    assert read_init(["--init", "--model", "gpt2"]) == InitOptions(model="gpt2")
    assert read_init(["--output-dir=x", "--init=a.yaml"]) == InitOptions(config_file="a.yaml", output_dir="x")
    with pytest.raises(ConfigError, match=messages.ONE_ARGUMENT.format(option="--model", example="--model gpt2")):
        read_init(["--init", "--model", "--data"])
    with pytest.raises(ConfigError, match=messages.NOT_WITH_INIT.format(option="--seed")):
        read_init(["--init", "--seed=1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--tempera", "1"], "command line: unrecognized arguments: --tempera 1. --help lists all options."),
        (["x", "--temperature", "-1"], "command line: --temperature: expected a number >= 0, found '-1'."),
        (["x", "--seed", "1.5"], "command line: --seed: expected an integer from 0 to 9, found '1.5'."),
        ([], "command line: the following arguments are required: model. --help lists all options."),
    ],
)
def test_errors_of_the_parser_are_one_line(arguments, message):
    parser = OneLineParser(prog="program")
    parser.add_argument("model")
    parser.add_argument("--temperature", type=number(float, 0))
    parser.add_argument("--seed", type=number(int, 0, 9))
    with pytest.raises(ConfigError) as caught:
        parser.parse_args(arguments)
    assert caught.value.problems == (message,)


@pytest.mark.parametrize("option", ["--hub_token", "--hub-token", "--push_to_hub_token", "--push-to-hub-token"])
@pytest.mark.parametrize("values", [["hf_secret"], ["hf_secret", "hf_secret2"]])
def test_a_secret_is_never_shown(option, values):
    command = read_command(["--config", "my.yaml", option, *values, "--seed", "1"])
    assert command.to_repeat == f"{shlex.join(program('sft_main.py'))} --config my.yaml --seed 1"
    if len(values) == 1:
        config = load("", *command.overrides)
        assert config.training.extra_training_arguments["hub_token"] == "hf_secret"
        assert "hf_secret" not in "".join(config.notices)
    else:
        assert "hf_secret" not in "".join(problems_of("", *command.overrides))


def test_settings_of_the_command_line_override_the_file(folder):
    (folder / "my.yaml").write_text(BASE + "seed: 1\n")
    command = read_command(["--config", "my.yaml", "--seed", "2"])
    assert load_config(command.config_file, command.overrides).training.seed == 2


@pytest.mark.parametrize("folder", ["elsewhere", "a 'b\" $c", REPOSITORY, REPOSITORY / "sft", "the 'checkout", "."])
@pytest.mark.parametrize("is_on_path", [True, False])
def test_the_command_to_repeat_runs_in_the_same_shell(tmp_path, folder, is_on_path):
    checkout = tmp_path / "the 'checkout"
    checkout.symlink_to(REPOSITORY)
    here = tmp_path / folder
    here.mkdir(exist_ok=True)
    (tmp_path / "my run.yaml").write_text(f"model_name_or_path: gpt2\ntrain_file: {__file__}\n")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin" if is_on_path else "/nowhere"
    environment = {"PATH": path, "PYTHONPATH": str(checkout)}
    show = "import sys; from sft.configuration.command_line import read_command as r; print(r(sys.argv[1:]).to_repeat)"
    arguments = ["--config", str(tmp_path / "my run.yaml"), "--run_name", "it's $HOME", "--resume_from_checkpoint=auto"]
    shell: dict = {"cwd": here, "env": environment, "capture_output": True, "text": True, "check": True}
    shown = subprocess.run([sys.executable, "-c", show, *arguments], **shell).stdout.strip()
    del environment["PYTHONPATH"]
    again = subprocess.run(["/bin/sh", "-c", f"{shown} --print_config"], **shell)
    assert "run_name: it's $HOME" in again.stdout
    assert shown.startswith(("python ", "python3 ")) == is_on_path


def test_a_script_below_the_current_folder_is_named_from_there(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert program("chat.py")[1:] == ["chat.py"]
    monkeypatch.chdir(REPOSITORY.parent)
    assert program("chat.py")[1:] == [f"{REPOSITORY.name}/chat.py"]
