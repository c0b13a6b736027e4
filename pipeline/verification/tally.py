"""Counts what was read of one kind of file, and collects the problems."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests import digests, storage, wording
from lotlip_data.manifests.artifacts import parse_json, parse_parquet
from lotlip_data.manifests.errors import UserError


@dataclass
class Tally:
    """What was read of one kind of file."""

    kind: str
    files: int = 0
    unrecorded: int = 0
    """Files without a recorded digest, of earlier releases. They were read as far as they can be checked."""
    problems: list[str] = field(default_factory=list)
    """One line per problem, with the remedy."""
    notes: list[str] = field(default_factory=list)
    """What is intact and has no effect, such as an outdated caption, with the way to renew it."""

    @contextmanager
    def reading(self, recorded: bool = True) -> Iterator[None]:
        """Count a file that the block reads. An error of the block is a problem, except errors of the storage."""
        self.files += 1
        self.unrecorded += not recorded
        try:
            yield
        except UserError as error:
            self.problems.append(str(error))

    def note_missing(self, url: str, reason: str) -> None:
        """Note a file that must exist because of other files."""
        self.files += 1
        self.problems.append(f"{url}: is missing, {reason}")

    def note_json(self, url: str) -> None:
        """Note whether a JSON object that has been read has a digest."""
        self.unrecorded += not digests.check_json(storage.read_bytes(url))

    def read_json(self, url: str, remedy: str, schema: Any = dict[str, Any]) -> None:
        """Read and count a JSON object."""
        with self.reading():
            content = self._content(url, remedy)
            parse_json(content, url, remedy, schema)
            self.unrecorded += not digests.check_json(content)

    def read_parquet(self, url: str, remedy: str, columns: Sequence[str] | None = None) -> int | None:
        """Read and count a Parquet file that has its own digest and these columns.

        Returns its number of rows; None if it is damaged.
        """
        rows = None
        with self.reading():
            content = self._content(url, remedy)
            rows = parse_parquet(content, url, remedy, columns).num_rows
            self.unrecorded += not digests.check_parquet(content)
        return rows

    def _content(self, url: str, remedy: str) -> bytes:
        try:
            return storage.read_bytes(url)
        except FileNotFoundError:
            raise UserError(f"{url}: is missing. {remedy}") from None

    def line(self) -> str:
        """The counts in one line."""
        unrecorded = f", {self.unrecorded:,} of them without a recorded sha256" if self.unrecorded else ""
        return f"{self.kind}: {wording.count(self.files, 'file')} read{unrecorded}"
