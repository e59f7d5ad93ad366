"""Symbolic links in an output folder: checkpoints are what they point to, and nothing is written through others."""

from __future__ import annotations

import os
import shutil

import pytest

from sft.checkpointing.checkpoints import (
    OWN_FILES,
    check_writable,
    list_checkpoints,
    resolve_checkpoint,
    set_aside_earlier_run,
    set_aside_later_checkpoints,
)
from sft.checkpointing.final_model import write_model
from sft.checkpointing.own_paths import check_own_paths
from sft.checkpointing.publish import clear_unfinished, rotate
from sft.common.errors import ConfigError
from tests.support import messages
from tests.support.checkpoints import make_checkpoint

STEPS = (2, 4, 6)


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for step in STEPS:
        make_checkpoint(folder, step)
    return folder


def moved_away(output, step, *, relative):
    """Move a checkpoint to another folder, with a link in its place."""
    elsewhere = output.parent / "larger disk"
    elsewhere.mkdir(exist_ok=True)
    link = output / f"checkpoint-{step}"
    target = elsewhere / f"moved-{step}"
    link.rename(target)
    link.symlink_to(os.path.relpath(target, output) if relative else target)
    return target


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("how", ["auto", "link", "through a linked folder"])
def test_a_linked_checkpoint_is_resumed_in_its_own_folder(output, relative, how):
    moved_away(output, 6, relative=relative)
    folder = output
    if how == "through a linked folder":
        folder = output.parent / "runs"
        folder.symlink_to(output)
    point = resolve_checkpoint("auto" if how == "auto" else str(folder / "checkpoint-6"), str(output))
    assert (point.step, point.is_in(output), point.is_in(folder)) == (6, True, True)
    assert set_aside_later_checkpoints(output, point) is None
    assert len(list_checkpoints(output)) == 3


def test_what_a_link_points_to_is_the_checkpoint_of_the_folder(output):
    moved_away(output, 6, relative=False).rename(output.parent / "larger disk" / "checkpoint-6")
    (output / "checkpoint-6").unlink()
    (output / "checkpoint-6").symlink_to(output.parent / "larger disk" / "checkpoint-6")
    point = resolve_checkpoint(str(output.parent / "larger disk" / "checkpoint-6"), str(output))
    assert point.is_in(output)
    other = output.parent / "other"
    other.mkdir()
    assert not point.is_in(other)
    make_checkpoint(other, 6)
    assert not point.is_in(other)


@pytest.mark.parametrize("name", ["latest", "best", "checkpoint-last"])
def test_a_link_of_another_name_is_the_checkpoint_that_it_points_to(output, name):
    (output / name).symlink_to("checkpoint-4")
    point = resolve_checkpoint(str(output / name), str(output))
    assert (point.step, point.name, point.is_in(output)) == (4, "checkpoint-4", True)


@pytest.mark.parametrize("link", [True, False])
def test_a_checkpoint_under_the_name_of_another_step_is_not_resumed(output, link, caplog):
    if link:
        (output / "checkpoint-9").symlink_to("checkpoint-6")
    else:
        shutil.copytree(output / "checkpoint-6", output / "checkpoint-9")
    with caplog.at_level("INFO", "sft.train"):
        assert resolve_checkpoint("auto", str(output)).step == 6
    saved = messages.SAVED_AT_STEP.format(step=6)
    assert f"checkpoint-9 {messages.CANNOT_RESUME}: {saved}" in caplog.text
    with pytest.raises(ConfigError, match=saved):
        resolve_checkpoint(str(output / "checkpoint-9"), str(output))


@pytest.mark.parametrize("target", ["nowhere", "/nowhere/at/all", "checkpoint-8"])
def test_a_link_to_nowhere_is_reported_and_moved_out_of_the_way(output, target, caplog):
    (output / "checkpoint-8").symlink_to(target)
    with caplog.at_level("INFO", "sft.train"):
        point = resolve_checkpoint("auto", str(output))
    assert point.step == 6
    assert messages.LINK_TO_NOWHERE.format(target=target) in caplog.text
    assert set_aside_later_checkpoints(output, point) == output / "earlier-run-1"
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_that_is_moved_aside_still_points_to_the_same(output, relative):
    moved_away(output, 4, relative=relative)
    moved = set_aside_earlier_run(output)
    assert (moved / "checkpoint-4" / "optimizer.pt").read_text() == "optimizer.pt"
    assert list_checkpoints(output) == []


