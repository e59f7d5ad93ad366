"""What the installed transformers accepts, read from its source code.

Importing `TrainingArguments` imports torch, which takes seconds, but configuration errors should appear at once. The
source is therefore parsed with `ast`.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_origin

BFLOAT16_OPTIMIZERS = ("adamw_bf16_split", "adamw_bf16_stochastic")
"""Our own values of `optim` (`sft.training.bfloat16_adamw`); the last word is the kind of rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingArgumentsField:
    """A field of the installed `TrainingArguments`; `annotation` is `Any` for types that are not built in."""

    name: str
    annotation: Any
    default: str
    """As the source writes it; empty for what is not a plain value."""
    documentation: str


@cache
def training_arguments_fields() -> dict[str, TrainingArgumentsField]:
    """The fields of the installed `TrainingArguments` by name; empty if transformers is not installed."""
    tree = _parse_module("training_args.py")
    result: dict[str, TrainingArgumentsField] = {}
    for node in _class_body(tree, "TrainingArguments"):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default, documentation = _declared(node.value)
            result[node.target.id] = TrainingArgumentsField(
                name=node.target.id,
                annotation=_plain_type(node.annotation),
                default=default,
                documentation=documentation,
            )
    return result


@cache
def enum_values(module: str, class_name: str) -> tuple[str, ...]:
    """The values of a string enum in a module of transformers, e.g. the names of all optimizers."""
    return tuple(
        node.value.value
        for node in _class_body(_parse_module(module), class_name)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def optimizer_names() -> tuple[str, ...]:
    """Allowed values of `optim`."""
    installed = enum_values("training_args.py", "OptimizerNames")
    return (*installed, *BFLOAT16_OPTIMIZERS) if installed else ()


def scheduler_names() -> tuple[str, ...]:
    """Allowed values of `lr_scheduler_type`."""
    return enum_values("trainer_utils.py", "SchedulerType")


@cache
def _parse_module(name: str) -> ast.Module:
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return ast.Module(body=[], type_ignores=[])
    path = Path(next(iter(spec.submodule_search_locations))) / name
    return ast.parse(path.read_text(encoding="utf-8"))


def _class_body(tree: ast.Module, class_name: str) -> list[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return node.body
    return []


def _declared(value: ast.expr | None) -> tuple[str, str]:
    """Default and documentation of `field(default=..., metadata={"help": ...})`."""
    given = {word.arg: word.value for word in value.keywords} if isinstance(value, ast.Call) else {"default": value}
    default, metadata = given.get("default"), given.get("metadata")
    shown = ""
    if isinstance(default, ast.Constant):
        shown = {"None": "null", "True": "true", "False": "false"}.get(str(default.value), str(default.value))
    entries = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    texts = [text.value for _, text in entries if isinstance(text, ast.Constant)]
    return shown, " ".join(" ".join(map(str, texts)).split())


def _plain_type(node: ast.expr) -> Any:
    """The type that an annotation names if it consists of built-in types; otherwise `Any`."""
    plain = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict[str, Any], "list": list[Any]}
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Name):
        return plain.get(node.id) or _enumeration(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(_plain_type(node.left), _plain_type(node.right))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Optional":
            return _union(_plain_type(node.slice), type(None))
        if node.value.id == "Literal" and isinstance(node.slice, ast.Constant):
            return Literal[node.slice.value]
        if node.value.id == "list" and isinstance(node.slice, ast.Name):
            item_type: Any = plain.get(node.slice.id, Any)
            return list[item_type]
        return plain.get(node.value.id, Any)
    return Any


def _union(left: Any, right: Any) -> Any:
    """The union of two types. `str | SomeEnum` allows the values of the enum only."""
    if get_origin(left) is Literal and right is str:
        return left
    return Any if Any in (left, right) else left | right


def _enumeration(class_name: str) -> Any:
    """A `Literal` of the values of a string enum of transformers; `Any` for other classes."""
    values = enum_values("trainer_utils.py", class_name) or enum_values("training_args.py", class_name)
    return Literal[values] if values else Any
