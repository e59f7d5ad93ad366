"""Pushes models to the Hugging Face Hub (`push_to_hub`). A push that fails is logged; training continues."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from sft.common.errors import ConfigError, one_line
from sft.common.hub_errors import LOGIN
from sft.common.secrets import hide

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("sft.train")
NOT_PUSHED_STATUS = 3
"""Exit status of a run that trained and saved its model, but could not push it to the Hub."""
_TRAINING_STATE = ["optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "manifest.json", "*.bin"]
"""Files of a checkpoint that do not belong to the model."""
_RUN_FILES = ["_*", "checkpoint-*", "earlier-run-*", "hang-rank-*", ".*", "training_args.bin"]
"""Files of the output folder that belong neither to the model nor to its records."""


class HubPushes:
    """Pushes checkpoints in the background during training, and the model at the end. Main process only."""

    def __init__(self, arguments: "TrainingArguments", staging_folder: Path, *, token: str | None):
        """
        Args:
            arguments: the run's arguments.
            staging_folder: holds files while they are uploaded.
            token: of the Hub; None for the one that `hf auth login` stored.
        """
        self._staging_folder = staging_folder
        self._arguments = arguments
        self._token = token
        self._output_dir = Path(str(arguments.output_dir))
        self.name = arguments.hub_model_id or self._output_dir.absolute().name
        self._jobs: list[Future[Any]] = []
        self._is_problem_logged = False
        self.repository: str | None = None
        """The repository's id on the Hub; None until the Hub was reached."""
        self.problem: str | None = None
        """The last failure; None if everything was pushed."""

    def open(self) -> bool:
        """Creates the repository unless it exists; returns whether the Hub could be reached.

        Raises:
            ConfigError: if the Hub rejects the repository.
        """
        arguments = self._arguments
        name = self.name
        try:
            created = HfApi(token=self._token).create_repo(name, private=arguments.hub_private_repo, exist_ok=True)
        except HFValidationError as error:
            raise ConfigError(f"hub_model_id: {name}: {self._reason(error)}") from error
        except LocalTokenNotFoundError as error:
            raise ConfigError(f"push_to_hub: no token was found to push {name}: {LOGIN}.") from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise ConfigError(
                    f"hub_model_id: the Hub rejected {name} ({status}): for a token with write access, {LOGIN}."
                ) from error
            if status in (400, 404):
                raise ConfigError(f"hub_model_id: the Hub rejected {name}: {self._reason(error)}") from error
            return self._record_problem(error)
        except Exception as error:  # from httpx, requests, the system: no reason not to train
            return self._record_problem(error)
        self.repository = created.repo_id
        return True

    def push_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Starts to push a checkpoint's model, or the full checkpoint, depending on `hub_strategy`."""
        arguments, strategy = self._arguments, str(getattr(self._arguments.hub_strategy, "value", "every_save"))
        if strategy == "end":
            return
        if not arguments.hub_always_push and not all(job.done() for job in self._jobs):
            return
        self.check_uploads()
        self._try(lambda: self._start_uploads(checkpoint, step, strategy))

    def _start_uploads(self, checkpoint: Path, step: int, strategy: str) -> None:
        message = f"Training in progress, step {step}"
        subfolder = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}.get(strategy)
        self._upload(self._hard_linked(checkpoint, "model"), message, ignore_patterns=_TRAINING_STATE)
        if subfolder is not None:
            self._upload(self._hard_linked(checkpoint, "all"), f"{message}, checkpoint", path_in_repo=subfolder)

    def push_model(self, write_card: Callable[[], None]) -> bool:
        """Pushes the output folder and waits for it; returns whether everything was pushed.

        Args:
            write_card: writes the model card into the output folder.
        """

        def push() -> None:
            write_card()
            self._upload(self._output_dir, "End of training", ignore_patterns=_RUN_FILES)
            self._jobs[-1].result()

        self.check_uploads(wait=True)
        self.problem = None  # this push includes everything that failed before
        is_pushed = self._try(push)
        self._jobs = []
        return is_pushed

    def check_uploads(self, *, wait: bool = False) -> None:
        """Logs the uploads that failed since the last call, and forgets the finished ones."""
        for job in [job for job in self._jobs if wait or job.done()]:
            error = job.exception()
            self._jobs.remove(job)
            if error is not None:
                self._record_problem(error)

    def _try(self, push: Callable[[], Any]) -> bool:
        """Calls `push`; returns whether it succeeded."""
        try:
            if self.repository is None and not self.open():
                return False
            push()
        except Exception as error:  # see `open`
            return self._record_problem(error)
        return True

    def _reason(self, error: BaseException, longest: int = 400) -> str:
        """The library's message, without the token, which may be part of it."""
        return hide(one_line(error, longest), [self._token] if self._token else [])

    def _record_problem(self, error: BaseException) -> bool:
        self.problem = f"{type(error).__name__}: {self._reason(error, longest=200)}"
        if not self._is_problem_logged:
            logger.info("push_to_hub: cannot push to the Hub (%s). Training continues.", self.problem)
        self._is_problem_logged = True
        return False

    def _upload(
        self,
        folder: Path,
        message: str,
        *,
        ignore_patterns: list[str] | None = None,
        path_in_repo: str | None = None,
    ) -> None:
        job = HfApi(token=self._token).upload_folder(
            repo_id=self.repository or self.name,
            folder_path=folder,
            commit_message=message,
            run_as_future=True,
            revision=self._arguments.hub_revision,
            ignore_patterns=ignore_patterns,
            path_in_repo=path_in_repo,
        )
        if folder.parent == self._staging_folder:
            job.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        self._jobs.append(job)

    def _hard_linked(self, checkpoint: Path, kind: str) -> Path:
        """A hard-linked copy of a checkpoint: it can be uploaded even if rotation deletes the original."""
        folder = self._staging_folder / f"sent-{checkpoint.name}-{kind}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoint, folder, copy_function=_link)
        return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)
