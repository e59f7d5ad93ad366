"""The resolved configuration with the origin of each value."""

from __future__ import annotations

import re

import pytest
import yaml

from config_manager import load_config
from sft.configuration.keys import flat_keys
from sft.configuration.values import config_to_yaml
from sft_main import main
from tests.support import messages
from tests.support.paths import REPOSITORY

GIVEN = """\
model_name_or_path: examples/tiny-chat
evaluation_strategy: "no"
torch_dtype: float32
global_batch_size: 8
lora_config: {r: 4}
hub_token: hf_secret
datasets:
  - path: examples/data/orders_train.jsonl
    weight: 2
sample_prompts: ["a: b", "x # y"]
chat_template: |
  {{ messages }}
  # end
"""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--per_device_train_batch_size=2"], "set to 4 by global_batch_size with 1 process"),
        (["--per_device_train_batch_size=2", "--num_gpus=2"], "set to 2 by global_batch_size with 2 processes"),
        (["--per_device_train_batch_size=auto"], "set by global_batch_size and the batch size that is found"),
    ],
)
def test_print_config_shows_the_accumulation_that_global_batch_size_sets(tmp_path, monkeypatch, capsys, more, expected):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "my.yaml"
    path.write_text(GIVEN)
    assert main(["--config_file", str(path), *more, "--print_config"]) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("gradient_accumulation_steps")]
    assert line.endswith(expected)


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "my.yaml"
    path.write_text(GIVEN)
    assert main(["--config_file", str(path), "--learning_rate", "1e-3", "--print_config"]) == 0
    return str(path), capsys.readouterr().out


def origin_of(key: str, text: str) -> str:
    (line,) = [line for line in text.splitlines() if re.match(rf"\W*{key}:", line)]
    return line.rpartition("  # ")[2]


def test_print_config_shows_the_origin_of_each_value(printed):
    path, text = printed
    assert origin_of("model_name_or_path", text) == f"{path} line 1"
    assert origin_of("eval_strategy", text) == f"{path} line 2, given as evaluation_strategy"
    assert origin_of("dtype", text) == f"{path} line 3, given as torch_dtype"
    assert origin_of("learning_rate", text) == "command line"
    assert origin_of("per_device_train_batch_size", text) == "set by global_batch_size"
    assert origin_of("r", text) == f"{path} line 5"
    assert origin_of("lora_alpha", text) == "default"
    assert origin_of("weight", text) == f"{path} line 9"
    assert origin_of("warmup_ratio", text) == "default"


def test_print_config_is_yaml_of_the_same_configuration(printed, tmp_path):
    path, text = printed
    assert set(flat_keys()) <= set(yaml.safe_load(text))
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert config_to_yaml(load_config(str(again))) == config_to_yaml(load_config(path, ["--learning_rate=1e-3"]))


def test_print_config_is_aligned_and_shows_no_secret(printed):
    _, text = printed
    assert "hf_secret" not in text
    columns = {line.index("  # default") for line in text.splitlines() if line.endswith("  # default")}
    assert len(columns) == 1


def test_print_config_reports_errors_like_a_run(capsys):
    assert main(["--learning_rat", "1", "--print_config"]) == 2
    assert messages.UNKNOWN_KEY.format(key="learning_rat") in capsys.readouterr().err
