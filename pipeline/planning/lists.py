"""What a manifest would do, estimated from a bounded sample of each of its lists. Nothing is written.

The sample of a source is the beginning of a few of its files, evenly spaced. Numbers that are extrapolated from it are
marked as estimates. Row counts of Parquet files come from their footers, and lists that were read to the end are exact.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.catalog import published
from lotlip_data.pipeline.downloading.connection import is_public
from lotlip_data.pipeline.planning.download import DownloadEstimate, estimate_download
from lotlip_data.pipeline.planning.existing import sample_containers
from lotlip_data.pipeline.planning.hardware import Hardware
from lotlip_data.pipeline.planning.raw_texts import TextSigns, text_hints
from lotlip_data.pipeline.planning.source_plan import SourcePlan
from lotlip_data.pipeline.planning.storage import MeasuredStorage, StorageEstimate, estimate_storage
from lotlip_data.pipeline.url_lists import reader
from lotlip_data.pipeline.url_lists.cells import GARBLED, GARBLED_REMEDY
from lotlip_data.pipeline.url_lists.files import errors_name, files_of, open_text
from lotlip_data.pipeline.url_lists.headers import check_captions, found_columns, lacks_texts, with_found_columns
from lotlip_data.pipeline.url_lists.rows import LINE_TOO_LONG, BadRow

SAMPLED_FILES = 8
"""Maximum number of files sampled per source."""
MAX_LONG_LINES = 256
"""Lines of more than 1 MiB after which the rest of a file is not read."""
SHOWN_REMARKS = 4
"""Number of remarks on files reported per source."""
SHOWN_HOSTS = 5
"""Number of hosts reported per source."""
TOLERATED_SHARE = 0.01
"""Share of the rows up to which a defect is only noted, because every list from the web has a few such rows."""
MEASURED_BYTES = 4 << 20
"""Bytes read per file to measure the length of its rows."""
MANY_INVALID_SHARE, DOMINANT_HOST_SHARE = 0.1, 0.2
"""Shares of the rows above which unusable rows, or the URLs of one host, are noted."""
DOMINANT_HOST_ROWS = 100
"""Minimum number of rows for a note about a host."""


class _EnoughInvalidRowsError(Exception):
    """So many rows are unusable that the rest of the file need not be read."""


@dataclass
class ListsPlan:
    """All sources and their totals, as `plan --json` prints them."""

    sources: list[SourcePlan]
    images: int | None
    """Estimate; None if a list cannot be read."""
    samples_per_shard: int
    shards: int | None
    storage: StorageEstimate
    download: DownloadEstimate | None
    """None if the number of images is unknown."""
    problems: list[str]
    """What prevents the manifest from running."""
    notes: list[str]
    """What to know before running it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_lists(
    manifest: Manifest,
    rows: int = 20_000,
    measured: MeasuredStorage | None = None,
    hardware: Hardware | None = None,
    run: Run | None = None,
) -> ListsPlan:
    """Read a sample of each source and estimate images, shards and storage.

    Args:
        manifest: The manifest.
        rows: Approximate number of rows to read per source.
        measured: The storage of an existing run of this manifest.
        hardware: The cluster, for the speed of the download.
        run: The existing run; its speed is used, and what it has downloaded counts as done.

    Returns:
        The plan. A list that cannot be read is one of its `problems` and not an error.
    """
    uids: set[str] = set()
    problems: list[str] = []
    notes: list[str] = []
    plans = []
    allowed_hosts = frozenset(host.lower() for host in manifest.download.allow_hosts)
    for source in manifest.sources:
        plan = SourcePlan(source.name, source.use)
        try:
            if source.is_images:
                sample_containers(source, plan, rows, manifest)
            else:
                _sample_source(source, plan, rows, uids, allowed_hosts)
        except UserError as error:  # of a list, or of the storage that it is on
            problems.append(f"{source.name}: {error}")
        else:
            notes += _notes(source, plan)
            for share, defect in _defects(source, plan):
                (problems if share > TOLERATED_SHARE else notes).append(f"{source.name}: {defect}")
        plans.append(plan)
    images = _total_images(plans)
    if images is not None and manifest.sample is not None:
        if manifest.sample > images:
            notes.append(f"`sample` is {manifest.sample:,}, but the lists have only about {images:,} images")
        images = min(images, manifest.sample)
    pairs = list(zip(manifest.sources, plans, strict=True))
    listed = _part(images, [plan for source, plan in pairs if not source.is_images], plans)
    stored = _part(images, [plan for source, plan in pairs if _is_stored(source)], plans)
    containers = sum(plan.containers for plan in plans)
    return ListsPlan(
        sources=plans,
        images=images,
        samples_per_shard=manifest.samples_per_shard,
        shards=None if listed is None else math.ceil(listed / manifest.samples_per_shard) + containers,
        storage=estimate_storage(manifest, images, measured, stored),
        download=estimate_download(manifest, listed, hardware or Hardware(), run),
        problems=problems,
        notes=notes,
    )


