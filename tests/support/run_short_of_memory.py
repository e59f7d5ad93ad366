"""The command, with a model that raises torch's out-of-memory error once: OUT_OF_MEMORY_AT=rank:call:forward.

Not a test itself: `test_step` starts it in processes of their own.
"""

import os
import sys

import sft_main


def fail_once(rank: str, call: int, place: str) -> None:
    """Makes the model of one process fail in the given forward or backward pass of training, counted from 1."""
    if os.environ["RANK"] != rank:
        return
    import torch

    import trainer_utils

    build_trainer = trainer_utils.build_trainer

    def build_short_of_memory(setup, arguments):
        seen = []

        def fail(module, *_):
            if module.training:
                seen.append(1)
                if len(seen) == call:
                    raise torch.OutOfMemoryError("out of memory (test)")

        layer = setup.prepared.model.get_decoder().layers[0]
        if place == "forward":
            layer.register_forward_pre_hook(fail)
        else:
            layer.register_full_backward_pre_hook(fail)
        return build_trainer(setup, arguments)

    trainer_utils.build_trainer = build_short_of_memory


if __name__ == "__main__":
    when = os.environ.get("OUT_OF_MEMORY_AT")
    if when:
        of_rank, of_call, of_place = when.split(":")
        fail_once(of_rank, int(of_call), of_place)
    sys.exit(sft_main.main(sys.argv[1:]))
