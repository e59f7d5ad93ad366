"""For processes that other processes start: those of torchrun, and the sections of `python -m sft.check_gpu`."""

import os
import sys

if "RANK" in os.environ or "--section" in sys.orig_argv:
    from tests.gpu_path.command import count_on_cpu, prepare

    prepare()
    count_on_cpu()