def _is_stored(source: Source) -> bool:
    """Whether a run holds a copy of the images of a source, besides that in its dataset."""
    return not source.is_images or source.images == "copy"


def _part(images: int | None, part: list[SourcePlan], plans: list[SourcePlan]) -> int | None:
    """The images of some of the sources, as a share of all; None if a number is not known."""
    total = _total_images(plans)
    own = _total_images(part)
    if images is None or not total or own is None:
        return images
    return round(images * own / total)


def _total_images(plans: list[SourcePlan]) -> int | None:
    images = [plan.images for plan in plans if plan.images is not None]
    return sum(images) if len(images) == len(plans) else None


class _Sample:
    """The rows read from one source, as counts."""

    def __init__(self, source: Source, rows: int, uids: set[str]) -> None:
        """Start an empty sample.

        Args:
            source: The source.
            rows: Number of unusable rows after which reading stops.
            uids: The uids of the sources before it; those of this source are added.
        """
        self._source, self._rows, self._all_uids = source, rows, uids
        self.own_uids: set[str] = set()
        self.hosts: Counter[str] = Counter()
        self.invalid: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.defects: Counter[str] = Counter()
        self.signs = TextSigns()
        self.remarks: list[str] = []
        self.taken = self.duplicates = self.blank = 0

    @property
    def seen(self) -> int:
        return self.taken + self.invalid.total() + self.filtered.total()

    def read_file(self, file: str, target: int) -> bool:
        """Read a file until `target` rows are seen in all; return whether the file ended before that."""
        try:
            for batch in reader.read_file(
                self._source, file, self._reject, self._filter_out, self._count_defects, self.remarks.append
            ):
                self._add(batch)
                if self.seen >= target:
                    return False
        except _EnoughInvalidRowsError:
            return False
        return True

    def _add(self, batch: pa.RecordBatch) -> None:
        self.taken += batch.num_rows
        uids = batch["uid"].to_pylist()
        self.duplicates += len(uids) - len(set(uids) - self._all_uids)
        self.own_uids.update(uids)
        self._all_uids.update(uids)
        self.hosts.update(urlsplit(url).hostname or "" for url in batch["url"].to_pylist())
        self.blank += reader.blank_rows(batch)
        self.signs.add(batch["texts"].flatten().to_pylist())

    def _reject(self, bad: BadRow) -> None:
        self.invalid[bad.reason] += 1
        if self.invalid.total() > self._rows or self.invalid[LINE_TOO_LONG] > MAX_LONG_LINES:
            raise _EnoughInvalidRowsError

    def _filter_out(self, rule: str, count: int) -> None:
        self.filtered[rule] += count

    def _count_defects(self, defect: str, rows: int) -> None:
        self.defects[defect] += rows


