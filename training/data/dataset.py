"""The dataset's shards as an endless, seeded sequence of samples, and the texts that each shows.

What stands at a position of the sequence follows from the seed alone, so resuming at a step needs nothing but the
step. Global batches are always full: one that reaches past the end of an epoch goes on in the next.
"""

import functools
import io
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.schema import SCHEMA_VERSION, SUB_SUFFIX
from lotlip_data.manifests.subcaptions import SplitMode
from lotlip_data.training.data.tokenizer import join_sub_captions

Content = TypeVar("Content")

Place = tuple[int, int, int]
"""Epoch, shard and row of a sample."""


class DataError(UserError):
    """The dataset is missing, damaged, or lacks what is asked of it."""


@dataclass(frozen=True)
class Shard:
    """A tar with its Parquet twin; both hold `samples` samples in the same order."""

    tar: str
    parquet: str
    sha256: str
    samples: int


@dataclass(frozen=True)
class Dataset:
    """What dataset.json says of a run's shards."""

    url: str
    shards: tuple[Shard, ...]
    captioners: tuple[str, ...]
    sub_captions: SplitMode

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


def open_dataset(run: str) -> Dataset:
    """The dataset of the run at this path or URL. Raises DataError where there is none, or it is empty."""
    where = Run.at(run)
    try:
        content = json.loads(storage.read_bytes(where.dataset))
    except FileNotFoundError:
        raise DataError(f"{where.dataset}: there is no dataset. Run `lotlip-data shard {run}` first.") from None
    except ValueError as error:
        raise DataError(f"{where.dataset}: not JSON ({error}). Run `lotlip-data shard {run}`.") from None
    if content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{where.dataset}: of schema version {content.get('schema_version')}, this release reads {SCHEMA_VERSION}. "
            f"Remove {where.shards} and run `lotlip-data shard {run}`."
        )
    shards = tuple(
        Shard(
            tar=storage.join(where.shards, record["tar"]["name"]),
            parquet=storage.join(where.shards, record["parquet"]["name"]),
            sha256=record["tar"]["sha256"],
            samples=record["samples"],
        )
        for record in content["shards"]
        if record["samples"]
    )
    if not shards:
        raise DataError(f"{where.dataset}: the dataset holds no sample, so there is nothing to train on")
    return Dataset(where.url, shards, tuple(content["captioners"]), content["sub_captions"])


class Order:
    """The samples' endless order. In each epoch every sample stands once: shards in random order, and rows in each.

    Which samples share a shard is random from the start (rows are mixed before they are downloaded), so nothing needs
    a shuffle buffer, and one or two shards are open at a time. An epoch's order is cut into `lanes` of like length, and
    each goes on by itself: processes that have lanes of their own read shards of their own.
    """

    def __init__(self, counts: Sequence[int], seed: int, lanes: int = 1) -> None:
        self._counts = np.asarray(counts)
        self._seed = seed
        self.samples = int(self._counts.sum())
        self._bounds = [self.samples * lane // lanes for lane in range(lanes + 1)]

    def take(self, start: int, count: int, lane: int = 0) -> list[Place]:
        """The lane's positions start … start + count − 1."""
        found: list[Place] = []
        least, most = self._bounds[lane : lane + 2]
        while count:
            epoch, offset = divmod(start, most - least)
            offset += least
            shards, ends = self._epoch(epoch)
            at = int(np.searchsorted(ends, offset, side="right"))
            shard = int(shards[at])
            rows = self._rows(epoch, shard)
            first = offset - (int(ends[at]) - len(rows))
            chosen = rows[first : first + min(count, most - offset)].tolist()
            found += [(epoch, shard, row) for row in chosen]
            start, count = start + len(chosen), count - len(chosen)
        return found

    @functools.lru_cache(maxsize=4)  # noqa: B019 - an Order lives as long as its training
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shards = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._counts))
        return shards, np.cumsum(self._counts[shards])

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def _rows(self, epoch: int, shard: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 1, epoch, shard]).permutation(self._counts[shard])


@dataclass(frozen=True)
class Texts:
    """What one sample shows at one step."""

    raw: str
    long: list[str]