@pytest.mark.parametrize("taken", [["earlier-run-2"], ["earlier-run-1", "earlier-run-3"], ["earlier-run-old"]])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_gap_in_the_numbers_of_earlier_runs_is_no_problem(output, taken, kind):
    for name in taken:
        path = output / name
        path.mkdir() if kind == "folder" else path.touch() if kind == "file" else path.symlink_to("nowhere")
    moved = set_aside_earlier_run(output)
    assert moved.name not in taken
    assert len(list_checkpoints(moved)) == 3


@pytest.mark.parametrize("relative", [False, True])
def test_rotation_deletes_only_the_link(output, relative, caplog):
    target = moved_away(output, 2, relative=relative)
    with caplog.at_level("INFO", "sft.train"):
        rotate(output, limit=1, best_step=None)
    assert [path.name for path in output.iterdir()] == ["checkpoint-6"]
    assert (target / "optimizer.pt").is_file()
    (line,) = caplog.messages
    assert str(target) in line


@pytest.mark.parametrize("below", ["", "sub/folder"])
@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_an_output_folder_that_is_a_link_to_nowhere_is_refused(tmp_path, below, target):
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match=messages.pattern(f"link {messages.LINK_TO_NOWHERE}", target=r"\w+")):
        check_writable(tmp_path / "link" / below)


def test_an_output_folder_that_is_a_link_is_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    check_writable(tmp_path / "link")
    check_own_paths(tmp_path / "link")
    write_model(tmp_path / "link", lambda folder: (tmp_path / folder / "config.json").write_text("{}"))
    assert (tmp_path / "real" / "config.json").is_file()


NAMES = (".lock", "preflight.json", ".unfinished", "logs", *(name.replace("*", "0") for name in OWN_FILES))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["precious.txt", "precious", "nowhere"])
def test_a_link_where_a_run_writes_is_refused(tmp_path, name, target):
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "precious").mkdir()
    output = tmp_path / "out"
    output.mkdir()
    check_own_paths(output, ["logs"])
    (output / name).symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match=messages.LINK) as refused:
        check_own_paths(output, ["logs"])
    assert len(refused.value.problems) == 1
    assert (tmp_path / "precious.txt").read_text() == "precious"


@pytest.mark.parametrize("name", [*NAMES, "config.json", "chat_template.jinja", "model-00001-of-00002.safetensors"])
def test_a_folder_where_a_run_writes_a_file_is_refused_and_the_reverse(tmp_path, name):
    if name in (".unfinished", "logs"):
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=messages.REMOVE_OR_RENAME):
        check_own_paths(tmp_path, ["logs"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_the_final_model_replaces_links(tmp_path, name):
    (tmp_path / "precious").mkdir()
    (tmp_path / name).symlink_to("precious")
    check_own_paths(tmp_path)


def test_unfinished_checkpoints_are_not_removed_through_a_link(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "checkpoint-1").touch()
    (tmp_path / ".unfinished").symlink_to("precious")
    with pytest.raises(ConfigError, match=messages.LINK):
        clear_unfinished(tmp_path)
    assert (tmp_path / "precious" / "checkpoint-1").exists()


def test_the_final_model_replaces_links_and_writes_into_no_linked_folder(tmp_path):
    def write(folder):
        for name in ("config.json", "model.safetensors", "templates/a.jinja"):
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("new")

    (tmp_path / "precious").mkdir()
    output = tmp_path / "out"
    output.mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "precious" / name).write_text("precious")
        (output / name).symlink_to(tmp_path / "precious" / name)
    write_model(output, write)
    assert (output / "model.safetensors").read_text() == "new"
    shutil.rmtree(output / "templates")
    (output / "templates").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=messages.LINK):
        write_model(output, write)
    assert {path.name: path.read_text() for path in (tmp_path / "precious").iterdir()} == {
        "config.json": "precious",
        "model.safetensors": "precious",
    }