def _sample_source(source: Source, plan: SourcePlan, rows: int, uids: set[str], allowed_hosts: Collection[str]) -> None:
    """Read a sample of a source and fill its plan.

    Args:
        source: The source.
        plan: The plan to fill, with its name only.
        rows: Approximate number of rows to read.
        uids: The uids of the sources before it; those of this source are added.
        allowed_hosts: Hosts that are downloaded although they are private.

    Raises:
        ListError: A file cannot be read.
    """
    files = files_of(source)
    check_captions(source)
    plan.files, plan.columns = len(files), with_found_columns(source, files[0]).needed
    sampled = evenly(files, SAMPLED_FILES)
    sample = _Sample(source, rows, uids)
    rows_per_file = math.ceil(rows / len(sampled))
    ended = sum(sample.read_file(file, (index + 1) * rows_per_file) for index, file in enumerate(sampled))
    plan.seen, plan.taken, plan.blank, plan.remarks = sample.seen, sample.taken, sample.blank, sample.remarks
    plan.garbled = sample.defects.pop(GARBLED, 0)
    plan.not_texts = dict(sample.defects.most_common())
    plan.signs, plan.texts = dict(sample.signs.counts), sample.signs.texts
    plan.invalid, plan.filtered = dict(sample.invalid.most_common()), dict(sample.filtered.most_common())
    plan.duplicates, plan.repeats = sample.duplicates, sample.taken - len(sample.own_uids)
    _fill_hosts(plan, sample.hosts, allowed_hosts)
    plan.read_whole = ended == len(files)
    plan.rows, plan.rows_exact = (plan.seen, True) if plan.read_whole else _estimate_rows(source, files, sampled)
    if plan.rows is not None and plan.seen:
        new = sample.taken - sample.duplicates
        estimate = min(plan.rows * new, _distinct_rows(source, files, plan.rows) * sample.taken) / plan.seen
        plan.images = new if plan.read_whole else round(estimate)
    elif plan.rows == 0:
        plan.images = 0
    if plan.images is not None and source.sample is not None:
        plan.images = min(plan.images, source.sample)


def _distinct_rows(source: Source, files: list[str], rows: int) -> int:
    """The rows of a source without those that repeat the images of others because they have another captioner's texts.

    Files with the same captioners are one list. Of several such lists, the longest counts.

    Args:
        source: The source.
        files: Its files.
        rows: Rows of all files.
    """
    lists: dict[tuple[str, ...], list[str]] = {}
    for file in files if source.captions else ():
        lists.setdefault(tuple(found_columns(source, file).captions), []).append(file)
    if len(lists) < 2:
        return rows
    counts = (_estimate_rows(source, part, evenly(part, SAMPLED_FILES))[0] for part in lists.values())
    return max((count for count in counts if count is not None), default=rows)


def _fill_hosts(plan: SourcePlan, hosts: Counter[str], allowed_hosts: Collection[str]) -> None:
    plan.hosts = len(hosts)
    plan.top_hosts = {host: round(count / plan.taken, 4) for host, count in hosts.most_common(SHOWN_HOSTS)}
    private = Counter({host: count for host, count in hosts.items() if host not in allowed_hosts and _is_private(host)})
    plan.private, plan.private_hosts = private.total(), [host for host, _ in private.most_common(SHOWN_HOSTS)]


def _estimate_rows(source: Source, files: list[str], sampled: list[str]) -> tuple[int | None, bool]:
    """Return the rows of all files, from the sampled files and the sizes of the others; and whether this is exact.

    The number is None if the storage does not report the size of a sampled file.
    """
    sizes = [size for file in sampled if (size := storage.size(file))]
    if len(sizes) < len(sampled):
        return None, False
    rows = sum(_rows_in_file(source, file, size) for file, size in zip(sampled, sizes, strict=True))
    if len(sampled) == len(files):
        return round(rows), all(source.format_of(file) == "parquet" for file in sampled)
    total_size = sum(storage.size(file) or 0 for file in files)
    return round(rows * total_size / sum(sizes)), False


def _rows_in_file(source: Source, file: str, size: int) -> float:
    """Return the rows of one file of `size` bytes, from its footer or from the length of its first rows."""
    with errors_name(file), storage.open_read(file) as stream:
        if source.format_of(file) == "parquet":
            return float(pq.ParquetFile(stream).metadata.num_rows)
        _, content = open_text(stream, file, lambda sentence: None)
        text = content.read(MEASURED_BYTES)
        bytes_read = stream.tell()
    return reader.count_rows(source, file, text) * size / min(bytes_read, size) if text else 0.0


