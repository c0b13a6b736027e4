"""The folder of an export: which files in it are committed, of what they were made, and which may be replaced.

OUT/
  00000.parquet                           the captions of image shard 0; the ending is the format's
  export-parquet.json                     the index, written when every shard is exported: bytes and sha256 of each file
  .export/parquet/claim.json              the run whose export this is
  .export/parquet/00000-FINGERPRINT.json  the record of shard 0, created last: its file with sha256, bytes and counts

A folder is claimed for one run and format before anything is written to it, and never while it has files of such names.
So every file of such a name is of this export, and can be replaced when its captions change. Its record goes first: a
file without a record is exported again.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import FileRecord
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.dataset.writer import is_there, record_of

_RECORD = re.compile(r"(\d{5,})-([0-9a-f]{12})\.json")


class _Claim(TypedDict):
    run: str
    format: str


@dataclass(frozen=True)
class ExportRecord:
    """The content of the record of one shard."""

    shard: int
    fingerprint: str
    """Identifies everything that the file is made of."""
    rows: int
    texts: dict[str, int]
    """Rows with a text, by captioner."""
    left_out: dict[str, dict[str, int]]
    """Texts that exist and are left out, by captioner or `raw`, and by reason."""
    file: FileRecord | None
    """None if the shard has no image."""


@dataclass(frozen=True)
class ExportFolder:
    """The folder that one format of one run is exported to."""

    url: str
    format: str
    ending: str
    """The ending of the files, without a dot."""
    rivals: tuple[str, ...] = ()
    """The other formats whose files have the same names."""

    def name(self, shard: int) -> str:
        return f"{shard_name(shard)}.{self.ending}"

    def file(self, shard: int) -> str:
        """The URL of a shard's file."""
        return storage.join(self.url, self.name(shard))

    @property
    def index(self) -> str:
        return storage.join(self.url, f"export-{self.format}.json")

    @property
    def _records(self) -> str:
        return storage.join(self.url, ".export", self.format)

    def _claim(self, file_format: str) -> str:
        return storage.join(self.url, ".export", file_format, "claim.json")

    def _record(self, shard: int, fingerprint: str) -> str:
        return storage.join(self._records, f"{shard_name(shard)}-{fingerprint}.json")

    def claim(self, run: Run) -> None:
        """Make the folder that of this run's export.

        Raises:
            UserError: It is a file, a folder of the run, or has files or an export of something else.
        """
        owned = [run.lists, run.images, run.captions, run.shards, run.clean(), run.quarantine(), run.trainings]
        owned += [run.evaluations, run.logs, run.features()]
        out = _resolved(self.url)
        if out == _resolved(run.url) or any(f"{out}/".startswith(f"{_resolved(folder)}/") for folder in owned):
            raise UserError(f"{self.url}: is a folder of the run itself; name another one with --out")
        if storage.kind(self.url) not in (None, "directory"):
            raise UserError(f"{self.url}: is a file; name a folder with --out")
        url = self._claim(self.format)
        is_new = not storage.exists(url)
        if is_new and (taken := self._files()):
            raise UserError(
                f"{storage.join(self.url, min(taken))}: exists, and no export of {run.url} as {self.format} made "
                "it. Name another folder with --out."
            )
        for rival in self.rivals:  # it may have no file yet
            if storage.exists(self._claim(rival)):
                raise UserError(
                    f"{self.url}: has an export as {rival}, whose files have the same names. Name another folder with "
                    "--out."
                )
        if is_new:
            storage.create(url, artifacts.encode_json({"run": run.url, "format": self.format}))
        claim = artifacts.read_json(url, "Name another folder with --out.", _Claim)
        if claim["run"] != run.url:
            raise UserError(
                f"{self.url}: has the export of another run, {claim['run']}. Name another folder with --out."
            )

    def _files(self) -> set[str]:
        """The names of the files of shards, whoever made them."""
        pattern = re.compile(rf"\d{{5,}}\.{self.ending}")
        return {name for name in storage.list_names(self.url, f".{self.ending}") if pattern.fullmatch(name)}

    def recorded(self) -> dict[int, list[str]]:
        """The fingerprints of the records, by shard. One listing."""
        fingerprints: defaultdict[int, list[str]] = defaultdict(list)
        for match in map(_RECORD.fullmatch, storage.list_names(self._records, ".json")):
            if match:
                fingerprints[int(match[1])].append(match[2])
        return fingerprints

    def existing(self) -> set[int]:
        """The shards that have a file. One listing."""
        return {int(name.partition(".")[0]) for name in self._files()}

    def read(self, shard: int, fingerprint: str) -> ExportRecord:
        """The record of a shard. Raises UserError if it is damaged."""
        remedy = "Remove it; the next export of the run writes it again."
        return artifacts.read_json(self._record(shard, fingerprint), remedy, ExportRecord)

    def forget(self, shard: int, fingerprints: Iterable[str]) -> None:
        """Remove records of a shard; its file counts as not exported then."""
        for fingerprint in fingerprints:
            storage.remove(self._record(shard, fingerprint))

    def remove(self, shard: int, fingerprints: Iterable[str]) -> None:
        """Remove the file and the records of a shard that the run no longer has."""
        self.forget(shard, fingerprints)
        storage.remove(self.file(shard))

    def commit(self, record: ExportRecord, local: Path | None) -> ExportRecord:
        """Create a shard's file exclusively, in place of one with other content, and then its record.

        Args:
            record: The record without its file. No other record of the shard may exist.
            local: The content; None if the shard has no image.

        Returns:
            The record with its file.

        Raises:
            UserError: Another process keeps writing other content.
        """
        url, file = self.file(record.shard), None
        if local is None:
            storage.remove(url)
        else:
            file = record_of(local, self.name(record.shard))
            if is_there(self.url, file) is False:
                storage.remove(url)
            if not storage.create_from_file(url, str(local)) and not is_there(self.url, file):
                raise UserError(f"{url}: cannot be written: another process keeps writing other content there")
        record = replace(record, file=file)
        storage.create(self._record(record.shard, record.fingerprint), artifacts.encode_json(asdict(record)))
        return record

    def write_index(self, summary: Mapping[str, Any], records: Iterable[ExportRecord]) -> bool:
        """Write the index, unless it is up to date.

        Args:
            summary: What it says about the whole export.
            records: The records of all shards, in order.

        Returns:
            Whether it was written.
        """
        files = [
            {"shard": record.shard, "rows": record.rows} | asdict(record.file) for record in records if record.file
        ]
        rows = sum(file["rows"] for file in files)
        content = artifacts.encode_json({**summary, "rows": rows, "files": files}, indent=1)
        if storage.exists(self.index) and storage.read_bytes(self.index) == content:
            return False
        storage.replace(self.index, content)
        return True


def _resolved(url: str) -> str:
    """A local path without links; another URL as it is."""
    return str(Path(url).resolve()) if storage.is_local(url) else url
