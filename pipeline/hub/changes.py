"""Compares what a repository holds with what it is to hold, and cuts the changes into commits."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lotlip_data.manifests import storage
from lotlip_data.pipeline.hub.contents import Contents, StoredFile
from lotlip_data.pipeline.hub.layout import is_shard

PROGRESS = "progress.json"
"""The progress of the run for a badge, which the dataset replaces."""
FILES_PER_COMMIT = 500
"""New files of a commit at most. The Hub ends requests that take longer than a minute, and allows some hundred commits
per hour."""


class RemoteFile(Protocol):
    """A file of a repository, as huggingface_hub describes it."""

    size: int
    blob_id: str
    """The id of its content, or of its LFS pointer, in git."""

    @property
    def lfs(self) -> "RemoteLfs | None":
        """Size and sha256 of a large file."""


class RemoteLfs(Protocol):
    """A large file of a repository."""

    sha256: str


@dataclass(frozen=True)
class Changes:
    """What to change in a repository."""

    new: list[StoredFile]
    """Files at paths that the repository lacks. No card or index names them yet, so they can be added before it."""
    replaced: list[StoredFile]
    """Files that have another content there."""
    deleted: list[str]
    """Paths of shards of an earlier dataset, and of the progress of the run."""
    documents: dict[str, bytes]

    def __bool__(self) -> bool:
        return bool(self.new or self.replaced or self.deleted or self.documents)

    @property
    def uploads(self) -> list[StoredFile]:
        return [*self.new, *self.replaced]

    @property
    def bytes(self) -> int:
        """The size of all files to upload."""
        return sum(file.digest.bytes for file in self.uploads) + sum(map(len, self.documents.values()))

    def commits(self) -> Iterator["Changes"]:
        """The changes as commits: new files, then all that readers see with the rest of the new files."""
        for start in range(0, len(self.new) - FILES_PER_COMMIT, FILES_PER_COMMIT):
            yield Changes(self.new[start : start + FILES_PER_COMMIT], [], [], {})
        rest = len(self.new) % FILES_PER_COMMIT or FILES_PER_COMMIT
        yield Changes(self.new[-rest:], self.replaced, self.deleted, self.documents)


def compare(contents: Contents, remote: Mapping[str, RemoteFile]) -> Changes:
    """The changes that make a repository hold `contents`. Files that are not of a dataset stay.

    Args:
        contents: What it is to hold.
        remote: The files that it holds, by path.
    """
    changed = [file for path, file in contents.shards.items() if not _has(remote.get(path), file)]
    return Changes(
        new=[file for file in changed if file.path not in remote],
        replaced=[file for file in changed if file.path in remote],
        deleted=sorted(path for path in remote if path == PROGRESS or (is_shard(path) and path not in contents.shards)),
        documents={path: data for path, data in contents.documents.items() if not _has_bytes(remote.get(path), data)},
    )


def _has(remote: RemoteFile | None, file: StoredFile) -> bool:
    if remote is None or remote.size != file.digest.bytes:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == file.digest.sha256
    # It has at most 10 MB: the Hub stores others as large files.
    return remote.blob_id == _git_id(storage.read_bytes(file.url))


def _has_bytes(remote: RemoteFile | None, data: bytes) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return remote.blob_id == _git_id(data)


def _git_id(data: bytes) -> str:
    """The id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def names(paths: Sequence[str], shown: int) -> str:
    """The first paths, and how many others there are."""
    others = len(paths) - shown
    return ", ".join(paths[:shown]) + (f" and {others:,} more" if others > 0 else "")
