"""What is committed and what is left, read from names alone: one listing a folder, no request a shard.

A marker says that a shard is done. Beside the markers lies an empty object a shard whose name says what it took
(a `Tally`), and a part under way has its tally in its own name, so that counts and rates cost no request either.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run, shard_name

_IMAGE_MARKER = re.compile(r"(\d{5,})_stats\.json")
_CAPTION_SHARD = re.compile(r"(\d{5,})\.parquet")
_IMAGE_STATS = {"count": int, "successes": int, "tar": str, "parquet": str, "status_dict": dict}
_TALLY = re.compile(r"rows(\d+)-failed(\d+)-tokens(\d+)-from(\d+)-to(\d+)(?:-spent(\d+)-gpu(\d+))?")


@dataclass(frozen=True, slots=True)
class WorkRecord:
    """What was done in a stretch of time: `rows`, of them `failed` with a reason. Times are Unix times.

    spent: milliseconds of one actor, which may have more at hand in that time; 0 where nobody measured it.
    gpu: milliseconds of one GPU in that time, twice as many where the actor has two; 0 where it has none.
    """

    rows: int
    failed: int
    tokens: int
    started: int
    ended: int
    spent: int = 0
    gpu: int = 0

    @property
    def seconds(self) -> int:
        """That it took: at least one, since times are whole seconds."""
        return max(1, self.ended - self.started)

    @property
    def name(self) -> str:
        """As a part of an object's name."""
        counts = f"rows{self.rows}-failed{self.failed}-tokens{self.tokens}"
        return f"{counts}-from{self.started}-to{self.ended}" + (
            f"-spent{self.spent}-gpu{self.gpu}" if self.spent else ""
        )

    @classmethod
    def named(cls, name: str) -> "WorkRecord | None":
        """The tally in an object's name, where it has one."""
        found = _TALLY.search(name)
        return cls(*map(int, found.groups(default="0"))) if found else None


@dataclass(frozen=True)
class Throughput:
    """What actors did of which the time is known: images, and seconds of one actor and of one GPU."""

    images: int
    seconds: float
    gpu_seconds: float

    @property
    def images_per_s(self) -> float | None:
        """Of one actor; None where no time is known."""
        return self.images / self.seconds if self.seconds else None


def throughput(tallies: Iterable[WorkRecord]) -> Throughput:
    timed = [tally for tally in tallies if tally.spent]
    spent, gpu = sum(tally.spent for tally in timed), sum(tally.gpu for tally in timed)
    return Throughput(sum(tally.rows for tally in timed), spent / 1000, gpu / 1000)


def fetched_shards(run: Run) -> list[int]:
    """The image shards whose download is committed, in order."""
    return _matching(storage.list_names(run.images, "_stats.json"), _IMAGE_MARKER)


def fetched_images(run: Run, shards: Iterable[int]) -> int:
    """How many images these fetched shards hold. One listing; a marker is read only where its line is missing yet."""
    counted = recorded(run.image_ledger)
    total = 0
    for shard in shards:
        if tally := counted.get(shard):
            total += tally.rows - tally.failed
        else:  # killed between the marker and its line, which the next download adds
            total += read_image_stats(run, shard)["successes"]
    return total


def read_image_stats(run: Run, shard: int) -> dict[str, Any]:
    """The marker of a fetched shard. Raises FileNotFoundError where there is none, UserError where it is damaged."""
    remedy = "Remove it; the shard is then fetched again by `lotlip-data download`."
    return artifacts.read_json(run.image_stats(shard), remedy, _IMAGE_STATS)


def captioner_settings(run: Run, name: str) -> dict[str, Any]:
    """What a captioner's folder holds captions of. Raises FileNotFoundError where there is none, UserError as above."""
    remedy = f"Remove it, and recaption with the settings that the captions beside it were made with as {name!r}."
    return artifacts.read_json(run.captioner_settings(name), remedy, {"id": str})


def captioned_shards(run: Run, captioner: str) -> list[int]:
    """The shards of which `captioner` has committed all captions, in order."""
    return _matching(storage.list_names(run.captioner(captioner), ".parquet"), _CAPTION_SHARD)