def _is_private(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:  # a name, not an address
        return host == "localhost"


def _defects(source: Source, plan: SourcePlan) -> Iterator[tuple[float, str]]:
    """Yield the defects of a list, each with the share of the rows that have it."""
    if not plan.seen:
        part = "" if plan.read_whole else f" ({SAMPLED_FILES} of {plan.files:,} files read)"
        yield 1.0, f"no rows in {', '.join(source.files)}{part}"
    elif not plan.taken:
        yield 1.0, f"none of the {plan.seen} rows read is usable: {_format_reasons(plan)}"
    if plan.private:
        share, hosts = plan.private / plan.taken, ", ".join(plan.private_hosts)
        yield (
            share,
            f"{share:.2%} of the URLs read are on this machine or a private network ({hosts}) and will not be "
            "downloaded; list the hosts in `download.allow_hosts` to download them",
        )
    if plan.garbled:
        share = plan.garbled / plan.taken
        yield share, f"{share:.2%} of the texts read are {GARBLED_REMEDY}"
    for kind, rows in plan.not_texts.items():
        share = rows / plan.taken
        yield share, f"{share:.2%} of the cells read of {reader.text_column(source)} are {kind}, not a text"
    is_blank = source.text_column is not None and plan.taken and plan.blank == plan.taken and not _is_bare(source)
    if is_blank or (plan.taken and lacks_texts(source)):
        yield 1.0, reader.all_blank(source)


def _is_bare(source: Source) -> bool:
    """Whether the files of a source have no texts by their format."""
    return all(source.format_of(file) == "txt" for file in source.files)


def _notes(source: Source, plan: SourcePlan) -> list[str]:
    notes = []
    if source.use is not None and plan.rows is not None:
        expected = published(source.use)
        if expected.rows is not None and not 0.9 < plan.rows / expected.rows < 1.1:
            notes.append(
                f"{plan.name}: the list has {format_rows(plan)} rows, the published list has {expected.rows:,}; check "
                "whether this is another edition or only a part"
            )
        if expected.rows is None and plan.images is not None and not 0.9 < plan.images / expected.images < 1.1:
            notes.append(
                f"{plan.name}: the list has about {plan.images:,} images, the paper had {expected.images:,}; check "
                "whether this is another edition or only a part"
            )
        if expected.ours and source.filter == expected.source.get("filter"):
            notes.append(f"{plan.name}: {expected.ours}")
    if source.sample is not None and plan.images is not None and plan.images < source.sample:
        notes.append(f"{plan.name}: `sample` is {source.sample:,}, but the list has only about {plan.images:,} images")
    if plan.seen and sum(plan.invalid.values()) > MANY_INVALID_SHARE * plan.seen:
        notes.append(f"{plan.name}: many rows are unusable: {_format_reasons(plan)}")
    notes += [f"{plan.name}: {remark}" for remark in plan.remarks[:SHOWN_REMARKS]]
    notes += [f"{plan.name}: {hint}" for hint in text_hints(plan.signs, plan.texts, source)]
    if MANY_INVALID_SHARE * plan.taken < plan.blank < plan.taken:
        notes.append(f"{plan.name}: {plan.blank / plan.taken:.0%} of the rows read have no text")
    host, share = next(iter(plan.top_hosts.items()), ("", 0.0))
    if share > DOMINANT_HOST_SHARE and plan.taken >= DOMINANT_HOST_ROWS:
        notes.append(f"{plan.name}: {share:.0%} of the URLs are on {host}, which will limit the download speed")
    return notes


def format_rows(plan: SourcePlan) -> str:
    """The rows of a source as text, marked where they are an estimate."""
    if plan.rows is None:
        return "?"
    return f"{plan.rows:,}" if plan.rows_exact else f"about {plan.rows:,}"


def _format_reasons(plan: SourcePlan) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in (plan.invalid | plan.filtered).items())