class TextPicker:
    """Picks T long texts of a sample, and S consecutive sub-captions of each, at random.

    The captioners differ where the sample has as many; where it has fewer long texts than T some come twice, with
    sub-captions of their own. A sample without any shows its raw text in their place.
    """

    def __init__(self, captioners: Sequence[str], long_texts: int, sub_captions: int, mode: SplitMode) -> None:
        self.captioners = list(captioners)
        self.long_texts = long_texts
        self.sub_captions = sub_captions
        self.mode = mode

    def pick(self, sample: dict[str, Any], rng: np.random.Generator) -> Texts:
        raw = sample["raw"] or ""
        if not self.long_texts:
            return Texts(raw, [])
        there = [pieces for name in self.captioners if (pieces := sample[name + SUB_SUFFIX])]
        if not there:
            return Texts(raw, [raw] * self.long_texts)
        rounds = -(-self.long_texts // len(there))
        chosen = np.concatenate([rng.permutation(len(there)) for _ in range(rounds)])[: self.long_texts]
        return Texts(raw, [self._window(there[index], rng) for index in chosen])

    def _window(self, pieces: list[str], rng: np.random.Generator) -> str:
        count = min(self.sub_captions, len(pieces))
        first = int(rng.integers(len(pieces) - count + 1))
        return join_sub_captions(pieces[first : first + count], self.mode)


class TextReader:
    """The texts of a shard's samples, from its Parquet twin; the last few shards stay in memory."""

    def __init__(self, dataset: Dataset, captioners: Sequence[str], open_shards: int = 3) -> None:
        self._dataset = dataset
        self._columns = ["key", "raw", *(name + SUB_SUFFIX for name in captioners)]
        self.shard = kept(self._read, open_shards)
        """The texts of a shard by its index."""

    def _read(self, index: int) -> list[dict[str, Any]]:
        shard = self._dataset.shards[index]
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(shard.parquet)), columns=self._columns)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{shard.parquet}: cannot be read ({error}). Run `lotlip-data verify` on the run."
            ) from error
        if len(table) != shard.samples:
            raise DataError(f"{shard.parquet}: {len(table)} samples, dataset.json says {shard.samples}")
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def kept(read: Callable[[int], Content], most: int) -> Callable[[int], Content]:
    """`read`, which remembers the last few shards it was called for; several threads never read one twice."""
    cached, turn = functools.lru_cache(most)(read), threading.Lock()

    def get(index: int) -> Content:
        with turn:
            return cached(index)

    return get


def captioners_of(dataset: Dataset, chosen: Sequence[str]) -> tuple[str, ...]:
    """The chosen captioners, or all. Raises DataError where the dataset lacks one."""
    if missing := [name for name in chosen if name not in dataset.captioners]:
        raise DataError(f"captioners: the dataset has no {', '.join(missing)}; it has {', '.join(dataset.captioners)}")
    return tuple(chosen) or dataset.captioners


class Batches:
    """Batch k as a pure function of k: which samples, and which texts of each.

    A global batch takes the next samples of every lane; `lanes` are those of `of` that this process has.
    """

    def __init__(
        self,
        dataset: Dataset,
        picker: TextPicker,
        batch: int,
        seed: int,
        *,
        lanes: Sequence[int] = (0,),
        of: int = 1,
    ) -> None:
        self._order = Order([shard.samples for shard in dataset.shards], seed, of)
        self._reader = TextReader(dataset, picker.captioners if picker.long_texts else (), open_shards_of(lanes))
        self._picker = picker
        self._lanes = lanes
        self._lane_batch = batch // of
        self._seed = seed

    def places(self, step: int) -> list[Place]:
        """The samples of this step's global batch that are this process's."""
        start, count = step * self._lane_batch, self._lane_batch
        return [place for lane in self._lanes for place in self._order.take(start, count, lane)]

    def texts(self, places: Sequence[Place]) -> list[Texts]:
        """What each of them shows."""
        return [
            self._picker.pick(self._reader.shard(shard)[row], np.random.default_rng([self._seed, 2, epoch, shard, row]))
            for epoch, shard, row in places
        ]


def open_shards_of(lanes: Sequence[int]) -> int:
    """How many shards a process keeps open: of each of its lanes the present one, and two that begin and end."""
    return len(lanes) + 2
