"""What a manifest would do, from a bounded sample of each of its lists; nothing is written.

A sample is the beginning of a few files of a source, evenly chosen. What follows from it is marked as an estimate;
totals of Parquet files come from their own footers, and those of lists that were read to their end are exact.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.catalog import published
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.source import Source
from lotlip_data.pipeline.downloading.http_client import is_public
from lotlip_data.pipeline.planning.storage import Stored, in_bytes, storage_of
from lotlip_data.pipeline.url_lists import reader
from lotlip_data.pipeline.url_lists.reader import BadRow, ListError

FILES = 8
"""Of a source that are looked into, at most."""
HOSTS = 5
"""That are shown."""
NOISE = 0.01
"""Share of the rows up to which a defect is one of the web, and no problem of the list."""
MEASURED_BYTES = 4 << 20
"""Of each file, read to learn how long its rows are."""


class _Enough(Exception):
    """So many rows could not be used that more of the file need not be read."""


@dataclass
class SourcePlan:
    """What a sample of one source says. Shares are of the `seen` rows."""

    name: str
    use: str | None
    files: int = 0
    columns: list[str] = field(default_factory=list)
    seen: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    filtered: dict[str, int] = field(default_factory=dict)
    taken: int = 0
    """Rows with a usable URL that the filter keeps, of those seen."""
    duplicates: int = 0
    """Of the taken ones, those whose URL an earlier one has, in this source or one before it."""
    repeats: int = 0
    """Of these, those whose URL an earlier one of this source has."""
    hosts: int = 0
    top_hosts: dict[str, float] = field(default_factory=dict)
    """Share of the taken rows."""
    private: int = 0
    """Taken rows that will not be fetched: on hosts of this machine or a private network, as their URLs say (no name is
    looked up), which `download.allow_hosts` does not name."""
    private_hosts: list[str] = field(default_factory=list)
    garbled: int = 0
    """Taken rows of which the text is not in UTF-8."""
    rows: int | None = None
    """Of the whole source."""
    rows_exact: bool = False
    read_whole: bool = False
    """All its files, to their ends."""
    images: int | None = None
    """Estimate of what the source gives, its `sample` applied; of one that is read whole, without `repeats`."""


@dataclass
class ListsPlan:
    """The sources, and what they come to together."""

    sources: list[SourcePlan]
    images: int | None
    """Estimate; None where a list cannot be read."""
    samples_per_shard: int
    shards: int | None
    storage: dict[str, Any]
    problems: list[str]
    """What keeps the manifest from being run."""
    notes: list[str]
    """What a person should know before running it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_lists(manifest: Manifest, rows: int = 20_000, stored: Stored | None = None) -> ListsPlan:
    """Look at about `rows` rows of each source. What cannot be read is a problem of the answer, and no error.

    stored: by a run of it.
    """
    seen: set[str] = set()
    problems: list[str] = []
    notes: list[str] = []
    sources = []
    allowed = frozenset(host.lower() for host in manifest.download.allow_hosts)
    for source in manifest.sources:
        one = SourcePlan(source.name, source.use)
        try:
            _look(source, one, rows, seen, allowed)
        except ListError as error:
            problems.append(str(error))
        else:
            notes += _notes(source, one)
            for share, defect in _defects(source, one):
                (problems if share > NOISE else notes).append(f"{source.name}: {defect}")
        sources.append(one)
    found = [one.images for one in sources]
    images = None if None in found else sum(number for number in found if number is not None)
    if images is not None and manifest.sample is not None:
        if manifest.sample > images:
            notes.append(f"`sample` is {manifest.sample:,}, but the lists give about {images:,} images")
        images = min(images, manifest.sample)
    return ListsPlan(
        sources=sources,
        images=images,
        samples_per_shard=manifest.samples_per_shard,
        shards=None if images is None else math.ceil(images / manifest.samples_per_shard),
        storage=storage_of(manifest, images, stored),
        problems=problems,
        notes=notes,
    )


