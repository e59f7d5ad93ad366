"""Checkpoints to go on from, earlier runs, signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.checkpointing.checkpoints import (
    check_same_run,
    check_steps_are_left,
    check_writable,
    list_checkpoints,
    resolve_checkpoint,
    set_aside_earlier_run,
    set_aside_later_checkpoints,
)
from sft.checkpointing.manifest import MANIFEST_FILE, find_damage, read_manifest, write_manifest
from sft.checkpointing.output_lock import OutputLock
from sft.checkpointing.publish import UNFINISHED, clear_unfinished, disk_failure, full_disk, publish, rotate
from sft.checkpointing.resume_point import ResumePoint
from sft.checkpointing.same_run import find_changes
from sft.common.errors import ConfigError
from sft.processes.signals import Interrupted, LeaveAtOnce, StopRequest
from tests.support import messages
from tests.support.parts import REPOSITORY

COMPLETE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors")


def make_checkpoint(folder, step, files=COMPLETE):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in COMPLETE:
        (path / name).write_text(name)
    write_manifest(path, {"step": step})
    for name in set(COMPLETE) - set(files):
        (path / name).unlink()
    return path


def test_list_checkpoints_is_ordered_by_step(tmp_path):
    for step in (100, 9, 20):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize("missing", COMPLETE)
def test_resolve_checkpoint_passes_over_an_incomplete_one(tmp_path, missing, caplog):
    make_checkpoint(tmp_path, 10)
    broken = make_checkpoint(tmp_path, 20, [name for name in COMPLETE if name != missing])
    with caplog.at_level("INFO", "sft.train"):
        assert resolve_checkpoint("auto", str(tmp_path)).path.name == "checkpoint-10"
    assert caplog.messages == [f"{broken} {messages.CANNOT_RESUME}: {missing} is missing."]
    assert resolve_checkpoint(True, str(tmp_path)).name == "checkpoint-10"
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        resolve_checkpoint(str(broken), str(tmp_path))


def test_resolve_checkpoint_without_one(tmp_path):
    assert resolve_checkpoint(None, str(tmp_path)) is None
    assert resolve_checkpoint(False, str(tmp_path)) is None
    assert resolve_checkpoint("auto", str(tmp_path)) is None
    with pytest.raises(ConfigError, match="Write auto"):
        resolve_checkpoint(True, str(tmp_path))


def test_set_aside_earlier_run_moves_what_a_run_wrote_and_nothing_else(tmp_path):
    assert set_aside_earlier_run(tmp_path) is None
    make_checkpoint(tmp_path, 5)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    assert set_aside_earlier_run(tmp_path) == tmp_path / "earlier-run-1"
    assert (tmp_path / "earlier-run-1" / "checkpoint-5" / "optimizer.pt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-run-1", "notes.txt"]
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert set_aside_earlier_run(tmp_path) == tmp_path / "earlier-run-2"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_stop_request_remembers_a_signal_and_gives_the_handlers_back(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
    assert signal.getsignal(number) is before


def run_python(code: str) -> subprocess.CompletedProcess:
    code = "import os, signal, time; from sft.processes.signals import *; me = os.getpid(); " + code
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_second_signal_leaves_at_once_though_the_main_thread_is_busy_in_a_library():
    done = run_python(
        "request = StopRequest(); request.__enter__(); os.kill(me, signal.SIGTERM); "
        "os.kill(me, signal.SIGTERM); time.sleep(0.1); print('delivered twice is one wish', flush=True); "
        "import ctypes, threading; "
        "threading.Timer(2.5, lambda: os.kill(me, signal.SIGINT)).start(); "
        "ctypes.CDLL(None).sleep(30); ctypes.CDLL(None).sleep(30)"  # each signal cuts one sleep short
    )
    assert done.returncode == 130
    assert done.stdout == "delivered twice is one wish\n"
    assert done.stderr == "Left at once on a second signal. Checkpoints that were saved before are whole.\n"


def test_leave_at_once_raises_at_the_first_signal_and_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with LeaveAtOnce(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_leave_at_once_does_not_wait_for_a_library_that_hears_nothing():
    done = run_python(
        "import ctypes, threading, sft.processes.signals as i; i.UNHEARD_SECONDS = 0.5; LeaveAtOnce().__enter__(); "
        "threading.Timer(0.5, lambda: os.kill(me, signal.SIGUSR1)).start(); "
        # One call into C that goes on after a signal, without the interpreter's lock: a thread's end is waited for.
        "c = ctypes.CDLL(None); thread = ctypes.c_ulong(); work = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)"
        "(lambda _: time.sleep(30)); c.pthread_create(ctypes.byref(thread), None, work, None); "
        "c.pthread_join(thread, None)"
    )
    assert done.returncode == 138
    assert done.stderr == "Ended by SIGUSR1. Checkpoints that were saved before are whole.\n"


@pytest.mark.parametrize(
    "inside",
    [
        "type('Left', (), {'__del__': send})()",
        "thing = type('Left', (), {})(); watch = weakref.ref(thing, send); del thing",
    ],
    ids=["finalizer", "weak reference"],
)
def test_leave_at_once_where_nothing_can_be_raised(inside):
    done = run_python(
        "import weakref; LeaveAtOnce().__enter__(); send = lambda _: os.kill(me, signal.SIGTERM);"
        f"{inside}; time.sleep(3); print('went on')"
    )
    assert done.returncode == 143
    assert done.stdout == ""
    assert done.stderr == "Ended by SIGTERM. Checkpoints that were saved before are whole.\n"


def test_a_forked_process_ends_by_sigterm_and_leaves_the_rest_to_its_parent():
    with StopRequest() as request:
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
            os._exit(0)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not request.requested


@pytest.mark.parametrize(("step", "total", "is_fine"), [(3, 5, True), (4, 4, True), (5, 5, True), (8, 5, False)])
def test_check_steps_are_left_refuses_a_checkpoint_behind_the_last_step(tmp_path, step, total, is_fine):
    checkpoint = ResumePoint.read(make_checkpoint(tmp_path, step))
    check_steps_are_left(None, total)
    if is_fine:
        check_steps_are_left(checkpoint, total)
    else:
        with pytest.raises(ConfigError, match="nothing is left to train"):
            check_steps_are_left(checkpoint, total)


def test_check_writable_refuses_a_file_in_the_way_and_makes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: .*file is a file; name a folder"):
        check_writable(tmp_path / "file" / "b")


# Manifest


def damage(path: Path, how: str) -> None:
    """Harms a file: cut by half, one bit turned, emptied, or deleted."""
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])


@pytest.mark.parametrize("how", ["cut", "bit", "emptied", "deleted"])
@pytest.mark.parametrize("name", [*COMPLETE, MANIFEST_FILE])
def test_find_damage_names_the_file_whatever_happened_to_it(tmp_path, name, how):
    path = make_checkpoint(tmp_path, 7)
    assert find_damage(path) == []
    damage(path / name, how)
    (problem,) = find_damage(path)
    assert problem.startswith(name)


def test_find_damage_finds_every_single_bit_of_a_manifest(tmp_path):
    path = make_checkpoint(tmp_path, 7)
    content = (path / MANIFEST_FILE).read_bytes()
    written = json.loads(content)
    for place in range(len(content)):
        turned = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (path / MANIFEST_FILE).write_bytes(turned)
        if not find_damage(path):
            assert json.loads(turned) == written  # a space more or less


def test_find_damage_reads_the_files_of_folders_too(tmp_path):
    path = tmp_path / "checkpoint-1"
    (path / "optimizer_0").mkdir(parents=True)
    (path / "optimizer_0" / "__0_0.distcp").write_text("shard")
    write_manifest(path, {})
    assert find_damage(path) == []
    damage(path / "optimizer_0" / "__0_0.distcp", "bit")
    assert find_damage(path) == ["optimizer_0/__0_0.distcp is not what was written (its sha256 is another)"]


def test_find_damage_refuses_a_manifest_of_another_format(tmp_path):
    path = make_checkpoint(tmp_path, 1)
    write_manifest(path, read_manifest(path))
    assert find_damage(path) == []
    document = read_manifest(path) | {"format": 2}
    document["sha256"] = "0"
    (path / MANIFEST_FILE).write_text(json.dumps(document))
    assert find_damage(path) == ["manifest.json is not what was written"]


def test_resolve_checkpoint_refuses_weights_alone(tmp_path):
    path = make_checkpoint(tmp_path, 3)
    write_manifest(path, {"save_only_model": True})
    assert resolve_checkpoint("auto", str(tmp_path)) is None
    with pytest.raises(ConfigError, match="only weights"):
        resolve_checkpoint(str(path), str(tmp_path))


def test_set_aside_later_checkpoints_leaves_the_earlier_ones(tmp_path):
    kept = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 15)
    assert set_aside_later_checkpoints(tmp_path, ResumePoint.read(kept)) == tmp_path / "earlier-run-1"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert set_aside_later_checkpoints(tmp_path, ResumePoint.read(kept)) is None


# Publishing


def write_aside(folder: Path, step: int) -> tuple[Path, Path]:
    aside = folder / UNFINISHED / f"checkpoint-{step}"
    aside.mkdir(parents=True)
    for name in COMPLETE:
        (aside / name).write_text(name)
    return aside, folder / f"checkpoint-{step}"


def test_publish_gives_a_whole_checkpoint_its_name(tmp_path):
    publish(*write_aside(tmp_path, 4), {"step": 4})
    assert find_damage(tmp_path / "checkpoint-4") == []
    assert read_manifest(tmp_path / "checkpoint-4")["step"] == 4
    rotate(tmp_path, limit=2, best_step=None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", ["fsync", "rename", "open"])
def test_publish_that_fails_leaves_nothing_under_the_name_and_the_one_before_sound(tmp_path, monkeypatch, step, reason):
    before = make_checkpoint(tmp_path, 2)
    aside, target = write_aside(tmp_path, 4)

    def fail(*_, **__):
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patched:
        patched.setattr(*((Path, "write_text") if step == "open" else (os, step)), fail)
        with pytest.raises(OSError, match=os.strerror(reason)) as caught:
            publish(aside, target, {})
    assert os.strerror(reason) in disk_failure(caught.value, tmp_path)
    assert not target.exists()
    assert find_damage(before) == []
    assert resolve_checkpoint("auto", str(tmp_path)).path == before
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]


@pytest.mark.parametrize("killed_in", ["fsync", "rename", "write_text"])
def test_publish_that_is_killed_leaves_the_one_before(tmp_path, killed_in):
    before = make_checkpoint(tmp_path, 2)
    aside, target = write_aside(tmp_path, 4)
    code = (
        "import os, pathlib, signal, sys\n"
        "from sft.checkpointing.publish import publish\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"setattr({'pathlib.Path' if killed_in == 'write_text' else 'os'}, {killed_in!r}, die)\n"
        "publish(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(aside), str(target)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert resolve_checkpoint("auto", str(tmp_path)).path == before


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(1, None, [40]), (2, None, [30, 40]), (1, 10, [10, 40]), (2, 10, [10, 40]), (3, 10, [10, 30, 40]),
     (2, 40, [30, 40]), (None, 10, [10, 20, 30, 40]), (9, None, [10, 20, 30, 40])],
)  # fmt: skip
def test_rotate_keeps_the_best_and_the_newest(tmp_path, limit, best, left):
    for step in (10, 20, 30, 40):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, limit=limit, best_step=best)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert not list(tmp_path.glob(f"{UNFINISHED}/*"))


def test_disk_failure_tells_a_disk_from_a_bug(tmp_path):
    assert disk_failure(ValueError("a bug"), tmp_path) is None
    assert disk_failure(RuntimeError("shapes differ"), tmp_path) is None
    assert "MiB are free there" in disk_failure(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    for torch_says in ("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
                       "basic_ios::clear: iostream error"):  # fmt: skip
        assert disk_failure(RuntimeError(torch_says), tmp_path).startswith("a file could not be written")
    assert full_disk(FileNotFoundError(errno.ENOENT, "gone")) is None
    assert full_disk(OSError(errno.EROFS, "Read-only file system", "here")).startswith("here cannot be written")
    safetensors_says = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert full_disk(RuntimeError(safetensors_says)) == "a file cannot be written: No space left on device"


# One run at a time


def test_output_lock_refuses_a_second_process_and_is_free_when_its_holder_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom sft.checkpointing.output_lock import OutputLock\n"
        "lock = OutputLock()\nlock.take(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with OutputLock() as lock, pytest.raises(ConfigError, match=f"in use by another run .process {holder.pid} on"):
            lock.take(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    with OutputLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)


def test_output_lock_makes_no_folder(tmp_path):
    with OutputLock() as lock:
        lock.take(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


# The same run

SETTINGS = {
    "seed": 42, "max_seq_length": 64, "chat_template": None, "learning_rate": 1e-3, "num_train_epochs": 1.0,
    "logging_steps": 1, "save_steps": 2, "output_dir": "a", "optim": "adamw_torch", "packing": False,
    "lora_config": {"r": 4, "lora_dropout": 0.0}, "model_name_or_path": "base", "lr_scheduler_type": "linear",
}  # fmt: skip
DATA = {"train": "digest", "train_rows": 24, "validation": "another"}
PLAN = {"global_batch_size": 4, "packs": None}


def changes(*, data=None, plan=None, **settings):
    saved = {"configuration": SETTINGS, "data": DATA, "batch_plan": PLAN}
    now = {"configuration": SETTINGS | settings, "data": DATA | (data or {}), "batch_plan": PLAN | (plan or {})}
    return find_changes(Path("out/checkpoint-6"), saved, now)


def test_find_changes_is_silent_where_nothing_matters():
    assert changes() == ([], [])
    assert changes(output_dir="b") == ([], [])


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 2e-3), ("num_train_epochs", 2.0), ("logging_steps", 5), ("save_steps", 5),
     ("lr_scheduler_type", "cosine"), ("lora_config", {"r": 4, "lora_dropout": 0.1})],
)  # fmt: skip
def test_find_changes_tells_what_may_change(key, value):
    refused, told = changes(**{key: value})
    assert refused == []
    assert len(told) == 1
    assert told[0].startswith(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("max_seq_length", 32), ("chat_template", "plain"), ("optim", "sgd"), ("packing", True),
     ("lora_config", {"r": 8, "lora_dropout": 0.0}), ("lora_config", None), ("model_name_or_path", "other"),
     ("lr_scheduler_type", "greedy")],
)  # fmt: skip
def test_find_changes_refuses_what_would_corrupt(key, value):
    refused, _ = changes(**{key: value})
    assert len(refused) == 1
    assert refused[0].startswith(key)
    assert "\n" not in refused[0]


def test_find_changes_refuses_other_data_and_another_step_size():
    (line,), _ = changes(data={"train": "other", "train_rows": 25})
    assert "trained on other rows: 24 then, 25 now" in line
    (line,), _ = changes(plan={"global_batch_size": 8})
    assert "trained with 4 rows a step, and this run has 8" in line
    assert changes(data={"validation": "other"}) == ([], ["the validation data"])


def test_check_same_run_warns_of_another_number_of_processes(tmp_path, caplog):
    checkpoint = make_checkpoint(tmp_path, 6)
    write_manifest(checkpoint, {"configuration": SETTINGS, "data": DATA, "batch_plan": PLAN, "world_size": 2})
    facts = {"configuration": SETTINGS, "data": DATA}
    with caplog.at_level("INFO", "sft.train"):
        check_same_run(ResumePoint.read(checkpoint), facts, PLAN, 2)
        assert caplog.messages == []
        check_same_run(ResumePoint.read(checkpoint), facts, PLAN, 1)
    assert messages.OTHER_WORLD_SIZE.format(name="checkpoint-6", before=2, after=1) in caplog.text
