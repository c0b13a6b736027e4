"""Compares files of the dataset with their digests and uploads them, in groups.

While one group is uploaded, the next one is read. A file on this machine is uploaded from its place. One on another
storage is copied to a scratch folder first, since the Hub's upload protocol reads files more than once: two groups at
most lie there.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import Digest, DigestMismatch, HashingReader
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.progress import Progress
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.storage_retry import with_retries
from lotlip_data.manifests.wording import size
from lotlip_data.pipeline.hub.contents import StoredFile
from lotlip_data.pipeline.hub.repository import Repository, addition

GROUP_FILES, GROUP_BYTES = 64, 2 << 30
"""Files and bytes of a group at most; a larger file is a group of its own."""
READERS = 4
"""Files that are read at the same time."""
_CHUNK_BYTES = 4 << 20


class Transfer:
    """Uploads files of a run's dataset to a repository.

    Args:
        run: The run.
        repository: The repository.
        scratch: A local folder for copies of files on another storage.
        bar: Counts the files.
    """

    def __init__(self, run: Run, repository: Repository, scratch: Path, bar: Progress) -> None:
        self._run, self._repository, self._scratch, self._bar = run, repository, scratch, bar
        self._is_local = storage.is_local(run.url)
        self._bytes = 0
        self._stop = threading.Event()

    def upload(self, files: Sequence[StoredFile]) -> list[Any]:
        """Upload the files. Returns the operations of a commit that adds them.

        Raises:
            DatasetError: A file is missing or damaged. Nothing of its group is uploaded.
        """
        operations = []
        groups = list(_groups(files))
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(READERS) as readers:

            def prepare(group: list[StoredFile]) -> list[Path]:
                return list(readers.map(self._prepare, group))

            try:
                pending = [ahead.submit(prepare, group) for group in groups[:1]]
                for number, group in enumerate(groups):
                    paths = pending.pop().result()
                    pending += [ahead.submit(prepare, following) for following in groups[number + 1 : number + 2]]
                    operations += self._upload_group(group, paths)
            except BaseException:
                self._stop.set()  # the threads end before the whole of the next group is read
                raise
        return operations

    def _upload_group(self, group: Sequence[StoredFile], paths: Sequence[Path]) -> list[Any]:
        additions = [addition(file.path, path, file.digest) for file, path in zip(group, paths, strict=True)]
        self._repository.upload(additions)
        if not self._is_local:
            for path in paths:
                path.unlink()
        self._bytes += sum(file.digest.bytes for file in group)
        self._bar.note(size(self._bytes))
        self._bar.update(len(group))
        return additions

    def _prepare(self, file: StoredFile) -> Path:
        """Compare a file with its digest. Returns its path on this machine."""
        copy = None if self._is_local else self._scratch / file.path.replace("/", "_")
        try:
            _read(file.url, file.digest, copy, self._stop)
            return copy or Path(file.url)
        except FileNotFoundError:
            problem = "missing"
        except DigestMismatch as error:
            problem = f"damaged: {error}"
        raise DatasetError(
            f"{file.url}: {problem}. Nothing of it is published. `lotlip-data verify {self._run.url}` says what to do."
        )


class _Stopped(Exception):
    """The upload has failed, so no further file is needed."""


@with_retries
def _read(url: str, digest: Digest, copy: Path | None, stop: threading.Event) -> None:
    """Compare a file with its digest, and copy it where `copy` is given.

    Raises:
        DigestMismatch: It is another file.
    """
    with storage.open_read(url) as stream, copy.open("wb") if copy else contextlib.nullcontext() as target:
        reader = HashingReader(stream)
        while chunk := reader.read(_CHUNK_BYTES):
            if stop.is_set():
                raise _Stopped
            if target:
                target.write(chunk)
        digest.check(reader.read_to_end())


def _groups(files: Sequence[StoredFile]) -> Iterator[list[StoredFile]]:
    group, total = list[StoredFile](), 0
    for file in files:
        if group and (len(group) == GROUP_FILES or total + file.digest.bytes > GROUP_BYTES):
            yield group
            group, total = [], 0
        group.append(file)
        total += file.digest.bytes
    if group:
        yield group
