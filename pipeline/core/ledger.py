"""The ledger: which units of work are committed, read from object names: one listing per folder, no request per shard.

A marker object says that a shard is committed. For each shard there is also an empty object, the shard's entry, whose
name holds counts and times (a `WorkRecord`). A saved part of an unfinished shard has its record in its own name. So
counts and rates need no request per shard either.
"""

import contextlib
import math
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core.outcome import one_line

_IMAGE_MARKER = re.compile(r"(\d{5,})_stats\.json")
_CAPTION_SHARD = re.compile(r"(\d{5,})\.parquet")
_RECORD = re.compile(r"rows(\d+)-failed(\d+)-tokens(\d+)-from(\d+)-to(\d+)(?:-spent(\d+)-gpu(\d+))?")


@with_config(ConfigDict(extra="allow"))
class ImageMarker(TypedDict):
    """The marker of a downloaded shard. It also has img2dataset's own statistics."""

    count: int
    """Rows of the shard."""
    successes: int
    """Images of the shard."""
    tar: NotRequired[str]
    """The name of the tar in `images`. Images that stay where they are have none: they are in the `container`."""
    parquet: str
    """The name of the Parquet file in `images`."""
    status_dict: dict[str, int]
    """Rows by `success` or reason of the failure."""
    failed_hosts: NotRequired[dict[str, dict[str, int]]]
    """Failures by host and reason."""
    start_time: NotRequired[float]
    """Unix time in seconds, as is `end_time`."""
    end_time: NotRequired[float]
    seconds: NotRequired[float]
    digests: NotRequired[dict[Literal["tar", "parquet"], Digest]]
    """Size and sha256 of both files. Earlier releases do not record them."""
    container: NotRequired[Container]
    """Where the images were read from that existed before the run."""
    container_digest: NotRequired[Digest]
    """Its size and sha256, if the images stay there."""
    conversion: NotRequired[dict[str, Any]]
    """The settings with which an image that stays there is converted when it is read."""
    converted: NotRequired[int]
    """The number of images that are converted whenever they are read."""
    filtered: NotRequired[dict[str, int]]
    """Rows of the container that the source's filter excludes, by rule. They are not in `count`."""
    not_drawn: NotRequired[int]
    """Rows of the container outside the sample. They are not in `count`."""
    removed_captions: NotRequired[list[str]]
    """Captioners with captions that were removed, because images of the shard were others when it was read before."""


@with_config(ConfigDict(extra="allow"))
class CaptionerRecord(TypedDict):
    """The settings that made the captions in a captioner's folder, and the id that follows from them."""

    id: str


@dataclass(frozen=True, slots=True)
class WorkRecord:
    """The work on one shard, or on one saved part of it."""

    rows: int
    """Rows processed, failed ones included."""
    failed: int
    """Rows that failed with a reason."""
    tokens: int
    """Tokens generated; 0 for a download."""
    started: int
    """Unix time in seconds."""
    ended: int
    """Unix time in seconds."""
    spent: int = 0
    """Milliseconds of one actor, which may work on other shards in the same time; 0 where it was not measured."""
    gpu: int = 0
    """Milliseconds of one GPU in that time: twice as many for an actor with two GPUs, and 0 without a GPU."""

    @property
    def seconds(self) -> int:
        """Duration: at least one second, since times are whole seconds."""
        return max(1, self.ended - self.started)

    @property
    def name(self) -> str:
        """The record as a part of an object's name."""
        counts = f"rows{self.rows}-failed{self.failed}-tokens{self.tokens}"
        return f"{counts}-from{self.started}-to{self.ended}" + (
            f"-spent{self.spent}-gpu{self.gpu}" if self.spent else ""
        )

    @classmethod
    def named(cls, name: str) -> "WorkRecord | None":
        """The record in an object's name, or None where the name has none."""
        match = _RECORD.search(name)
        return cls(*map(int, match.groups(default="0"))) if match else None


@dataclass(frozen=True)
class Throughput:
    """Images whose processing time is known, and the time in seconds of one actor and of one GPU."""

    images: int
    seconds: float
    gpu_seconds: float

    @property
    def images_per_s(self) -> float | None:
        """Images per second of one actor; None where no time is known."""
        return self.images / self.seconds if self.seconds else None


