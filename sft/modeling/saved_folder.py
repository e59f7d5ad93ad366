"""Finishes a saved folder so that other programs read it as this one does: transformers 4, MLX, llama.cpp, CTranslate2.

transformers 5 moved entries of `config.json` and `tokenizer_config.json` to new names. The earlier names are written
beside them, unless transformers 5 itself would then read something else.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from sft.common.files import write_text

_MOVED = ("rope_theta", "partial_rotary_factor")
"""Entries of `rope_parameters` that were entries of the configuration itself."""
_EARLIER_NAMES = {"rope_theta": ("rotary_emb_base",), "partial_rotary_factor": ("rotary_pct",)}
"""Further names of the same entries; written where the architecture's class reads them."""
_EARLIER_ROPE_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")
_PIECES = "tokenizer.model"
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_NEW_TOKENIZER_CLASS, _TOKENIZER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""The class of a tokenizer that is only its `tokenizer.json`, in transformers 5 and in all versions."""


def finish_saved_folder(folder: str | Path, tokenizer: Any) -> None:
    """Make the files of a model, adapters or tokenizer readable for other programs; call it after every save.

    Args:
        folder: as `save_pretrained` wrote it. Files that it lacks are skipped.
        tokenizer: the one that was saved. Its SentencePiece file, if it was loaded from one, is copied: llama.cpp reads
            the scores of its pieces, which `tokenizer.json` lacks.
    """
    pieces, copied = getattr(tokenizer, "vocab_file", None), Path(folder, _PIECES)
    if pieces is not None and Path(pieces).name == _PIECES and Path(pieces).is_file() and not copied.exists():
        shutil.copyfile(pieces, copied)
    more: dict[str, Any] = {}
    if added := added_tokens(Path(folder, "tokenizer.json")):
        more["added_tokens_decoder"] = added
    if copied.is_file() and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        more["add_bos_token"] = False  # otherwise programs that read pieces begin texts with one

    def with_tokenizer(entries: Mapping[str, Any]) -> dict[str, Any]:
        return with_earlier_tokenizer({**more, **entries})

    for name, change in (("config.json", with_earlier_names), ("tokenizer_config.json", with_tokenizer)):
        path = Path(folder, name)
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            after = change(before)
            if after != before:
                write_text(path, json.dumps(after, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def added_tokens(path: Path) -> dict[str, Any]:
    """The tokens that a `tokenizer.json` adds to its vocabulary, by their ids; none if there is no such file."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    return {str(token["id"]): {name: token[name] for name in token if name != "id"} for token in found}


def with_earlier_tokenizer(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration with the class and the list of special tokens that transformers 4 knows as well."""
    changed = dict(entries)
    if changed.get("tokenizer_class") == _NEW_TOKENIZER_CLASS:
        changed["tokenizer_class"] = _TOKENIZER_CLASS
    if isinstance(changed.get("extra_special_tokens"), list):  # transformers 4 expects a mapping of that name
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed


def with_earlier_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration, and those nested in it, with the earlier names of its rotary position embeddings."""
    changed = {
        name: with_earlier_names(value) if isinstance(value, Mapping) and name.endswith("_config") else value
        for name, value in config.items()
    }
    parameters = changed.get("rope_parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        return changed
    for entries in _earlier_entries(changed, parameters):
        added = {name: value for name, value in entries.items() if name not in changed}
        if _is_read_alike(changed, {**changed, **added}):
            changed |= added
    return changed


def _earlier_entries(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What earlier versions called the parameters: groups of entries, each to be added as a whole."""
    is_nested = all(isinstance(value, Mapping) for value in parameters.values())
    main = parameters.get(_GLOBAL) if is_nested else parameters
    if not main:
        return []
    groups = [{name: main[name]} for name in _MOVED if main.get(name) is not None]
    groups += [
        {name: main[new]} for new, names in _EARLIER_NAMES.items() for name in names if _is_read(config, name, new)
    ]
    local = parameters.get(_LOCAL) if is_nested else None
    if local and local.get("rope_theta") is not None:
        groups.append({"rope_local_base_freq": local["rope_theta"]})
    scaling = {name: value for name, value in main.items() if name not in _MOVED}
    if main.get("rope_type") == "longrope" and "original_max_position_embeddings" in config:
        # Its form before transformers 5 has three entries: the rest stood beside it.
        scaling = {"type": "longrope", **{name: main[name] for name in ("short_factor", "long_factor")}}
    if main.get("rope_type") in _EARLIER_ROPE_TYPES:
        groups.append({"rope_scaling": scaling})
    return groups


def _is_read(config: Mapping[str, Any], name: str, as_name: str) -> bool:
    """Whether the architecture's class takes an entry of a name for an entry `as_name` of `rope_parameters`."""
    value = 0.125 if as_name == "partial_rotary_factor" else 12345.0
    others = {key: item for key, item in config.items() if key not in ("rope_parameters", *_MOVED)}
    return (_rope_parameters({**others, name: value}) or {}).get(as_name) == value


def _is_read_alike(config: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    before = _rope_parameters(config)
    if before is None:  # the architecture's own code reads it
        return changed.keys() - config.keys() <= set(_MOVED)
    return before == _rope_parameters(changed)


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the installed transformers reads; None if it does not know the architecture, or rejects the entries."""
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return None
    try:
        found = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(config))).rope_parameters or {}
    except Exception:  # of any class, depending on the architecture: these entries are not added
        return None
    return {
        name: {key: item for key, item in value.items() if key != "type"} if isinstance(value, Mapping) else value
        for name, value in found.items()
        if name != "type"  # the earlier name of `rope_type`
    }
