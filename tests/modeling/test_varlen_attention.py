"""torch's attention within documents on a GPU: its signature and what it refuses, read from the installed source.

Where a new release of torch changes them, a test here fails: see what `sft/modeling/document_attention.py` passes, and
extend the tables.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

POSITIONAL = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
WINDOW = {"return_aux": "None", "scale": "None", "window_size": "(-1, -1)"}
GROUPS = {**WINDOW, "enable_gqa": "False", "seqused_k": "None", "block_table": "None", "num_splits": "None"}
BY_NAME = {"2.11": WINDOW, "2.12": GROUPS, "2.13": GROUPS, "2.14": GROUPS}
"""Version of torch -> arguments by name with their defaults."""
REFUSED = {
    "2.11": [],
    "2.13": [
        "not enable_gqa and num_heads_q != num_heads_k",
        "enable_gqa and num_heads_q % num_heads_k != 0",
    ],
}
"""Version of torch -> conditions under which it raises an error; its C++ code has others (`tests/gpu_path`)."""


@pytest.fixture(scope="module")
def functions():
    """The functions of the module, by name."""
    spec = importlib.util.find_spec("torch.nn.attention.varlen")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="module")
def version():
    import torch

    return ".".join(torch.__version__.split(".")[:2])


def test_its_arguments_are_those_that_are_known(functions, version):
    arguments = functions["varlen_attn"].args
    assert [each.arg for each in arguments.args] == POSITIONAL
    assert arguments.defaults == []
    defaults = map(ast.unparse, arguments.kw_defaults)
    found = dict(zip([each.arg for each in arguments.kwonlyargs], defaults, strict=True))
    assert found == BY_NAME.get(version), f"torch {version} has another signature, or is not known"


def test_its_conditions_are_those_that_are_known(functions, version):
    found = [
        ast.unparse(node.test)
        for node in functions["varlen_attn"].body
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)
    ]
    assert found == REFUSED.get(version, REFUSED["2.13"])


def test_a_causal_window_is_the_causal_kernel(functions):
    assert "is_causal = window_size == (-1, 0)" in ast.unparse(functions["varlen_attn"])


def test_it_uses_flash_attention_and_not_cudnn(functions):
    """cuDNN would refuse windows and grouped heads."""
    assert ast.unparse(functions["_should_use_cudnn"].body[-1]) == "return False"
