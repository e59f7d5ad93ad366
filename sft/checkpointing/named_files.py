"""Only the files that a checkpoint's manifest names are read: others may have been put there by anyone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sft.checkpointing.manifest import MANIFEST_FILE, read_manifest
from sft.common.text import first_of

logger = logging.getLogger("sft.train")
_MOST_SHOWN = 5


@contextmanager
def named_files_of(checkpoint: Path) -> Iterator[Path]:
    """A folder with exactly the files that the manifest names, for a library that reads whatever it finds.

    It is the checkpoint itself if there are no others, else a temporary folder of links, with a line in the log.

    Args:
        checkpoint: one in which `find_damage` found nothing.
    """
    named = read_manifest(checkpoint)["files"]
    found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if not path.is_dir()}
    others = sorted(found - named.keys() - {MANIFEST_FILE})
    if not others:
        yield checkpoint
        return
    shown = first_of(others[:_MOST_SHOWN], len(others))
    logger.info("%s: files that %s does not list are not read: %s.", checkpoint, MANIFEST_FILE, shown)
    with linked_files(checkpoint, [*named, MANIFEST_FILE]) as view:
        yield view


@contextmanager
def linked_files(checkpoint: Path, names: Iterable[str]) -> Iterator[Path]:
    """A temporary folder of links to these files of a checkpoint, under its name.

    Args:
        checkpoint: a folder.
        names: paths of files inside it.
    """
    with TemporaryDirectory(prefix="named-files-") as folder:
        view = Path(folder, checkpoint.name)
        for name in names:
            (view / name).parent.mkdir(parents=True, exist_ok=True)
            (view / name).symlink_to((checkpoint / name).absolute())
        yield view
