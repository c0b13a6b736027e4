"""Where a conversion reads from and writes to, and that nobody else is writing there."""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.storage import replacing

RECORD = "conversion.json"
MARK = "config.json"


def fetch(model: str, revision: str | None, what: str, patterns: Sequence[str]) -> Path:
    """The local folder of `what`, given as a folder or a hub id. Raises UserError if it cannot be had.

    patterns: of the names of the files that are fetched from the hub, such as `*.json`.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith(("~", ".")) or model.count("/") > 1:
        raise UserError(f"{model}: there is no such folder, for {what}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"{model}: is no folder here and could not be fetched from the hub, for {what} "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def make_target(target: str, sources: dict[str, Path]) -> Path:
    """The folder for the result, made if missing. sources: what each folder that is read from holds.

    Raises UserError for one that holds anything but a conversion.
    """
    if "://" in target:
        raise UserError(f"{target}: give a folder on this machine; copy it elsewhere when it is done")
    out = Path(target).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    for what, used in sources.items():
        if out.resolve() == used.resolve():
            raise UserError(f"{out}: is the folder of {what}, which stays as it is; give another for the result")
    if out.is_dir() and not (out / RECORD).exists() and any(file.suffix != ".part" for file in out.iterdir()):
        raise UserError(f"{out}: holds other files; give a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps a second conversion out of the folder. The lock goes with its process, however that ends."""
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
    """What tells a checkpoint from others: its folder, and name, size and time of the files that are read."""
    return {"folder": str(folder.resolve()), "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]}


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    with replacing(file) as part:
        part.write_text(text)


@contextmanager
def disk_full_explained(out: Path) -> Iterator[None]:
    """Turns a full disk into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC and "os error 28" not in str(error):
            raise
        raise UserError(f"{out}: the disk is full; make room and run it again, finished files are kept") from error
