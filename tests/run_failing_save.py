"""The command, with a save that fails or is killed at one of its steps: FAIL_SAVE=how:rank:place.

Not a test itself: `faults/test_checkpoint_faults.py` starts it in processes of its own.
"""

import errno
import os
import shutil
import signal
import sys

import sft_main
from distributed_utils import rank_of_this_process


def fail(how: str, place: str) -> None:
    """Makes the save of checkpoint-4 end at a place: `kill`ed, or with a `full` disk."""
    import transformers

    import checkpointed_trainer
    from run_state import publish

    owner, name, sign = {
        "weights": (transformers.PreTrainedModel, "save_pretrained", "checkpoint-4"),
        "optimizer": (transformers.Trainer, "_save_optimizer_and_scheduler", "checkpoint-4"),
        "random": (transformers.Trainer, "_save_rng_state", "checkpoint-4"),
        "manifest": (publish, "write_manifest", "checkpoint-4"),
        "fsync": (publish, "_write_through", "checkpoint-4/optimizer.pt"),
        "rename": (os, "rename", "checkpoint-4"),
        "published": (checkpointed_trainer, "rotate", ""),
        "deleting": (shutil, "rmtree", "deleted-checkpoint-2"),
    }[place]
    usual = getattr(owner, name)
    calls = []

    def failing(*args, **kwargs):
        if any(sign in str(value) for value in (*args, *kwargs.values())):
            calls.append(1)
            if place != "published" or len(calls) == 2:
                if how == "kill":
                    if place == "deleting":
                        next(path for path in args[0].iterdir() if path.is_file()).unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(*args, **kwargs)

    setattr(owner, name, failing)


if __name__ == "__main__":
    when = os.environ.get("FAIL_SAVE")
    if when:
        how, rank, place = when.split(":")
        if rank_of_this_process() == int(rank):
            fail(how, place)
    sys.exit(sft_main.main(sys.argv[1:]))