def captioners(run: Run) -> list[str]:
    """The captioners that have a folder in the run, by name."""
    return [name for name in storage.list_names(run.captions) if not name.startswith(".")]


def record(ledger: str, shard: int, tally: WorkRecord) -> None:
    """Note what a committed shard took, in the ledger folder of its stage."""
    storage.create(storage.join(ledger, f"{shard_name(shard)}-{tally.name}"), b"")


def recorded(ledger: str) -> dict[int, WorkRecord]:
    """By shard, what the ledger folder says that it took. A shard whose writer was killed in between is missing.

    Of several lines of one shard, as two drivers leave them, the one of most work counts, and of such the latest.
    """
    found: dict[int, WorkRecord] = {}
    for name in storage.list_names(ledger):
        shard, tally = name.partition("-")[0], WorkRecord.named(name)
        if tally and shard.isdigit():
            other = found.get(int(shard), tally)
            found[int(shard)] = max(other, tally, key=lambda one: (one.spent, one.ended))
    return found


def forget_removed(run: Run, captioner: str) -> None:
    """Take the shards whose captions have been removed out of the captioner's ledger."""
    lines = [(name.partition("-")[0], name) for name in storage.list_names(run.caption_ledger(captioner))]
    there = set(captioned_shards(run, captioner))  # listed last: captions are there before their line is
    for shard, name in lines:
        if shard.isdigit() and int(shard) not in there:
            storage.remove(storage.join(run.caption_ledger(captioner), name))


def note_try(run: Run, shard: int, token: str) -> None:
    """Note that nothing came of an image shard in the download that `token` names."""
    storage.create(storage.join(run.image_tries, f"{shard_name(shard)}-{token}"), b"")


def tries(run: Run) -> Counter[int]:
    """By image shard, in how many downloads nothing came of it."""
    names = (name.partition("-")[0] for name in storage.list_names(run.image_tries))
    return Counter(int(shard) for shard in names if shard.isdigit())


def parts_under_way(run: Run, captioner: str) -> dict[int, list[WorkRecord]]:
    """By shard, the tallies of the parts that a captioner has saved of shards that are not committed."""
    found: dict[int, list[WorkRecord]] = {}
    for path in storage.list_below(run.parts(captioner)):
        shard, _, name = path.partition("/")
        if shard.isdigit() and (tally := WorkRecord.named(name)):
            found.setdefault(int(shard), []).append(tally)
    return found


def captioned(run: Run, captioner: str) -> list[WorkRecord]:
    """The tallies of all that is captioned: of committed shards, and of the parts of those under way.

    Shards of which the images, or the captions of the line, have been removed do not count.
    """
    lines, fetched = recorded(run.caption_ledger(captioner)), set(fetched_shards(run))
    there = fetched.intersection(captioned_shards(run, captioner))
    committed = {shard: tally for shard, tally in lines.items() if shard in there}
    parts = {shard: few for shard, few in parts_under_way(run, captioner).items() if shard in fetched - set(committed)}
    return [*committed.values(), *(part for few in parts.values() for part in few)]


@dataclass(frozen=True)
class CaptionProgress:
    """The units of one captioner: image shards that are fetched, split by whether their captions are committed."""

    done: tuple[int, ...]
    left: tuple[int, ...]


def caption_progress(run: Run, captioner: str) -> CaptionProgress:
    fetched = fetched_shards(run)
    done = set(captioned_shards(run, captioner))
    return CaptionProgress(
        done=tuple(shard for shard in fetched if shard in done),
        left=tuple(shard for shard in fetched if shard not in done),
    )


def _matching(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    found = (pattern.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def image_stamps(run: Run) -> dict[int, str]:
    """By shard, what changes when its images are fetched anew. One listing."""
    found = storage.list_stamps(run.images, "_stats.json")
    numbers = ((name.removesuffix("_stats.json"), stamp) for name, stamp in found.items())
    return {int(number): stamp for number, stamp in numbers if number.isdigit()}
