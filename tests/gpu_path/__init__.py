"""Tests of the CUDA path on fake devices: torch's own host code runs, kernels do nothing, all numbers are zero.

What this shows: exit statuses, arguments that kernels accept, torch's allocator with a limit, other cards, several
devices, synchronizations with their line, compilation down to machine code. What it cannot show: numbers, time, cuDNN,
NCCL.
"""
