"""The module at the root imports no heavy library."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.support.configurations import BASE
from tests.support.paths import REPOSITORY

LIGHT = """
import sys
from config_manager import load_config
from sft.common.errors import ConfigError
from sft.configuration.help import format_help
from sft.configuration.values import config_to_yaml
sys.argv[1] == "help" and format_help()
if sys.argv[1] != "help":
    try:
        config_to_yaml(load_config(sys.argv[1]))
    except ConfigError:
        assert sys.argv[1] == "bad.yaml"
    else:
        assert sys.argv[1] == "good.yaml"
print(sorted({"torch", "transformers", "numpy", "datasets", "peft", "accelerate"} & set(sys.modules)))
"""


@pytest.mark.parametrize("argument", ["help", "good.yaml", "bad.yaml"])
def test_help_configuration_and_errors_import_no_heavy_library(folder, argument):
    (folder / "good.yaml").write_text(BASE + "adam_beta1: 0.8\n")
    (folder / "bad.yaml").write_text(BASE + "adam_beta: 0.8\noptim: x\n")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, argument],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    # Half a second is the promise on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - started < 3
