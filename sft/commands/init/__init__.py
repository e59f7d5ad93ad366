"""Writes a first configuration (`sft_main.py --init`). Public: `start.start`.

Must not know: training, other commands.
"""
