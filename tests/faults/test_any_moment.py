"""One process, killed or without disk space at any moment: the resumed run is identical to an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from sft.checkpointing.checkpoints import list_checkpoints
from sft.checkpointing.manifest import find_damage
from tests.support import messages
from tests.support.checkpoints import digests, evaluated, trained
from tests.support.forked import Ended, run
from tests.support.injected import ClosedAtStep, KilledAtStep, KilledInSave

pytestmark = pytest.mark.slow

KINDS = {
    "full": {},
    "dropout": {"architecture": "gpt2", "max_seq_length": 96},
    "adapters": {"lora_config.r": 4, "lora_config.lora_dropout": 0.2},
    "packed": {"packing": True, "per_device_train_batch_size": 1, "max_seq_length": 32},
    "best": {"validation_split": 0.25, "eval_steps": 3, "load_best_model_at_end": True},
}
STEPS = 24


@pytest.fixture(scope="module")
def start(model_folder, question_file, tmp_path_factory):
    """Run the command: `start(output_dir, fault=..., key=value, ...)`."""
    logs = tmp_path_factory.mktemp("logs")
    numbers = iter(range(100000))

    def begin(output: Path, *, fault=None, **settings) -> Ended:
        keys = {
            "model_name_or_path": model_folder(settings.pop("architecture", "llama")),
            "train_file": question_file,
            "max_seq_length": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "sample_prompts": "[]",
            "max_steps": STEPS,
            "save_steps": 3,
            "save_total_limit": 2,
            "output_dir": output,
            **settings,
        }
        return run(logs / str(next(numbers)), *(f"--{key}={value}" for key, value in keys.items()), fault=fault)

    return begin


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """An uninterrupted run of each kind, made once."""
    made: dict[str, Path] = {}

    def output(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"reference-{kind}") / "out"
            ended = start(made[kind], **KINDS[kind])
            assert ended.status == 0, ended.err
        return made[kind]

    return output


def resume_and_compare(start, output: Path, reference: Path, tally, **settings) -> Ended:
    """Resume in a folder, and compare with the uninterrupted run."""
    tally.injected()
    assert all(find_damage(path) == [] for path in list_checkpoints(output))
    ended = start(output, resume_from_checkpoint="auto", **settings)
    assert ended.status == 0, ended.err
    assert ended.err == ""
    tally.continued()
    assert trained(output) == trained(reference)
    assert evaluated(output) == evaluated(reference)
    ours, theirs = list_checkpoints(output), list_checkpoints(reference)
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert digests(ours[-1]) == digests(theirs[-1])
    for path in reference.glob("*.safetensors"):
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert not (output / ".unfinished").exists()
    tally.equal()
    return ended


def test_killed_at_fifty_random_steps(start, uninterrupted, tmp_path, tally):
    chance = random.Random(20)
    for number in range(50):
        kind = list(KINDS)[number % len(KINDS)]
        fault = KilledAtStep(chance.randint(1, STEPS - 1), chance.random() * 0.05)
        output = tmp_path / str(number)
        ended = start(output, fault=fault, **KINDS[kind])
        assert ended.status == -signal.SIGKILL, (fault, ended)
        resume_and_compare(start, output, uninterrupted(kind), tally, **KINDS[kind])
        shutil.rmtree(output)


@pytest.mark.parametrize("quarter", range(4))
def test_killed_before_every_disk_operation_of_a_save(start, tmp_path, tally, quarter):
    settings = {"max_steps": 6, "save_steps": 2, "save_total_limit": 1}
    counted = tmp_path / "changes.json"
    reference = tmp_path / "reference"
    assert start(reference, fault=KilledInSave(4, None, counted), **settings).status == 0
    changes = json.loads(counted.read_text())
    assert {"write_record", "serialize_file", "fsync", "rename", "rmdir"} <= set(changes), changes
    for number, name in list(enumerate(changes, start=1))[quarter::4]:
        output = tmp_path / str(number)
        ended = start(output, fault=KilledInSave(4, number), **settings)
        assert ended.status == -signal.SIGKILL, (number, name, ended)
        assert list_checkpoints(output), (number, name)
        resume_and_compare(start, output, reference, tally, **settings)
        shutil.rmtree(output)


@pytest.mark.parametrize("how", ["shorter", "longer", "a bit", "empty", "gone"])
def test_each_file_of_the_newest_checkpoint_damaged(start, uninterrupted, tmp_path, tally, how):
    reference = uninterrupted("full")
    newest = list_checkpoints(reference)[-1].name
    for name in sorted(path.name for path in (reference / newest).iterdir()):
        output = tmp_path / name
        shutil.copytree(reference, output)
        path = output / newest / name
        content = path.read_bytes()
        path.unlink()
        middle = len(content) // 2
        damaged = {
            "shorter": content[:middle],
            "longer": content + b"\0",
            "empty": b"",
            "gone": None,
            "a bit": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        }[how]
        if damaged is not None:
            path.write_bytes(damaged)
        tally.injected()
        ended = start(output, resume_from_checkpoint="auto")
        assert ended.status == 0, ended.err
        tally.continued()
        assert re.search(rf"{newest} {messages.CANNOT_RESUME}: {re.escape(name)}[ :]", ended.out), (name, ended.out)
        assert trained(output) == trained(reference)
        assert digests(output / newest) == digests(reference / newest)
        assert (output / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
        tally.equal()


@pytest.fixture
def small_disk(tmp_path):
    """A file system in memory: `small_disk(kib)` creates or resizes it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place = tmp_path / "disk"
    place.mkdir()

    def of_size(kib: int, *more: str) -> Path:
        is_there = os.path.ismount(place)
        options = ",".join([*(["remount"] if is_there else []), f"size={kib}k", "mode=755", *more])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=False)
        if done.returncode:
            pytest.skip("a file system in memory cannot be mounted here")
        return place

    yield of_size
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_at_any_size(start, uninterrupted, small_disk, tally):
    reference = uninterrupted("full")
    one = sum(path.stat().st_size for path in list_checkpoints(reference)[-1].iterdir()) // 1024
    for kib in sorted({8, 40, *range(one // 8, one * 4, one // 8)}):
        place = small_disk(kib)
        ended = start(place / "out")
        if ended.status != 0:
            assert ended.status == 2, (kib, ended)
            assert ended.err.count("\n") == 1, (kib, ended.err)
            # torch does not report why it could not write; the free space does.
            assert "No space left on device" in ended.err or f"(0 {messages.FREE_SPACE})" in ended.err, (kib, ended.err)
            small_disk(64 * 1024)
            resume_and_compare(start, place / "out", reference, tally)
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def closable(tmp_path):
    """A folder that can be made read-only even for root."""
    folder = tmp_path / "out"
    folder.mkdir()
    done = subprocess.run(["chattr", "+i", str(folder)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("files cannot be made immutable here")
    subprocess.run(["chattr", "-i", str(folder)], check=True)
    yield folder
    subprocess.run(["chattr", "-i", str(folder)], check=True)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_folder_that_becomes_read_only(start, uninterrupted, closable, tally, step):
    ended = start(closable, fault=ClosedAtStep(step, closable))
    assert ended.status == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    assert "Operation not permitted" in ended.err
    subprocess.run(["chattr", "-i", str(closable)], check=True)
    resume_and_compare(start, closable, uninterrupted("full"), tally)