def _look(source: Source, one: SourcePlan, rows: int, seen: set[str], allowed: Collection[str]) -> None:
    files = reader.files_of(source)
    one.files = len(files)
    looked = evenly(files, FILES)
    one.columns = source.needed
    hosts: Counter[str] = Counter()
    invalid: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    own: set[str] = set()

    def reject(bad: BadRow) -> None:
        invalid[bad.reason] += 1
        if invalid.total() > rows:
            raise _Enough

    def leave_out(reason: str, count: int) -> None:
        filtered[reason] += count

    def garbled(count: int) -> None:
        one.garbled += count

    def look(file: str, target: int) -> bool:
        """Whether the file ended before `target` rows were seen."""
        try:
            for batch in reader.read_file(source, file, reject, leave_out, garbled):
                one.taken += batch.num_rows
                uids = batch["uid"].to_pylist()
                one.duplicates += len(uids) - len(set(uids) - seen)
                own.update(uids)
                seen.update(uids)
                hosts.update(urlsplit(url).hostname or "" for url in batch["url"].to_pylist())
                if one.taken + invalid.total() + filtered.total() >= target:
                    return False
        except _Enough:
            return False
        return True

    share = math.ceil(rows / len(looked))
    ended = sum(look(file, (number + 1) * share) for number, file in enumerate(looked))
    one.seen = one.taken + invalid.total() + filtered.total()
    one.invalid, one.filtered = dict(invalid.most_common()), dict(filtered.most_common())
    one.hosts = len(hosts)
    private = Counter({host: count for host, count in hosts.items() if host not in allowed and _is_private(host)})
    one.private, one.private_hosts = private.total(), [host for host, _ in private.most_common(HOSTS)]
    one.top_hosts = {host: round(count / one.taken, 4) for host, count in hosts.most_common(HOSTS)}
    one.repeats, one.read_whole = one.taken - len(own), ended == len(files)
    one.rows, one.rows_exact = (one.seen, True) if one.read_whole else _rows_of(source, files, looked)
    if one.rows is not None and one.seen:
        one.images = len(own) if one.read_whole else round(one.rows * one.taken / one.seen)
    elif one.rows == 0:
        one.images = 0
    if one.images is not None and source.sample is not None:
        one.images = min(one.images, source.sample)


def _rows_of(source: Source, files: list[str], looked: list[str]) -> tuple[int | None, bool]:
    """Rows of all files, from those looked at and the sizes of the others; and whether that is exact."""
    sizes = [storage.size(file) for file in looked]
    known = [size for size in sizes if size]
    if len(known) < len(looked):
        return None, False
    exact = all(source.format_of(file) == "parquet" for file in looked)
    counted = sum(_rows_in(source, file, size) for file, size in zip(looked, known, strict=True))
    if len(looked) == len(files):
        return round(counted), exact
    total = sum(storage.size(file) or 0 for file in files)
    return round(counted * total / sum(known)), False


def _rows_in(source: Source, file: str, size: int) -> float:
    """Rows of one file: by its footer, or by the length of its first rows."""
    with storage.open_read(file) as stream:
        form = source.format_of(file)
        if form == "parquet":
            return float(pq.ParquetFile(stream).metadata.num_rows)
        text = b""
        plain = reader.decompressed(stream, file)
        while len(text) < MEASURED_BYTES and (some := plain.read(1 << 20)):
            text += some
        read = stream.tell()
    lines = sum(1 for _ in _records(text)) if form == "csv" else text.count(b"\n")
    return lines * size / min(read, size) if text else 0.0


def _records(text: bytes) -> Iterator[object]:
    try:
        yield from csv.reader(io.StringIO(text.decode("utf-8", "replace"), newline=""))
    except csv.Error:  # a quote that is cut off, or never closes
        return


