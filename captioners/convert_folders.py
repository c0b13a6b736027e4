"""Where a conversion reads from and writes to, and that nobody else is writing there."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lotlip_data.captioners.checkpoint_files import weight_files
from lotlip_data.manifests.errors import UserError

RECORD = "conversion.json"
MARK = "config.json"
_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model"]


def fetch(model: str, revision: str | None, what: str) -> Path:
    """The local folder of `what`, given as a folder or a hub id. Raises UserError if it cannot be had."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith(("~", ".")) or model.count("/") > 1:
        raise UserError(f"{model}: there is no such folder, for {what}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_PATTERNS))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"{model}: is no folder here and could not be fetched from the hub, for {what} "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def vision_tower(folder: Path, published: dict[str, Any], given: str | None, revision: str | None) -> Path:
    """The vision tower's folder: the given one, or what mm_vision_tower names, also relative to the checkpoint."""
    if given:
        return fetch(given, revision, "the vision tower")
    named = published.get("mm_vision_tower")
    if not isinstance(named, str) or not named:
        raise UserError(f"{folder / 'config.json'}: mm_vision_tower names none; give one with --vision-tower")
    if (folder / named).is_dir():
        return (folder / named).resolve()
    try:
        return fetch(named, revision, "the vision tower that mm_vision_tower names")
    except UserError as error:
        raise UserError(f"{error}; fetch it, and give its folder with --vision-tower") from error


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


def identity(folder: Path) -> dict[str, Any]:
    """What tells a checkpoint from others: its folder, and name, size and time of its config and weight files."""
    files = [folder / "config.json", *weight_files(folder)]
    return {"folder": str(folder.resolve()), "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]}


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.rename(file)
