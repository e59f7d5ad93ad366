"""What went wrong with the Hugging Face Hub, and what to set: told from the errors that the libraries raise."""

from __future__ import annotations

from collections.abc import Iterator

LOGIN = "set HF_TOKEN (or run: hf auth login)"
_KINDS = (
    # In this order: the first of which any error of the chain shows a sign. A class stands for all derived from it.
    ("gated", ("GatedRepoError",), ("is a gated dataset",)),
    ("absent", ("RepositoryNotFoundError", "DatasetNotFoundError"), ("not a valid model identifier",)),
    ("denied", (), ("401 Client Error", "403 Client Error", "401 Unauthorized", "403 Forbidden")),
    ("broken", ("RemoteProtocolError", "ReadError", "IncompleteRead", "ChunkedEncodingError"), ("Consistency check",)),
    (
        "unreachable",
        ("TransportError", "ConnectionError", "Timeout", "LocalEntryNotFoundError", "OfflineModeIsEnabled"),
        ("couldn't connect", "connect to 'https://", "Failed to resolve", "name resolution", "offline mode"),
    ),
)


def hub_problem(error: BaseException, *, what: str) -> str | None:
    """What is wrong with a repository, and what to do, in one line; None if the error is about something else.

    Args:
        error: as a library raised it; what it was raised from, or while handling, is looked at too.
        what: the repository is: `model`, `dataset`.
    """
    kind = _kind_of(error)
    if kind in ("gated", "denied"):
        terms = f"accept its terms on the {what}'s page there, then " if kind == "gated" else ""
        but = ", and the token that is set may not read it" if _has_token() else ""
        return f"gated or private on the Hub{but}: {terms}{LOGIN}."
    if kind == "absent":
        but = ", or one that the token that is set may not read" if _has_token() else ", or a private one"
        return f"no folder here and no {what} on the Hub{but}: check the name; for a private one {LOGIN}."
    if kind == "broken":
        return "the download from the Hub broke off. Run it again."
    if kind == "unreachable" and _is_offline():
        return (
            "no folder here and not in the cache, and HF_HUB_OFFLINE=1 forbids to ask the Hub. Name a folder, or load "
            "it once without HF_HUB_OFFLINE: what is loaded is kept in HF_HOME."
        )
    if kind == "unreachable":
        return (
            "no folder here, and the Hugging Face Hub cannot be reached. Name a folder, or load it once where the Hub "
            "can be reached: what is loaded is kept in HF_HOME, and taken from there with HF_HUB_OFFLINE=1."
        )
    return None


def _kind_of(error: BaseException) -> str | None:
    found = list(_chain(error))
    for kind, classes, words in _KINDS:
        for each in found:
            names = {base.__name__ for base in type(each).__mro__}
            if names.intersection(classes) or any(word in str(each) for word in words):
                return kind
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
