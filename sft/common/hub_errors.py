"""Explanations of errors with the Hugging Face Hub, recognized by the exceptions that the libraries raise."""

from __future__ import annotations

from collections.abc import Iterator

LOGIN = "set HF_TOKEN (or run: hf auth login)"
_KINDS = (
    # (kind, names of exception classes or their bases, parts of messages). The first match in the chain counts.
    ("gated", ("GatedRepoError",), ("is a gated dataset",)),
    ("no revision", ("RevisionNotFoundError",), ("is not a valid git identifier", "doesn't exist for dataset")),
    ("absent", ("RepositoryNotFoundError", "DatasetNotFoundError"), ("not a valid model identifier",)),
    ("denied", (), ("401 Client Error", "403 Client Error", "401 Unauthorized", "403 Forbidden")),
    ("broken", ("RemoteProtocolError", "ReadError", "IncompleteRead", "ChunkedEncodingError"), ("Consistency check",)),
    (
        "unreachable",
        ("TransportError", "ConnectionError", "Timeout", "LocalEntryNotFoundError", "OfflineModeIsEnabled"),
        ("couldn't connect", "connect to 'https://", "Failed to resolve", "name resolution", "offline mode"),
    ),
)


def hub_problem(error: BaseException, *, what: str, has_token: bool, is_offline: bool) -> str | None:
    """Explain in one line why a Hub repository cannot be loaded, and what to do.

    Args:
        error: exception of a library. Its causes and contexts are examined too.
        what: kind of repository: `model` or `dataset`.
        has_token: whether a Hub token is configured.
        is_offline: whether `HF_HUB_OFFLINE` is set.

    Returns:
        The explanation, which continues `name: `; None if the error has nothing to do with the Hub.
    """
    kind = _kind_of(error)
    if kind in ("gated", "denied"):
        terms = f"accept the terms on the {what}'s page, then " if kind == "gated" else ""
        but = ", and the configured token has no access" if has_token else ""
        return f"gated or private on the Hub{but}: {terms}{LOGIN}."
    if kind == "absent":
        but = ", or the configured token has no access to it" if has_token else ", or it is private"
        return f"no such folder, and no such {what} on the Hub{but}: check the name; if it is private, {LOGIN}."
    if kind == "no revision":
        return f"this {what} has no such revision on the Hub: name a branch, a tag or a commit of it."
    if kind == "broken":
        return "the download from the Hub was interrupted. Run the command again."
    if kind == "unreachable" and is_offline:
        return (
            "no such folder, and not in the cache; HF_HUB_OFFLINE=1 disables access to the Hub. Give a local folder, "
            "or load it once without HF_HUB_OFFLINE, which caches it in HF_HOME."
        )
    if kind == "unreachable":
        return (
            "no such folder, and the Hugging Face Hub cannot be reached. Give a local folder, or load it once with "
            "access to the Hub, which caches it in HF_HOME; HF_HUB_OFFLINE=1 then uses the cache."
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
