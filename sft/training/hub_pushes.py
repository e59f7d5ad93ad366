"""Models sent to the Hugging Face Hub (`push_to_hub`). What cannot be sent is told, and training goes on."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.common.errors import ConfigError, one_line
from sft.common.hub_errors import LOGIN

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("sft.train")
NOT_SENT_STATUS = 3
"""The exit status of a run that is trained and saved, but did not reach the Hub as it was asked to."""
_OF_TRAINING = ["optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "manifest.json", "*.bin"]
"""What a checkpoint holds beside the model."""
_OF_RUN = ["_*", "checkpoint-*", "earlier-run-*", "hang-rank-*", ".*", "training_args.bin"]
"""What the output folder holds beside the model and its records."""


class HubPushes:
    """Sends checkpoints while training goes on, and the model at its end. On the main process alone."""

    def __init__(self, arguments: "TrainingArguments", aside: Path):
        """Args:
        arguments: of the run.
        aside: a folder for what is being sent.
        """
        self._aside = aside
        self._arguments = arguments
        self.name = arguments.hub_model_id or Path(arguments.output_dir).absolute().name
        self._jobs: list[Future] = []
        self._is_told = False
        self.repository: str | None = None
        """On the Hub; None until it could be reached."""
        self.problem: str | None = None
        """Why something was not sent, the last one; None where all was."""

    def open(self) -> bool:
        """Makes the repository, or finds it there; returns whether the Hub could be reached.

        Raises:
            ConfigError: if the Hub refuses it.
        """
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

        arguments = self._arguments
        name = self.name
        try:
            made = _hub(arguments).create_repo(name, private=arguments.hub_private_repo, exist_ok=True)
        except HFValidationError as error:
            raise ConfigError(f"hub_model_id: {name}: {one_line(error)}") from error
        except LocalTokenNotFoundError as error:
            raise ConfigError(f"push_to_hub: there is no token to send {name} with: {LOGIN}.") from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise ConfigError(
                    f"hub_model_id: {name} is refused by the Hub ({status}): for a token that may write there, {LOGIN}."
                ) from error
            if status in (400, 404):
                raise ConfigError(f"hub_model_id: {name} is refused by the Hub: {one_line(error)}") from error
            return self._note(error)
        except Exception as error:  # of httpx, requests, the system: none of it is a reason not to train
            return self._note(error)
        self.repository = made.repo_id
        return True

    def send_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Begins to send a checkpoint's model, or all of it, as `hub_strategy` says."""
        arguments, strategy = self._arguments, str(getattr(self._arguments.hub_strategy, "value", "every_save"))
        if strategy == "end":
            return
        if not arguments.hub_always_push and not all(job.done() for job in self._jobs):
            return
        self.look()
        self._try(lambda: self._begin(checkpoint, step, strategy))

    def _begin(self, checkpoint: Path, step: int, strategy: str) -> None:
        message = f"Training in progress, step {step}"
        where = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}.get(strategy)
        self._upload(self._linked(checkpoint, "model"), message, ignore_patterns=_OF_TRAINING)
        if where is not None:
            self._upload(self._linked(checkpoint, "all"), f"{message}, checkpoint", path_in_repo=where)

    def send_model(self, write_card: Callable[[], None]) -> bool:
        """Sends what lies in the output folder, and waits for it; returns whether all of it arrived.

        Args:
            write_card: writes the model card there.
        """

        def send() -> None:
            write_card()
            self._upload(Path(self._arguments.output_dir), "End of training", ignore_patterns=_OF_RUN)
            self._jobs[-1].result()

        self.look(wait=True)
        self.problem = None  # what is sent now is all there is to send
        is_sent = self._try(send)
        self._jobs = []
        return is_sent

    def look(self, *, wait: bool = False) -> None:
        """Tells of what could not be sent since the last look, and forgets what could."""
        for job in [job for job in self._jobs if wait or job.done()]:
            error = job.exception()
            self._jobs.remove(job)
            if error is not None:
                self._note(error)

    def _try(self, send: Callable[[], Any]) -> bool:
        """Whether something could be sent."""
        try:
            if self.repository is None and not self.open():
                return False
            send()
        except Exception as error:  # see `open`
            return self._note(error)
        return True

    def _note(self, error: BaseException) -> bool:
        self.problem = f"{type(error).__name__}: {one_line(error, longest=200)}"
        if not self._is_told:
            logger.info("push_to_hub: the Hub cannot be reached, or does not take it (%s). Training goes on.",
                        self.problem)  # fmt: skip
        self._is_told = True
        return False

    def _upload(self, folder: Path, message: str, **options: Any) -> None:
        job = _hub(self._arguments).upload_folder(
            repo_id=self.repository, folder_path=folder, commit_message=message, run_as_future=True,
            revision=self._arguments.hub_revision, **options,
        )  # fmt: skip
        if folder.parent == self._aside:
            job.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        self._jobs.append(job)

    def _linked(self, checkpoint: Path, what: str) -> Path:
        """A checkpoint's files by other names that stay while they are sent, also when the checkpoint is deleted."""
        folder = self._aside / f"sent-{checkpoint.name}-{what}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoint, folder, copy_function=_link)
        return folder


def _hub(arguments: "TrainingArguments") -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=arguments.hub_token)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without them
        shutil.copy2(source, target)