def throughput(records: Iterable[WorkRecord]) -> Throughput:
    """The sum of the records that have a time."""
    timed = [record for record in records if record.spent]
    spent, gpu = sum(record.spent for record in timed), sum(record.gpu for record in timed)
    return Throughput(sum(record.rows for record in timed), spent / 1000, gpu / 1000)


def fetched_shards(run: Run) -> list[int]:
    """The shards whose download is committed, in order."""
    return _matching(storage.list_names(run.images, "_stats.json"), _IMAGE_MARKER)


def fetched_images(run: Run, shards: Iterable[int]) -> int:
    """Number of images in these downloaded shards.

    Takes one listing. A marker is read only where the shard's entry is missing.
    """
    records = recorded(run.image_ledger)
    return sum(_images(run, shard, records) for shard in shards)


def shards_with_images(run: Run) -> list[int]:
    """The downloaded shards that hold an image, in order: those that captioners work on.

    Takes two listings. A marker is read only where the shard's entry is missing.
    """
    records = recorded(run.image_ledger)
    return [shard for shard in fetched_shards(run) if _images(run, shard, records)]


def _images(run: Run, shard: int, records: Mapping[int, WorkRecord]) -> int:
    if record := records.get(shard):
        return record.rows - record.failed
    images: int = read_image_stats(run, shard)["successes"]  # killed between the marker and the entry
    return images


def read_image_stats(run: Run, shard: int) -> ImageMarker:
    """The marker of a downloaded shard. Raises FileNotFoundError if it is missing, and UserError if it is damaged."""
    remedy = "Remove it; `lotlip-data download` then downloads the shard again."
    return artifacts.read_json(run.image_stats(shard), remedy, ImageMarker)


def images_file(marker: ImageMarker) -> str:
    """The name of the file in `images` that changes when the images of a shard are read anew."""
    return marker["tar"] if "tar" in marker else marker["parquet"]


def image_stamps(run: Run) -> dict[int, str]:
    """By shard, a stamp that changes when its images are downloaded again. One listing."""
    stamps = storage.list_stamps(run.images, "_stats.json")
    numbers = ((name.removesuffix("_stats.json"), stamp) for name, stamp in stamps.items())
    return {int(number): stamp for number, stamp in numbers if number.isdigit()}


def captioner_settings(run: Run, name: str) -> dict[str, Any]:
    """The settings that made the captions in a captioner's folder.

    Raises FileNotFoundError if the captioner has no folder, and UserError if the settings file is damaged.
    """
    remedy = f"Remove it, and recaption as {name!r} with the settings of the captions beside it."
    return dict(artifacts.read_json(run.captioner_settings(name), remedy, CaptionerRecord))


@dataclass(frozen=True)
class Stop:
    """That a call of a stage ended before its work was done."""

    at: int
    """Unix time in seconds, rounded up: the times at which work ended are rounded."""
    reason: str


def record_stop(url: str, reason: str) -> None:
    """Record at `url` why a stage, or one captioner, has stopped. Like a log, it is not worth a failure."""
    stop = Stop(math.ceil(time.time()), reason)
    with contextlib.suppress(OSError, UserError):
        storage.replace(url, artifacts.encode_json(asdict(stop)))


@contextlib.contextmanager
def recording_stop(*urls: str) -> Iterator[None]:
    """Remove the records of earlier stops, and record it if an exception or a signal ends the work in this block."""
    for url in filter(storage.exists, urls):  # looked up first: a run with nothing to do needs no write access
        storage.remove(url)
    try:
        yield
    except BaseException as error:
        reason = one_line(error) if isinstance(error, Exception) else "interrupted"
        for url in urls:
            if not storage.exists(url):
                record_stop(url, reason)
        raise


def stop_of(url: str, last_result: float = 0) -> str | None:
    """Why the last call has stopped, as `record_stop` recorded it; None if it did not.

    Args:
        url: Where it is recorded.
        last_result: Unix time in seconds of the last result. A later one than the stop is that of another call.
    """
    try:
        stop = artifacts.read_json(url, "", Stop)
    except (FileNotFoundError, UserError):  # a damaged one is not worth a failure either
        return None
    return stop.reason if last_result <= stop.at else None


