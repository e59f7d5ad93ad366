"""The final model: wherever saving ends, the folder contains a complete model or none that can be loaded."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from sft.checkpointing.final_model import model_staging_folder, publish_model, write_model

FULL = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
SHARDED = (
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")


def write(names, text, folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Path(folder, name).write_text(text)


def model_in(folder, names):
    """The model in a folder: the text of its files; `none` if it cannot be loaded, `mixed` if they differ."""
    if not (folder / names[0]).is_file():
        return "none"
    texts = {path.read_text() if path.is_file() else "missing" for path in (folder / name for name in names)}
    return texts.pop() if len(texts) == 1 else "mixed"


def killed_at(number, work):
    """Run `work` in a process that is killed in its `number`-th file operation; False if it has fewer."""
    child = os.fork()
    if not child:
        count = 0

        def counted(usual):
            def operation(*args, **kwargs):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return usual(*args, **kwargs)

            return operation

        for name in ("replace", "rename", "unlink", "fsync", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("new", [FULL, SHARDED, ADAPTERS], ids=["full", "sharded", "adapters"])
def test_publish_model_killed_at_any_point_leaves_no_mixture(tmp_path, new):
    earlier = ADAPTERS if new is ADAPTERS else FULL
    number, seen = 1, []
    while True:
        output = tmp_path / str(number)
        write(earlier, "old", output)
        write((*new, "training_args.bin"), "new", model_staging_folder(output))
        was_killed = killed_at(number, lambda output=output: publish_model(model_staging_folder(output), output))
        found = {model_in(output, names) for names in (earlier, new)}
        seen.append(
            "new" if model_in(output, new) == "new" else "none" if found == {"none"} else model_in(output, earlier)
        )
        assert seen[-1] in ("old", "none", "new"), (number, sorted(path.name for path in output.iterdir()))
        if not was_killed:
            break
        number += 1
    assert seen == sorted(seen, key=["old", "none", "new"].index)
    assert number > 2 * len(new)
    left = {path.name for path in output.iterdir()}
    assert left == (
        {*new, "generation_config.json"} if new is SHARDED else {*new}
    )  # a file that the new model does not replace


def test_write_model_on_a_full_disk_leaves_the_earlier_model_and_free_space(tmp_path):
    write(FULL, "old", tmp_path)

    def fill(folder):
        write(FULL[:2], "new", folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        write_model(tmp_path, fill)
    assert model_in(tmp_path, FULL) == "old"
    assert not model_staging_folder(tmp_path).exists()


def test_adapters_saved_beside_their_base_do_not_change_it(tmp_path):
    write(FULL, "base", tmp_path)
    write_model(tmp_path, lambda folder: write(ADAPTERS, "new", folder))
    assert (tmp_path / "model.safetensors").read_text() == "base"
    assert model_in(tmp_path, ADAPTERS) == "new"
    shutil.rmtree(tmp_path)
