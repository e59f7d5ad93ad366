"""Places of a text at which a tokenizer may be cut: nothing that it does on one side depends on the other side.

A tokenizer normalizes a text, splits it by patterns, one after another, and applies its model to each piece. Patterns
are searched from left to right, so where they match depends on where the search begins: `\\p{N}{1,3}` splits a row of
digits in three ways. A place is closed if this does not matter: for every pattern, wherever the search begins,

- a match that begins before the place ends there at the latest, so that the search continues alike after it;
- no attempt to match that begins before the place looks further than the text around it. A pattern without repeated
  groups consumes each of its repeated characters (`\\s*`) once, so it reaches no further than the longest runs of these
  characters in this text, added up;
- the pattern looks at nothing before the match.

What is not understood (other patterns, normalizers, models) has no such places. The patterns are run on the text around
the place by the tokenizer's own library, not by a copy of it.

The beginning of a control token is closed in any tokenizer: it is cut out of the text before anything else is done.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

_MIN_WINDOW = 512
"""Characters on each side of a place that are looked at."""
_LONGEST_TOKEN = 2048
_MOST_TRIED = 8
_SEARCHED = 4096
"""Characters in which a closed place is searched."""

_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `pre_tokenizers.ByteLevel`."""
_ATOM = (
    r"\\[pP]\{\^?\w+\}|\\[sSdDwWhHrntfv]|\\u[0-9a-fA-F]{4}|\\x\{[0-9a-fA-F]+\}|\\[^\w]"
    r"|\[(?!\^?\])(?:\\.|[^\[\]\\])+\]|[^\\\[\](){}?*+^$|]"
)
"""A pattern's expression for one character."""
_PART = re.compile(
    rf"(?P<fixed>\(\?i:[^()\\{{}}*+?.]*\)\??)|(?P<open>\((?:\?[:=!>]|(?!\?)))|(?P<close>\)\??(?![?*+{{]))|(?P<either>\|)"
    rf"|(?P<end>\$)|(?P<atom>{_ATOM})(?P<times>(?:[?*+]|\{{\d+(?:,\d*)?\}})[?+]?)?",
    re.DOTALL,
)
_BETWEEN_WORDS = re.compile(r"(?<=\w)[ \n](?=\w)")
_ANYWHERE = re.compile(r"(?<=\S)(?:\S|\s(?=\S))")
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")


class _Pattern:
    """A pattern that splits a text, and how far it can look."""

    def __init__(self, pattern: str, *, is_regex: bool, keeps_gaps_apart: bool):
        """
        Args:
            pattern: A regular expression in the syntax of the `tokenizers` library, or a text.
            is_regex: Whether it is an expression.
            keeps_gaps_apart: Whether matches are pieces of their own, or nothing. If not, they are joined with what is
                beside them, and only text without a match is understood.

        Raises:
            ValueError: If the expression is not understood.
        """
        self.keeps_gaps_apart = keeps_gaps_apart
        compiled = Regex(pattern) if is_regex else pattern
        self._split, self._without = Split(compiled, "isolated"), Split(compiled, "removed")
        ways = _ways(pattern) if is_regex else [(len(pattern), [])]
        names = dict.fromkeys(atom for _, atoms in ways for atom in atoms)
        self._runs = {atom: Split(Regex(f"(?:{atom})+"), "removed") for atom in names}
        self._ways = ways

    def reach(self, text: str) -> int:
        """The most characters of a text that one attempt to match can look at."""
        longest = {atom: _longest_match(text, without) for atom, without in self._runs.items()}
        return max(fixed + sum(longest[atom] for atom in atoms) for fixed, atoms in self._ways)

    def edges(self, text: str) -> set[int]:
        """Where matches begin and end."""
        return {edge for _, bounds in self._split.pre_tokenize_str(text) for edge in bounds}

    def is_unmatched(self, text: str, place: int) -> bool:
        """Whether a place is inside a text that does not match."""
        return any(start < place < end for _, (start, end) in self._without.pre_tokenize_str(text))


