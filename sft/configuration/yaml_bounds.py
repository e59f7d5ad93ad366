"""Bounds of a YAML value: a text of a few hundred bytes can stand for billions of values, or be nested without end.

An alias (`*name`) repeats a value that was given once, and a repeated value may contain aliases itself. Each node is
visited once here, whatever it stands for; what passes may be walked completely by everything that comes later.
"""

from __future__ import annotations

import yaml

MAX_LEVELS = 100
"""Maximum nesting of lists and mappings. Deeper ones would exceed recursion limits."""
TOO_DEEP = f"is nested too deeply: more than {MAX_LEVELS} levels"
MAX_REPEATED = 20_000
"""Maximum number of values and characters that the aliases of one setting repeat."""


class OutOfBounds(Exception):
    """A value must not be walked, because of `node`."""

    def __init__(self, name: str, problem: str, node: yaml.Node) -> None:
        super().__init__(f"{name}: {problem}")
        self.node = node


class YamlBounds:
    """Checks the values of one document, which may share nodes."""

    def __init__(self) -> None:
        self._visited: dict[int, tuple[int, int]] = {}
        """Id of a node -> the values and characters that it stands for, and its levels."""
        self._open: set[int] = set()
        self._num_written = 0

    def check(self, name: str, node: yaml.Node) -> None:
        """Check a value.

        Raises:
            OutOfBounds: if it refers to itself, is nested too deeply, or its aliases repeat too much.
        """
        self._open.clear()
        self._num_written = 0
        size, levels = self._visit(name, node)
        if levels > MAX_LEVELS:
            raise OutOfBounds(name, TOO_DEEP, node)
        if size - self._num_written > MAX_REPEATED:
            repeated = f"its aliases (*name) repeat more than {MAX_REPEATED:,} values and characters"
            raise OutOfBounds(name, f"{repeated}; write out what is meant", node)

    def _visit(self, name: str, node: yaml.Node) -> tuple[int, int]:
        if id(node) in self._visited:
            return self._visited[id(node)]
        if id(node) in self._open:
            raise OutOfBounds(name, "refers to itself", node)
        self._open.add(id(node))
        inner = [self._visit(inner_name, value) for inner_name, value in _inside(name, node)]
        self._open.remove(id(node))
        own = 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        levels = 1 + max((levels for _, levels in inner), default=0)
        self._num_written += own
        self._visited[id(node)] = own + sum(size for size, _ in inner), levels
        return self._visited[id(node)]


def _inside(name: str, node: yaml.Node) -> list[tuple[str, yaml.Node]]:
    """The nodes directly inside a list or a mapping, with their names. A key is a node too."""
    if isinstance(node, yaml.ScalarNode):
        return []
    if not isinstance(node, yaml.MappingNode):
        return [(f"{name}[{number}]", item) for number, item in enumerate(node.value)]
    found = []
    for key, value in node.value:
        inner = f"{name}.{key.value}" if isinstance(key, yaml.ScalarNode) else f"{name}.?"
        found += [(inner, key), (inner, value)]
    return found


def load_bounded(text: str) -> object:
    """The content of a YAML document, as `yaml.safe_load` reads it, if its values are within bounds.

    Raises:
        yaml.YAMLError: if it is not valid YAML.
        ValueError: if it is out of bounds.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        YamlBounds().check("document", node)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except OutOfBounds as error:
        raise ValueError(str(error)) from None
    return yaml.SafeLoader("").construct_document(node)
