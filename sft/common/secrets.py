"""Secrets: which names hold one, which values of the input are one, and texts and values without them.

A message may quote any part of its input: what a name like `hub_token` or `api_key` holds is collected from the input
first (`secrets_in_arguments`, `secrets_in_text`), then masked wherever it appears (`hide`). Passwords in addresses and
tokens of well-known form are masked in any text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

HIDDEN = "***"
"""Shown instead of a secret."""
SHOWN_CHARACTERS = 57
"""Characters that a message shows of a long value."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRETS = set(
    "password passwords passwd passphrase pwd secret secrets credential credentials authorization bearer sig signature "
    "apikey apikeys apitoken accesskey secretkey privatekey".split()
)
_KEYS_OF = set("api access private secret auth account wandb hub hf comet encryption".split())
_TOKENS_OF = _KEYS_OF | set("huggingface github refresh session".split())
"""Words before `key`, and beside the plural `tokens`, which otherwise counts tokens of a text."""
_OF_TEXT = set(
    "add added audio begin bos cls decoder end eos first image input last mask max min new next num pad per prefix sep "
    "special start stop sub suffix think unk video vocab id ids type types count classifier budget".split()
)
"""Words beside a `token` of a text."""
_PAIR = re.compile(
    r"([A-Za-z][\w.-]{0,80})[\"']?[ \t]*[:=]"
    r"(?=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|'([^']*)'|([^\s,}\]{\[][^\n,}\]]*)))"
)
_BLOCK = re.compile(
    r"^([ ]*)(?:- )?[\"']?([A-Za-z][\w.-]{0,80})[\"']?[ ]*:[ ]*(?:[|>][\d+-]*)?[ ]*\n(?=((?:\1[ ]+\S.*(?:\n|$))+))",
    re.MULTILINE,
)
"""`name: value` and `name=value`; a name in YAML with its value on the lines below."""
_COMMENT_LINE = re.compile(r"^\s*#.*$", re.M)
_USER = re.compile(  # of a path, one slash is left
    r"(:/{1,2})(?:[^/\s?#'\"@:]+:(?!\d+[/?#])[^\s'\"]{1,256}|[^/\s?#'\"]+)(?=@)"
)
_REMOTE_USER = re.compile(r"(?<![\w.%+/:@-])(?!mailto:)[\w.%+-]+:(?!/)[^\s'\"]{1,256}(?=@[\w\[])")
"""`user:password@host:path`, without a scheme."""
_QUERY = re.compile(r"([?&]([\w.-]+)=)([^&\s#'\"]+)")
_KNOWN_FORMS = re.compile(
    r"\bhf_(?=\w*[a-z])(?=\w*[A-Z])[A-Za-z0-9]{10,}|\b(?:hf_|gh[pousr]_|sk-|sk-proj-|wandb_v1_)[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bAKIA[0-9A-Z]{16}\b"
)
_HEADER = re.compile(r"(\bBearer\s+|[Aa]uthorization\W{1,6}\w+\s+)[\w.~+/=-]{6,}")
_NO_SECRETS = {"true", "false", "null", "none", "yes", "no", "on", "off", "auto", ""}


@lru_cache(maxsize=4096)  # every line of the log asks for each environment variable
def looks_secret(name: str) -> bool:
    """Whether a name is one of a secret: `hub_token`, `WANDB_API_KEY`, `dbPassword`; not `eos_token`, `num_tokens`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if _SECRETS.intersection(words) or any(word.endswith(("apikey", "password", "secret")) for word in words):
        return True
    before = {word for first, word in zip(words[1:], words, strict=False) if first in ("key", "keys")}
    if before & _KEYS_OF or ("tokens" in words and _TOKENS_OF.intersection(words)):
        return True
    tokens = [word for word in words if word.endswith("token")]
    return bool(tokens) and not _OF_TEXT.intersection([*words, *(word.removesuffix("token") for word in tokens)])


def secrets_in_arguments(arguments: Sequence[str]) -> set[str]:
    """The values of secret options on a command line, given as `--name value`, `--name=value` or without dashes."""
    found: set[str] = set()
    is_secret = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--") or (not is_secret and looks_secret(name)):
            is_secret = looks_secret(name)
            found.update([value] if is_secret and equals else [])
        elif is_secret:
            found.add(argument)
        found |= secrets_in_text(argument)
    return found


def secrets_in_text(text: str) -> set[str]:
    """The values of `name: value` and `name=value` with a secret name, also in YAML that cannot be parsed."""
    found: set[str] = set()
    text = _COMMENT_LINE.sub("", text)
    for name, *values in _PAIR.findall(text):
        value = next(filter(None, values), "").partition(" #")[0].strip(": ")
        if looks_secret(name):
            first = value.partition(" ")[0]  # YAML reads an alias, an anchor or a tag up to the first space
            found |= {value, first, first.strip(":"), first.lstrip("*&!%@`|>")}
    for _, name, lines in _BLOCK.findall(text):
        if looks_secret(name):
            found |= {line.strip().removeprefix("- ").strip("\"'") for line in lines.splitlines()}
    return found


def hide(text: str, known: Collection[str] = ()) -> str:
    """The text with every secret masked: those known, credentials in addresses and headers, tokens by their form."""
    for secret in sorted(_forms(known), key=len, reverse=True):
        if len(secret) >= 8:
            text = text.replace(secret, HIDDEN)
        elif len(secret) >= 4:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", lambda _: HIDDEN, text)
        else:  # shorter ones only in quotes: they may be part of anything
            text = text.replace(f"'{secret}'", f"'{HIDDEN}'").replace(f'"{secret}"', f'"{HIDDEN}"')
    return _HEADER.sub(rf"\1{HIDDEN}", hide_addresses(text))


def hide_addresses(text: str) -> str:
    """The text with credentials in addresses and tokens of well-known form masked."""
    text = _QUERY.sub(lambda found: f"{found[1]}{HIDDEN if looks_secret(found[2]) else found[3]}", text)
    return _KNOWN_FORMS.sub(HIDDEN, _REMOTE_USER.sub(HIDDEN, _USER.sub(rf"\1{HIDDEN}", text)))


def hide_value(text: str) -> str:
    """A value as text, such as `a=1,api_key=x`, with what its secret names hold masked."""
    return hide(text, secrets_in_text(text))


def without_secrets(value: Any) -> Any:
    """Nested mappings and lists with every secret masked, by the names of their keys and inside their texts."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_hidden(str(key), item) else without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return hide_value(value) if isinstance(value, str) else value


def _is_hidden(name: str, value: Any) -> bool:
    return looks_secret(name) and value is not None and not isinstance(value, bool)


def _forms(known: Collection[str]) -> set[str]:
    """The secrets as messages may show them: stripped, quoted, on one line, shortened."""
    secrets = {form for secret in known for form in (secret, secret.strip(), " ".join(secret.split()))}
    secrets |= {secret[:SHOWN_CHARACTERS] for secret in secrets}
    secrets |= {form for secret in secrets for form in (repr(secret)[1:-1], json.dumps(secret)[1:-1])}
    return {secret for secret in secrets if secret.lower() not in _NO_SECRETS}
