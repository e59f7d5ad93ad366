"""The command, in which before step 3 TensorBoard's folder is deleted and wandb's process killed.

Not a test itself: `test_dying_trackers.py` starts it in a new process.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from sft.processes.libraries import quiet_libraries

quiet_libraries()  # as the command does, before transformers imports peft and bitsandbytes

import transformers  # noqa: E402

import sft_main  # noqa: E402
import trainer_utils  # noqa: E402


class Disturb(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            shutil.rmtree(Path(args.output_dir, "logs"))
            for path in Path("/proc/self/task").glob("*/children"):
                for pid in path.read_text().split():
                    if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    build_trainer = trainer_utils.build_trainer

    def build(*args, **kwargs):
        prepared = build_trainer(*args, **kwargs)
        prepared.trainer.add_callback(Disturb())
        return prepared

    trainer_utils.build_trainer = build
    sys.exit(sft_main.main(sys.argv[1:]))
