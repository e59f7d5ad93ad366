"""The commands of an installed package: `sft-train`, `sft-chat`, `sft-export`, `sft-compare`.

Each runs a module of the root as `python MODULE.py` does, its `if __name__ == "__main__":` block included, so that both
ways of starting are the same code and processes that torchrun starts find the same file.
"""

from __future__ import annotations

import runpy


def train() -> None:
    """`sft-train`: as `python sft_main.py`."""
    _run("sft_main")


def chat() -> None:
    """`sft-chat`: as `python chat.py`."""
    _run("chat")


def export() -> None:
    """`sft-export`: as `python export_model.py`."""
    _run("export_model")


def compare() -> None:
    """`sft-compare`: as `python compare_runs.py`."""
    _run("compare_runs")


def _run(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
