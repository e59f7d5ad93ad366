"""Models and datasets by name, and pushed results: a local Hub that is private, silent, or interrupts downloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sft.commands.saved_models import find_saved_model
from tests.support import messages
from tests.support.paths import REPOSITORY

SLOW = ("silent", "silent for data")
DEFAULT = ("by name", "interrupted", "gated model", "no data", "revision", "no revision", "no data revision")
"""One command each. The other cases are slow tests."""
MORE = (
    "always interrupted",
    "data interrupted",
    "private model",
    "private data",
    "gated data",
    "no model",
    "may not write",
    "no token",
)


def on_local_hub(folder: Path, *cases: str, **environment: str) -> dict:
    """Run cases of `tests/support/run_on_local_hub.py`; returns its results."""
    done = subprocess.run(
        [sys.executable, "tests/support/run_on_local_hub.py", str(folder), *cases],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def found(hub_folder):
    return on_local_hub(hub_folder, *DEFAULT)


@pytest.fixture(scope="module")
def found_more(tmp_path_factory):
    return on_local_hub(tmp_path_factory.mktemp("hub"), *MORE)


def test_model_and_data_by_name_and_the_result_pushed(found):
    run = found["runs"]["by name"]
    assert (run["status"], run["err"]) == (0, ""), run
    assert {
        "tester/result/model.safetensors",
        "tester/result/config.json",
        "tester/result/tokenizer.json",
        "tester/result/README.md",
    } <= set(found["pushed"])
    kept = {name.rpartition("/")[2] for name in found["pushed"]}
    assert not kept & {".lock", "training_args.bin", "optimizer.pt"}
    assert found["with_secrets"] == []


def test_a_revision_of_model_and_data_is_loaded_and_recorded(found, hub_folder):
    run = found["runs"]["revision"]
    assert (run["status"], run["err"]) == (0, ""), run
    output = hub_folder / "revision" / "out"
    assert json.loads((output / "adapter_config.json").read_text())["revision"] == "v2"
    settings = yaml.safe_load((output / "resolved_config.yaml").read_text())
    assert (settings["model_revision"], settings["dataset_revision"]) == ("v2", "v2")
    (manifest,) = output.glob("checkpoint-*/manifest.json")
    assert json.loads(manifest.read_text())["configuration"]["model_revision"] == "v2"
    assert "tester/old at revision v2, LoRA adapters, on tester/old" in (output / "report.md").read_text()
    assert "tester/old@v2[train]" in run["out"]
    saved = find_saved_model(str(output))
    assert (saved.base, saved.base_revision) == ("tester/old", "v2")


def test_an_interrupted_download_is_resumed(found):
    run = found["runs"]["interrupted"]
    assert (run["status"], run["err"]) == (0, ""), run


ERRORS = {
    "always interrupted": "tester/broken: the download from the Hub was interrupted.",
    "data interrupted": "dataset_name 'tester/broken': the download from the Hub was interrupted.",
    "private model": (
        "tester/private: no such folder, and no such model on the Hub, or it is private: check the "
        "name; if it is private, set HF_TOKEN (or run: hf auth login)."
    ),
    "private data": "dataset_name 'tester/private': no such folder, and no such dataset on the Hub, or it is",
    "gated model": (
        "tester/gated: gated or private on the Hub: accept the terms on the model's page, then "
        "set HF_TOKEN (or run: hf auth login)."
    ),
    "gated data": "dataset_name 'tester/gated': gated or private on the Hub: accept the terms on the dataset's",
    "no revision": "tester/present: this model has no such revision on the Hub: name a branch, a tag",
    "no data revision": "dataset_name 'tester/present': this dataset has no such revision on the Hub: name a branch",
    "no model": "tester/nothing: no such folder, and no such model on the Hub",
    "no data": "dataset_name 'tester/nothing': no such folder, and no such dataset on the Hub",
    "may not write": messages.PUSH_REJECTED.format(name="tester/result", status=401),
    "no token": messages.PUSH_REJECTED.format(name="tester/result", status=401),
}


@pytest.mark.parametrize("case", [case for case in ERRORS if case in DEFAULT])
def test_an_error_of_the_hub_is_one_line_with_the_next_step(found, case):
    check_error(found["runs"][case], ERRORS[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ERRORS if case in MORE])
def test_more_errors_of_the_hub_are_one_line_with_the_next_step(found_more, case):
    check_error(found_more["runs"][case], ERRORS[case])


def check_error(run, message):
    assert run["status"] == 2, run
    assert message in run["err"]
    assert run["err"].count("\n") == 1


def test_a_token_without_read_access_is_reported(tmp_path):
    run = on_local_hub(tmp_path, "gated model", HF_TOKEN_PATH=str(token_file(tmp_path)))["runs"]["gated model"]
    assert run["status"] == 2
    assert messages.HUB_NO_ACCESS in run["err"]


def token_file(folder: Path) -> Path:
    path = folder / "token"
    path.write_text("hf_wrong")
    return path


@pytest.mark.slow
def test_an_unreachable_hub_is_one_line(tmp_path):
    for case, run in on_local_hub(tmp_path, *SLOW)["runs"].items():
        assert run["status"] == 2, (case, run)
        assert messages.HUB_NOT_REACHED in run["err"]
        assert run["err"].count("\n") == 1
