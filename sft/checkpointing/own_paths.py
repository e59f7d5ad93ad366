"""Whether a run may write where its files will be."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sft.checkpointing.checkpoints import OWN_FILES
from sft.checkpointing.output_lock import LOCK_FILE
from sft.checkpointing.publish import UNFINISHED
from sft.common.errors import ConfigError
from sft.common.files import refuse_link

DRY_RUN_FILE = "preflight.json"
_MODEL_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.bin")
"""Of the final model, which replaces links; patterns."""


def check_own_paths(output_dir: str | Path, folders: Sequence[str] = ()) -> None:
    """Refuse an output folder in which a file or folder of a run is a symbolic link, or of another kind.

    The output folder itself may be a link, and so may its checkpoints.

    Args:
        output_dir: the folder.
        folders: names of folders in it, besides that of unfinished checkpoints.

    Raises:
        ConfigError: naming the path.
    """
    output = Path(output_dir)
    patterns = (LOCK_FILE, DRY_RUN_FILE, *OWN_FILES)
    present = sorted(output.iterdir()) if output.is_dir() else []  # `glob` finds no link to nowhere
    for path in (path for path in present if any(fnmatchcase(path.name, pattern) for pattern in patterns)):
        refuse_link(path)
        if not path.is_file():
            raise ConfigError(f"{path}: a run writes a file of this name, but this is not a file. Remove or rename it.")
    for path in (path for path in present if any(fnmatchcase(path.name, pattern) for pattern in _MODEL_FILES)):
        if path.is_dir() and not path.is_symlink():
            raise ConfigError(f"{path}: the model has a file of this name, but this is a folder. Remove or rename it.")
    for path in (output / name for name in (UNFINISHED, *folders)):
        refuse_link(path)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: a run needs a folder of this name, but this is a file. Remove or rename it.")
