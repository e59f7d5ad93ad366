"""An exported folder, uploaded to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from sft.common.errors import ConfigError, ModelError, one_line


def check_repository(name: str) -> None:
    """Refuses what cannot be a repository's name, before anything takes long.

    Raises:
        ConfigError: if it cannot be one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(
            f"command line: --push_to_hub: {name!r} is no name of a repository; write OWNER/NAME."
        ) from None


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder, into a repository that is made where there is none; returns its address.

    Raises:
        ModelError: if it cannot; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api, kept = HfApi(), f"{folder} is written, but could not be uploaded to {repository}"
    then = f"Then: hf upload {repository} {folder}"
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Fine-tuned model")
        return str(address)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ModelError(
                f"{kept}: the Hub does not let you (HTTP {status}). Set HF_TOKEN to a token that may write there, "
                f"or run `hf auth login`. {then}"
            ) from error
        raise ModelError(f"{kept}: {one_line(error)}. Mend that. {then}") from error
    except LocalTokenNotFoundError as error:
        raise ModelError(f"{kept}: there is no token. Set HF_TOKEN, or run `hf auth login`. {then}") from error
    except (OfflineModeIsEnabled, *_transport_errors(HfHubHTTPError), OSError) as error:
        raise ModelError(
            f"{kept}: the Hub cannot be reached ({one_line(error, 160)}). Go where it can be. {then}"
        ) from error


def _transport_errors(kind: type) -> list[type]:
    """What the HTTP library under huggingface_hub raises, whichever it is: the base of its own errors is among it."""
    return [base for base in kind.__mro__ if base.__name__ == "HTTPError"]