class _Contents:
    """Finds the contents of tokens, of which a tokenizer may have thousands."""

    def __init__(self, contents: Iterable[str]):
        self._by_first: dict[str, tuple[str, ...]] = {}
        for content in sorted({*contents} - {""}, key=len, reverse=True):
            self._by_first[content[0]] = (*self._by_first.get(content[0], ()), content)
        self._first = re.compile(f"[{re.escape(''.join(self._by_first))}]" if self._by_first else "(?!)")

    def find(self, text: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
        """Where a content begins, and the longest one there."""
        for match in self._first.finditer(text, start, stop):
            contents = self._by_first[match.group()]
            if text.startswith(contents, match.start()):
                yield match.start(), next(one for one in contents if text.startswith(one, match.start()))


class ClosedPlaces:
    """The closed places of texts, for one tokenizer."""

    def __init__(self, backend: Any):
        """
        Args:
            backend: A tokenizer of the `tokenizers` library.
        """
        added = list(backend.get_added_tokens_decoder().values())
        self._control = _Contents(token.content for token in added if not token.normalized)
        self._cuts = {
            token.content
            for token in added
            if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        }
        self._normalizer = backend.normalizer
        contents = [token.content for token in added]
        self._added = _Contents([*contents, *map(self._normalized, contents)])
        self._longest_added = max(map(len, contents), default=0)
        self._is_bpe = type(backend.model).__name__ == "BPE"
        longest = max(map(len, backend.get_vocab(with_added_tokens=True)), default=0)
        self.window = max(_MIN_WINDOW, 2 * longest)
        """Characters on each side of a place that have to be the same for it to be closed."""
        self._patterns: list[_Pattern] | None = None
        try:
            _check_model(backend.model, longest)
            self._patterns, self._by_space = _patterns(_state(backend.pre_tokenizer))
            _check_normalizer(_state(self._normalizer), splits=bool(self._patterns or self._by_space))
        except ValueError:
            self._patterns = None  # the control tokens remain

    def find(self, text: str, start: int) -> list[int]:
        """The first closed places from `start` on, in ascending order; empty if there are none near.

        If there are several, they may be inside a piece for the model: the text may be cut at one of them that is
        between the same two tokens in both parts (`sft/prompting/long_texts.py`).
        All are at least `window` characters from both ends of the text.
        """
        stop = min(start + _SEARCHED, len(text) - self.window)
        start = max(start, self.window)
        for place, content in self._control.find(text, start, max(stop, start)):
            if content in self._cuts:
                return [place]
        found: list[int] = []
        for candidates in () if self._patterns is None else (_BETWEEN_WORDS, _ANYWHERE):
            places = (match.start() for match in candidates.finditer(text, start, max(stop, start)))
            for place in islice((place for place in places if _begins_alone(text[place])), _MOST_TRIED):
                is_edge = self._is_closed(text, place)
                if is_edge:
                    return [place]
                if is_edge is False:
                    found.append(place)
            if found:
                break
        return found

    def _is_closed(self, text: str, place: int) -> bool | None:
        """Whether a closed place is an edge of a piece for the model; None if the place is not closed."""
        start, stop = place - self.window, place + self.window
        before, after = self._normalized(text[start:place]), self._normalized(text[place:stop])
        around = before + after
        has_added = any(self._added.find(text, start, stop)) or any(self._added.find(around, 0, len(around)))
        return None if has_added else self._is_edge(before, after)

    def _is_edge(self, before: str, after: str) -> bool | None:
        """As `_is_closed`, of the place between two normalized texts."""
        # A control token just beyond the window may end in it, or begin there.
        slack = self._longest_added + 8
        known, end = len(after), None
        for pattern in self._patterns or ():
            left, right = pattern.reach(before) + 1, pattern.reach(after) + 1
            if left + slack > len(before) or (end is None and right + slack > known):
                return None
            if not pattern.keeps_gaps_apart:
                if len(pattern.edges(before + after)) > 2:
                    return None
                continue
            rest = after[: known if end is None else end]
            near = rest[: right + slack]
            around = [(before[-offset:] + near, offset) for offset in range(1, left + 1)]
            num_edges = sum(offset in pattern.edges(text) for text, offset in around)
            if num_edges == len(around):
                return True
            if num_edges or not all(pattern.is_unmatched(text, offset) for text, offset in around):
                return None
            # The next pattern is searched in the piece around the place, up to its end if that is near.
            if end is None:
                known -= right + slack
            end = min((edge - 1 for edge in pattern.edges(before[-1:] + rest) if 1 < edge <= known + 1), default=end)
        if self._by_space and after.startswith((" ", "\u2581")):
            return True
        return False if self._is_bpe else None

    def _normalized(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer.normalize_str(text)


def _begins_alone(character: str) -> bool:
    """Whether a character is never normalized together with those before it."""
    return character.isascii() or unicodedata.category(character)[0] in "PZ"


def _state(part: Any) -> dict[str, Any] | None:
    """The settings of a part of a tokenizer."""
    return None if part is None else json.loads(part.__getstate__())


def _check_model(model: Any, longest: int) -> None:
    """
    Args:
        model: Makes tokens of the pieces.
        longest: Characters of its longest token.

    Raises:
        ValueError: If its tokens may depend on text far from them.
    """
    kind = type(model).__name__
    affixes = kind == "BPE" and (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
    if kind not in ("BPE", "Unigram") or affixes or longest > _LONGEST_TOKEN:
        raise ValueError(kind)


def _flat(state: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """The parts of a sequence, and of the sequences in it."""
    if state is not None and state["type"] == "Sequence":
        for one in state[inner]:
            yield from _flat(one, inner)
    elif state is not None:
        yield state


def _check_normalizer(state: dict[str, Any] | None, *, splits: bool) -> None:
    """
    Args:
        state: The settings of a normalizer.
        splits: Whether the text is split after it.

    Raises:
        ValueError: If it may treat a character by characters far from it.
    """
    for part in _flat(state, "normalizers"):
        kind = part["type"]
        is_character = kind == "Replace" and len(part["pattern"].get("String", "")) == 1
        if not (kind in _NORMALIZERS or is_character or (kind == "Prepend" and not splits)):
            raise ValueError(kind)


def _patterns(state: dict[str, Any] | None) -> tuple[list[_Pattern], bool]:
    """The patterns of a pre-tokenizer, in order, and whether it splits before spaces after them.

    Raises:
        ValueError: If there is another way in which it splits.
    """
    patterns: list[_Pattern] = []
    by_space = is_last = False
    for part in _flat(state, "pretokenizers"):
        kind = part["type"]
        if is_last or part.get("add_prefix_space"):
            raise ValueError(kind)
        if kind == "ByteLevel":
            if part["use_regex"]:
                patterns.append(_Pattern(_BYTE_LEVEL, is_regex=True, keeps_gaps_apart=True))
        elif kind == "Split":
            ((form, pattern),) = part["pattern"].items()
            is_apart = part["behavior"] in ("Isolated", "Removed")
            patterns.append(_Pattern(pattern, is_regex=form == "Regex", keeps_gaps_apart=is_apart))
        elif kind == "Digits" and part["individual_digits"]:
            patterns.append(_Pattern(r"\p{N}", is_regex=True, keeps_gaps_apart=True))
        elif kind == "Metaspace":
            by_space, is_last = part["split"], True
        else:
            raise ValueError(kind)
    return patterns, by_space


def _ways(pattern: str) -> list[tuple[int, list[str]]]:
    """The alternatives of an expression: how many single characters each can look at, and which it repeats.

    Raises:
        ValueError: If it repeats groups, looks back, or has other elements that are not understood.
    """
    ways: list[tuple[int, list[str]]] = [(0, [])]
    depth = position = 0
    while position < len(pattern):
        part = _PART.match(pattern, position)
        if part is None:
            raise ValueError(pattern)
        position = part.end()
        depth += part.lastgroup == "open"
        depth -= part.lastgroup == "close"
        fixed, atoms = ways[-1]
        times = part["times"] or ""
        if part["either"] and not depth:
            ways.append((0, []))
        elif part["atom"] and re.search(r"[*+]|,\}", times):
            atoms.append(part["atom"])
            # `{3,}` looks at as many, and at the character after them.
            ways[-1] = (fixed + 1, atoms)
        elif part["atom"] or part["fixed"] or part["end"]:
            ways[-1] = (fixed + max(map(int, re.findall(r"\d+", times)), default=1) + len(part["fixed"] or ""), atoms)
    return ways


def _longest_match(text: str, without: Any) -> int:
    """Length of the longest match in a text, from a pre-tokenizer that returns what does not match."""
    longest = reached = 0
    for _, (start, end) in without.pre_tokenize_str(text):
        longest, reached = max(longest, start - reached), end
    return max(longest, len(text) - reached)