def captioned_shards(run: Run, captioner: str) -> list[int]:
    """The shards for which the captions of `captioner` are committed, in order."""
    return _matching(storage.list_names(run.captioner(captioner), ".parquet"), _CAPTION_SHARD)


def captioners(run: Run) -> list[str]:
    """Names of the captioners that have a folder in the run, sorted."""
    return [name for name in storage.list_names(run.captions) if not name.startswith(".")]


def record(ledger: str, shard: int, work: WorkRecord) -> None:
    """Add the entry of a committed shard to the ledger folder of its stage."""
    storage.create(storage.join(ledger, f"{shard_name(shard)}-{work.name}"), b"")


def recorded(ledger: str) -> dict[int, WorkRecord]:
    """The records in a ledger folder, by shard. A shard is missing if its writer was killed after the marker.

    Two drivers can leave two entries for one shard. The one with more work counts; of two equal ones, the later.
    """
    records: dict[int, WorkRecord] = {}
    for name in storage.list_names(ledger):
        shard, work = name.partition("-")[0], WorkRecord.named(name)
        if work and shard.isdigit():
            other = records.get(int(shard), work)
            records[int(shard)] = max(other, work, key=lambda entry: (entry.spent, entry.ended))
    return records


def forget(ledger: str, shards: Collection[int]) -> None:
    """Remove the entries of shards whose work is done again from the ledger folder of a stage."""
    for name in storage.list_names(ledger):
        shard = name.partition("-")[0]
        if shard.isdigit() and int(shard) in shards:
            storage.remove(storage.join(ledger, name))


def forget_removed(run: Run, captioner: str) -> None:
    """Remove the entries of shards whose captions were removed from the captioner's ledger."""
    entries = [(name.partition("-")[0], name) for name in storage.list_names(run.caption_ledger(captioner))]
    committed = set(captioned_shards(run, captioner))  # listed last: captions are committed before their entry
    for shard, name in entries:
        if shard.isdigit() and int(shard) not in committed:
            storage.remove(storage.join(run.caption_ledger(captioner), name))


def note_try(run: Run, shard: int, token: str) -> None:
    """Note that no image of a shard downloaded in the call of `download` that `token` names."""
    storage.create(storage.join(run.image_tries, f"{shard_name(shard)}-{token}"), b"")


def tries(run: Run) -> Counter[int]:
    """By image shard, the number of calls of `download` in which none of its images downloaded."""
    names = (name.partition("-")[0] for name in storage.list_names(run.image_tries))
    return Counter(int(shard) for shard in names if shard.isdigit())


def parts_under_way(run: Run, captioner: str) -> dict[int, list[WorkRecord]]:
    """By uncommitted shard, the records of the parts that a captioner has saved."""
    records: dict[int, list[WorkRecord]] = {}
    for path in storage.list_below(run.parts(captioner)):
        shard, _, name = path.partition("/")
        if shard.isdigit() and (record := WorkRecord.named(name)):
            records.setdefault(int(shard), []).append(record)
    return records


def captioned(run: Run, captioner: str) -> list[WorkRecord]:
    """The records of all captions: those of committed shards, and those of saved parts of other shards.

    Shards whose images or captions were removed do not count.
    """
    records, fetched = recorded(run.caption_ledger(captioner)), set(fetched_shards(run))
    existing = fetched.intersection(captioned_shards(run, captioner))
    committed = {shard: record for shard, record in records.items() if shard in existing}
    unfinished = fetched - set(committed)
    saved = [part for shard, parts in parts_under_way(run, captioner).items() if shard in unfinished for part in parts]
    return [*committed.values(), *saved]


@dataclass(frozen=True)
class CaptionProgress:
    """The downloaded shards by their state for one captioner. A shard without images is in neither list."""

    done: tuple[int, ...]
    """Shards whose captions are committed."""
    left: tuple[int, ...]
    """Shards that are to be captioned."""


def caption_progress(run: Run, captioner: str) -> CaptionProgress:
    """The captioner's progress over the downloaded shards. Three listings."""
    fetched = shards_with_images(run)
    done = set(captioned_shards(run, captioner))
    return CaptionProgress(
        done=tuple(shard for shard in fetched if shard in done),
        left=tuple(shard for shard in fetched if shard not in done),
    )


def _matching(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    matches = (pattern.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match)
