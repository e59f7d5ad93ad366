"""The package that `pip install .` installs: its metadata, its commands, and a run from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = ("sft", "pyproject.toml", "README.md", "LICENSE")
CONFIG = """\
model_name_or_path: {repository}/examples/tiny-chat
train_file: {repository}/examples/data/orders_train.jsonl
output_dir: out
max_steps: 2
per_device_train_batch_size: 2
sample_prompts: []
report_to: none
"""


def requirements():
    """Every requirement of the project, those of its extras included."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    own = canonicalize_name(PROJECT["name"])
    found = [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]
    return [requirement for requirement in found if canonicalize_name(requirement.name) != own]


def pinned():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


def test_version_is_the_newest_of_the_changelog():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["version"] == newest[1]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_pinned_versions_satisfy_the_projects_bounds(requirement):
    (pin,) = pinned()[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert Version(pin.version) in requirement.specifier


def test_the_extra_all_names_every_other_extra():
    extras = dict(PROJECT["optional-dependencies"])
    (everything,) = extras.pop("all")
    assert Requirement(everything).extras == set(extras)


def test_every_module_of_the_root_is_installed():
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(tool["py-modules"]) == {path.stem for path in REPOSITORY.glob("*.py")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the commands in a virtual environment that has only the wheel, and sees this one's libraries."""
    pytest.importorskip("setuptools", minversion="77")
    sources, environment = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("environment")
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, sources)
    for path in REPOSITORY.glob("*.py"):
        shutil.copy(path, sources)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", "."], cwd=sources, check=True
    )
    (wheel,) = (sources / "wheels").glob("*.whl")
    venv.create(environment)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "-q", "--no-deps", str(wheel)], check=True)
    purelib = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(purelib, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return environment / "bin"


def run_command(installed, name, *arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # holds the checkout
    return subprocess.run(
        [str(installed / name), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )


@pytest.mark.slow
def test_the_package_contains_every_file_of_sft(installed):
    (package,) = installed.parent.glob("lib/python*/site-packages/sft")
    files = {path.relative_to(REPOSITORY / "sft") for path in (REPOSITORY / "sft").rglob("*.*")}
    expected = {path for path in files if "__pycache__" not in path.parts}
    assert expected <= {path.relative_to(package) for path in package.rglob("*.*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"),
    [("sft-train", "--config_file"), ("sft-chat", "--prompt"), ("sft-export", "--merge"), ("sft-compare", "FOLDER")],
)
def test_each_command_shows_its_help(installed, tmp_path, name, option):
    done = run_command(installed, name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.slow
def test_a_mistake_is_exit_code_2(installed, tmp_path):
    for name in ("sft-train", "sft-chat", "sft-export", "sft-compare"):
        done = run_command(installed, name, "--no_such_option", "1", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert all(line.startswith("command line: ") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("num_gpus", [1, 2])
def test_a_run_from_another_folder_trains_and_leaves_a_model(installed, tmp_path, num_gpus):
    (tmp_path / "run.yaml").write_text(CONFIG.format(repository=REPOSITORY), encoding="utf-8")
    arguments = ["--config_file", "run.yaml", "--num_gpus", str(num_gpus), "--use_cpu", "true"]
    done = run_command(installed, "sft-train", *arguments, "--print_config", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max_steps: 2" in done.stdout
    done = run_command(installed, "sft-train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    if num_gpus == 1:
        done = run_command(installed, "sft-chat", "out", "--prompt", "Hi", "--max_new_tokens", "4", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        done = run_command(installed, "sft-export", "out", "--output", "exported", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "exported" / "README.md").is_file()