def _is_private(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:  # a name
        return host == "localhost"


def _defects(source: Source, one: SourcePlan) -> Iterator[tuple[float, str]]:
    """What is wrong with a list, and with which share of its rows."""
    if not one.seen:
        looked = "" if one.read_whole else f", as far as looked at: {FILES} of {one.files:,} files"
        yield 1.0, f"no rows in {', '.join(source.files)}{looked}"
    elif not one.taken:
        yield 1.0, f"none of the {one.seen} rows seen can be used: {_reasons(one)}"
    if one.private:
        share, hosts = one.private / one.taken, ", ".join(one.private_hosts)
        where = f"{share:.2%} of the URLs seen are on this machine or a private network ({hosts})"
        yield share, f"{where} and will not be fetched, unless `download.allow_hosts` names these hosts"
    if one.garbled:
        share = one.garbled / one.taken
        yield share, f"{share:.2%} of the texts seen are {reader.GARBLED}"


def _notes(source: Source, one: SourcePlan) -> list[str]:
    notes = []
    if source.use is not None and one.rows is not None:
        expected = published(source.use)
        if not 0.9 < one.rows / expected.rows < 1.1:
            notes.append(
                f"{one.name}: the list has {'' if one.rows_exact else 'about '}{one.rows:,} rows, the published one "
                f"{expected.rows:,}; is it another edition, or a part?"
            )
        if expected.ours and source.filter == expected.source.get("filter"):
            notes.append(f"{one.name}: {expected.ours}")
    if source.sample is not None and one.images is not None and one.images < source.sample:
        notes.append(f"{one.name}: `sample` is {source.sample:,}, but the list gives about {one.images:,} images")
    if one.seen and sum(one.invalid.values()) > 0.1 * one.seen:
        notes.append(f"{one.name}: many rows cannot be used: {_reasons(one)}")
    host, share = next(iter(one.top_hosts.items()), ("", 0.0))
    if share > 0.2 and one.taken >= 100:
        notes.append(f"{one.name}: {share:.0%} of the URLs are on {host}, which will set the pace")
    return notes


def _reasons(one: SourcePlan) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in (one.invalid | one.filtered).items())


def format_text(plan: ListsPlan) -> list[str]:
    """The plan for people."""
    lines: list[str] = []
    for one in plan.sources:
        lines += _source_lines(one)
    if plan.images is not None:
        within = "" if all(one.read_whole for one in plan.sources) else ", as do repeats in one that is read in part"
        lines.append(
            f"together     about {plan.images:,} images (estimate; URLs that sources share count more than once"
            f"{within}), {plan.shards:,} shards of {plan.samples_per_shard:,}"
        )
    stored = plan.storage
    if stored["images"] is not None:
        images, dataset = in_bytes(stored["images"]), in_bytes(stored["dataset"])
        lines.append(f"storage      images {images}, dataset {dataset} (estimate)")
        lines.append(f"             if {stored['assumes']}")
    lines += [f"note         {note}" for note in plan.notes]
    lines += [f"problem      {problem}" for problem in plan.problems]
    return lines


def _source_lines(one: SourcePlan) -> list[str]:
    rows = "?" if one.rows is None else f"{'' if one.rows_exact else 'about '}{one.rows:,}"
    lines = [f"{one.name:12} {one.files:,} files, {rows} rows, of which {one.seen:,} were looked at"]
    if not one.seen:
        return lines
    lines.append(f"             columns {', '.join(one.columns)}")
    kept = f"{one.taken / one.seen:.1%} taken"
    lines.append(
        f"             {kept}, {sum(one.invalid.values())} unusable, {sum(one.filtered.values())} filtered out"
    )
    lines += [f"             {count:,} × {reason}" for reason, count in (one.invalid | one.filtered).items()]
    shown = ", ".join(f"{host} {share:.1%}" for host, share in one.top_hosts.items())
    lines.append(f"             {one.duplicates:,} duplicates among these, {one.hosts:,} hosts: {shown}")
    if one.images is not None:
        lines.append(f"             gives about {one.images:,} images")
    return lines
