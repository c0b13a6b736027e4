"""Which models `lotlip-data fetch-models` has downloaded to this machine as a whole. They need no hub.

A mark beside the hub's own files in its cache names each revision whose files are all there, and holds its commit. A
snapshot without a mark may be incomplete: a check of a model downloads its config.json alone.
"""

import re
from pathlib import Path
from urllib.parse import quote

from lotlip_data.manifests.storage import replacing

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MARKS = "lotlip-data-fetched"


def fetched_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder of a downloaded model in the hub's cache; None if it was not downloaded as a whole.

    Args:
        model: A hub id.
        revision: A commit, a branch or a tag. Default: the main branch, as it was when it was downloaded.
    """
    try:
        commit = _mark(model, revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    folder = _storage(model) / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def mark_fetched(model: str, revision: str | None, commit: str) -> None:
    """Record that all files of a commit are in the hub's cache, and that it is this revision."""
    for name in (revision, commit):
        mark = _mark(model, name)
        mark.parent.mkdir(exist_ok=True)
        with replacing(mark) as part:
            part.write_text(commit, encoding="utf-8")


def commit_of(folder: Path) -> str | None:
    """The commit whose files a folder of the hub's cache holds; None for another folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one state of a model for good. Branches and tags can move."""
    return bool(revision and _COMMIT.fullmatch(str(revision)))


def _mark(model: str, revision: str | None) -> Path:
    return _storage(model) / _MARKS / quote(str(revision or "main"), safe="")


def _storage(model: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, "models--" + model.replace("/", "--"))
