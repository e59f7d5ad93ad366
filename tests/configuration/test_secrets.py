"""No message, record or command of the configuration quotes a secret."""

from __future__ import annotations

import json

import pytest
import yaml

from chat import read_options as read_chat_options
from config_manager import ConfigError, load_config
from export_model import read_options as read_export_options
from sft.configuration.command_line import read_command, read_init
from sft.configuration.values import config_sha256, config_to_yaml, config_values, config_with_origins
from tests.support import messages

SECRET = "Xy7-s3cr3t"
BASE = ["--model_name_or_path", "gpt2", "--train_file", __file__]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", SECRET, SECRET],
        ["--push_to_hub_token", SECRET, "--hub_token", SECRET, "other"],
        ["--push-to-hub-token", "x", SECRET],
        ["--wandb_api_key", SECRET],
        ["--hub_tokn", SECRET],
        ["hub_token", SECRET],
        ["-hub_token", SECRET],
        [f"hub_token={SECRET}"],
        [f"--hub_token:{SECRET}"],
        ["--hub_token=x", SECRET],
        ["--seed", "hub_token", SECRET],
        ["--seed", f"api_key={SECRET}"],
        ["--seed", "-" * 40 + f" password={SECRET}"],
        ["--gradient_checkpointing_kwargs", f"{{api_key: {SECRET}"],
        ["--gradient_checkpointing_kwargs", f"{{api_key: !!int {SECRET}}}"],
        ["--lr_scheduler_kwargs.password", "!!float", SECRET],
        ["--lora_config.token", SECRET],
        ["--datasets", f"{{path: a, token: {SECRET}}}"],
        ["--learning_rate", f"https://me:{SECRET}@host/x"],
    ],
)
def test_messages_about_the_command_line(arguments):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*BASE, "--max_steps", "none at all", *arguments])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"hub_token: *{SECRET}",
        f"hub_token: &{SECRET}",
        f"hub_token: !{SECRET} x",
        f"hub_token: %{SECRET}",
        f"hub_token: {SECRET}\nhub_token: {SECRET}",
        f"hub_token: {SECRET}\npush_to_hub_token: {SECRET}",
        f"push_to_hub_token: {SECRET}\nlearning_rate: {SECRET}",
        f"t: &t {SECRET}\nhub_token: *t\nlearning_rate: *t",
        f"hub_token:\n  {SECRET}:\n  - x",
        f"hub_token: |\n  {SECRET}\nseed: {SECRET}",
        f"wandb_key: {SECRET}",
        f"hub_token {SECRET}",
        f"hub_token={SECRET}: 1",
        f"gradient_checkpointing_kwargs: 'password={SECRET}'",
        f"gradient_checkpointing_kwargs: {{password: !!int {SECRET * 10}}}",
        f"gradient_checkpointing_kwargs: {{a: {{token: {SECRET}, token: {SECRET}}}}}",
        f"env: {{WANDB_API_KEY: {SECRET}}}",
        f"seed: https://{SECRET}@host",
    ],
)
def test_messages_about_the_file(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(f"model_name_or_path: gpt2\ntrain_file: {__file__}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), ["--max_steps", "none at all"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("read", [read_chat_options, read_export_options, read_init, read_command])
@pytest.mark.parametrize("arguments", [["--hub_token", SECRET], [f"--hub_token={SECRET}"], ["-token", SECRET]])
def test_messages_of_every_command(read, arguments):
    with pytest.raises(ConfigError) as caught:
        read([*{read_init: ["--init"], read_command: ["--nodes", "x"]}.get(read, ["model"]), *arguments])
    assert SECRET not in str(caught.value)


def test_what_is_shown_and_recorded_of_a_valid_configuration(tmp_path):
    nested = {"comet": {"enabled": True, "api_key": SECRET}, "train_batch_size": 1}
    arguments = [*BASE, "--push_to_hub_token", SECRET, "--lr_scheduler_kwargs", json.dumps(nested), "--run_name"]
    arguments += [f"https://me:{SECRET}@host", f"--optim_args=a=1,password={SECRET}"]
    config = load_config(None, arguments)
    passed = config.training.passed_through
    assert (passed.hub_token, passed.fields["lr_scheduler_kwargs"]) == (SECRET, nested)  # masked only where it is shown
    shown = [config_with_origins(config), config_to_yaml(config), json.dumps(config_values(config)), *config.notices]
    command = read_command(["--config_file", "a.yaml", *arguments, "--sample_prompts", "My password: a"]).to_repeat
    assert not [text for text in (*shown, command) if SECRET in text]
    values = yaml.safe_load(shown[1])
    assert values["lr_scheduler_kwargs"] == {"comet": {"enabled": True, "api_key": "***"}, "train_batch_size": 1}
    assert values["run_name"] == "https://***@host"
    assert "hub_token" not in values
    assert "'My password: a'" in command
    named = read_command(["--config_file", "a.yaml", "--run_name", f"try 2 password={SECRET}"]).to_repeat
    assert SECRET not in named
    other = load_config(None, [argument.replace(SECRET, "another") for argument in arguments])
    assert config_sha256(other) == config_sha256(config)


def test_a_masked_secret_out_of_a_record_is_not_taken_for_the_secret():
    with pytest.raises(ConfigError, match="^command line: deepspeed: " + messages.pattern(messages.SECRET_MASKED)):
        load_config(None, [*BASE, "--deepspeed", "{comet: {api_key: '***'}}"])


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\x85b\u202ec", "a\rb", "ü\u2066 b", "a\x9bb", "line\nbreak"])
def test_control_characters_are_escaped_in_yaml_that_is_read_back(tmp_path, name):
    config = load_config(None, [*BASE, "--run_name", name])
    for text in (config_with_origins(config), config_to_yaml(config)):
        assert not set("\x1b\x85\u202e\r\u2066\x9b") & set(text)
        assert yaml.safe_load(text)["run_name"] == name
