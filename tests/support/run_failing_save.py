"""The command, with a save that fails or is killed at one of its steps: FAIL_SAVE=how:rank:operation.

With RECORD_ROWS=folder, the rows of each step are written there.
Not a test itself: `faults/test_checkpoint_faults.py` starts it in new processes.
"""

import errno
import json
import os
import shutil
import signal
import sys

import sft_main
from sft.processes.environment import rank_of_this_process
from sft.processes.libraries import quiet_libraries


def fail(how: str, operation: str) -> None:
    """Makes the save of checkpoint-4 fail at an operation: `kill`ed, or with a `full` disk."""
    quiet_libraries()  # as the command does before it imports them
    import torch
    import transformers

    from sft.checkpointing import final_model, publish
    from sft.training import checkpointed_trainer

    owner, name, sign = {
        "weights": (transformers.PreTrainedModel, "save_pretrained", "checkpoint-4"),
        "optimizer": (torch, "save", "checkpoint-4/optimizer.pt"),
        "random": (transformers.Trainer, "_save_rng_state", "checkpoint-4"),
        "manifest": (publish, "write_manifest", "checkpoint-4"),
        "fsync": (publish, "flush_to_disk", "checkpoint-4/optimizer.pt"),
        "rename": (os, "rename", "checkpoint-4"),
        "published": (checkpointed_trainer, "rotate", ""),
        "final weights": (transformers.PreTrainedModel, "save_pretrained", ".unfinished/model"),
        "final tokenizer": (transformers.PreTrainedTokenizerBase, "save_pretrained", ".unfinished/model"),
        "final fsync": (final_model, "flush_to_disk", ".unfinished/model/model.safetensors"),
        "final move": (os, "replace", ".unfinished/model/tokenizer.json"),
        "final last": (os, "replace", ".unfinished/model/config.json"),
        "deleting": (shutil, "rmtree", "deleted-checkpoint-2"),
    }[operation]
    usual = getattr(owner, name)
    calls = []

    def failing(*args, **kwargs):
        if any(sign in str(value) for value in (*args, *kwargs.values())):
            calls.append(1)
            if operation != "published" or len(calls) == 2:
                if how == "kill":
                    if operation == "deleting":
                        next(path for path in args[0].iterdir() if path.is_file()).unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(*args, **kwargs)

    setattr(owner, name, failing)


def record_rows(folder: str) -> None:
    """Record the row numbers of each step, in one file per process."""
    from trainer_utils import SFTTrainer

    get_batch_samples = SFTTrainer.get_batch_samples

    def recorded(self, *args, **kwargs):
        batches, count = get_batch_samples(self, *args, **kwargs)
        rows = [int(row["number"]) for batch in batches for row in batch["rows"] if (row["labels"] >= 0).any()]
        with open(os.path.join(folder, f"rows-{self.context.rank}.jsonl"), "a") as file:
            file.write(json.dumps([self.state.global_step + 1, rows]) + "\n")
        return batches, count

    SFTTrainer.get_batch_samples = recorded


if __name__ == "__main__":
    if os.environ.get("RECORD_ROWS"):
        record_rows(os.environ["RECORD_ROWS"])
    when = os.environ.get("FAIL_SAVE")
    if when:
        how, rank, operation = when.split(":")
        if rank_of_this_process() == int(rank):
            fail(how, operation)
    sys.exit(sft_main.main(sys.argv[1:]))
