"""Input and output folders of a conversion: fetch the source, lock the target, and write files atomically."""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.storage import replacing

RECORD = "conversion.json"
"""File of a target folder that says what is being converted; it marks the folder as a conversion's."""
MARK = "config.json"
"""File of a target folder that is written last."""


def fetch(model: str, revision: str | None, what: str, patterns: Sequence[str]) -> Path:
    """The local folder of a model.

    Args:
        model: A folder, or a hub id that is downloaded.
        revision: Revision on the hub.
        what: What the model is, for messages, such as `the vision tower`.
        patterns: Patterns of the names of the files to download, such as `*.json`.

    Raises:
        UserError: If there is no such folder, or the download fails.
    """
    try:
        if folder := hub.find_model(model, revision):
            return folder
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except hub.ModelUnavailable as error:
        raise _for(what, error) from error
    except Exception as error:
        if answer := hub.explain(error, model, revision):
            raise _for(what, answer) from error
        raise


def _for(what: str, error: hub.ModelUnavailable) -> UserError:
    return UserError(f"{error.problem}, for {what}; {error.remedy}")


def check_target(target: str, sources: dict[str, Path]) -> Path:
    """The folder for the result, which may be missing.

    Args:
        target: The folder.
        sources: Name → folder of each input of the conversion.

    Raises:
        UserError: If the folder is an input, or contains files that no conversion wrote.
    """
    if "://" in target:
        raise UserError(f"{target}: give a folder on this machine; copy it elsewhere when it is done")
    out = Path(target).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    for name, source in sources.items():
        if out.resolve() == source.resolve():
            raise UserError(f"{out}: is the folder of {name}, which stays as it is; give another for the result")
    if out.is_dir() and not (out / RECORD).exists() and any(file.suffix != ".part" for file in out.iterdir()):
        raise UserError(f"{out}: holds other files; give a new or empty folder")
    return out


def make_target(target: str, sources: dict[str, Path]) -> Path:
    """Create the folder for the result, if it is missing. Arguments and errors as of `check_target`."""
    out = check_target(target, sources)
    out.mkdir(parents=True, exist_ok=True)
    return out


@contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Lock the folder against a second conversion. The operating system drops the lock when the process ends.

    Raises:
        UserError: If another conversion holds the lock.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another conversion is writing here; wait for it, or give another folder") from None
        yield
    finally:
        os.close(folder)


def identity(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """What identifies a checkpoint: its folder, and name, size and time of change of the files that are read."""
    stats = [(file.name, file.stat()) for file in files]
    return {"folder": str(folder.resolve()), "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(file) as part:
        part.write_text(text)


@contextmanager
def explain_full_disk(out: Path) -> Iterator[None]:
    """Turn the error of a full disk into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC and "os error 28" not in str(error):
            raise
        raise UserError(f"{out}: the disk is full; make room and run it again, finished files are kept") from error
