"""Uploads an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from sft.common.errors import ConfigError, ModelError, one_line

_UNREACHABLE: tuple[type[Exception], ...] = (
    OfflineModeIsEnabled,
    OSError,
    *(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)),
)
"""Errors of a Hub that cannot be reached; `HTTPError` is the base class in the HTTP library of huggingface_hub."""


def check_repository(name: str) -> None:
    """Check the name of a repository before the export starts.

    Raises:
        ConfigError: if it is invalid.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(
            f"command line: --push_to_hub: {name!r} is not a valid repository name; use OWNER/NAME."
        ) from None


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder; the repository is created if it does not exist. Returns its URL.

    Raises:
        ModelError: if the upload fails; the folder is kept.
    """
    api, kept = HfApi(), f"{folder} was exported, but could not be uploaded to {repository}"
    then = f"Then run: hf upload {repository} {folder}"
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Fine-tuned model")
        return str(url)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ModelError(
                f"{kept}: the Hub denied access (HTTP {status}). Set HF_TOKEN to a token with write access, or run "
                f"`hf auth login`. {then}"
            ) from error
        raise ModelError(f"{kept}: {one_line(error)}. {then}") from error
    except LocalTokenNotFoundError as error:
        raise ModelError(f"{kept}: no token was found. Set HF_TOKEN, or run `hf auth login`. {then}") from error
    except _UNREACHABLE as error:
        raise ModelError(f"{kept}: the Hub cannot be reached ({one_line(error, 160)}). {then}") from error
