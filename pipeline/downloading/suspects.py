"""The images of a shard that are being decoded and take much memory, named in the run's storage.

A name that is left was in use when the process of its attempt died.
"""

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run, shard_name


class ShardSuspects:
    """What `images.isolation.Suspects` describes, for one attempt at a shard. Names what it decodes in the storage."""

    def __init__(self, run: Run, shard: int) -> None:
        self._folder, self._prefix = run.image_suspects, f"{shard_name(shard)}-"
        self._deaths = Counter(name.split("-")[1] for name in self._names())

    def deaths(self, sha256: str) -> int:
        """Number of earlier attempts that died while they decoded the image."""
        return self._deaths[sha256]

    @contextlib.contextmanager
    def decoding(self, sha256: str) -> Iterator[None]:
        """Name the image in the storage while the block runs."""
        url = storage.join(self._folder, f"{self._prefix}{sha256}-{uuid.uuid4().hex[:12]}")
        storage.create(url, b"")
        try:
            yield
        finally:
            storage.remove(url)

    def clear(self) -> None:
        """Remove the names that dead attempts left. Call it once the shard is committed."""
        for name in self._names() if self._deaths else ():
            storage.remove(storage.join(self._folder, name))

    def _names(self) -> list[str]:
        return [name for name in storage.list_names(self._folder) if name.startswith(self._prefix)]
