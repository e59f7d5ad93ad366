"""The command, with a process that hangs in a step: HANG_AT=how:rank:step.

How: `sleep` forever in Python, `library` forever in C with the interpreter's lock held, `stopped` by SIGSTOP,
`worker` (a loader's worker sleeps). Processes that the launcher started again do not hang. Not a test itself:
`faults/test_hangs.py` starts it in new processes.
"""

import ctypes
import os
import signal
import sys
import time

import sft_main
from sft.processes.environment import exit_with_launcher, num_restarts, rank_of_this_process

FOR_EVER = 10_000


def hang(how: str) -> None:
    if how == "library":
        library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # PyDLL keeps the interpreter's lock
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)  # no signal wakes it
    elif how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(FOR_EVER)


def hang_at(how: str, step: int) -> None:
    """Makes this process hang at the begin of a step."""
    import transformers

    import sft.batching.layout
    import trainer_utils

    build_trainer = trainer_utils.build_trainer
    get_row = sft.batching.layout.SupervisedRows.__getitem__

    class Hang(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step + 1 == step:
                hang(how)

    def build(*args, **kwargs):
        prepared = build_trainer(*args, **kwargs)
        prepared.trainer.add_callback(Hang())
        return prepared

    rows_read = []

    def get_row_or_hang(self, index):
        import torch

        rows_read.append(index)
        if torch.utils.data.get_worker_info() is not None and len(rows_read) == 2 * step:
            hang(how)
        return get_row(self, index)

    if how == "worker":
        sft.batching.layout.SupervisedRows.__getitem__ = get_row_or_hang
    else:
        trainer_utils.build_trainer = build


if __name__ == "__main__":
    exit_with_launcher()
    sft_main.__file__ = __file__  # what the launcher starts
    when = os.environ.get("HANG_AT")
    if when:
        how, rank, step = when.split(":")
        if rank_of_this_process() == int(rank) and not num_restarts():
            hang_at(how, int(step))
    sys.exit(sft_main.main(sys.argv[1:]))
