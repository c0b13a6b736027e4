"""The dataset as an endless, seeded sequence of samples, and the reader of their texts.

The sample at a position of the sequence depends on the seed alone, so resuming needs only the number of the step.
Global batches are always full: a batch that crosses the end of an epoch continues in the next epoch.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.formats import dataset_index, schema
from lotlip_data.manifests.formats.dataset_index import DatasetError, ShardFile
from lotlip_data.manifests.formats.schema import SUB_SUFFIX
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.subcaptions import SplitMode
from lotlip_data.training.data.text_picker import SampleTexts, TextPicker, TextRow

Content = TypeVar("Content")

VERIFY_REMEDY = "Run `lotlip-data verify` on the run."

# Second number of each seed: an independent random stream per purpose (crops in pixel_reader.py are the fourth).
_SHARD_STREAM, _ROW_STREAM, _TEXT_STREAM = 0, 1, 2


class SampleRef(NamedTuple):
    """A sample in an epoch: the index of its shard, and its row in that shard."""

    epoch: int
    shard: int
    row: int


class DataError(DatasetError):
    """A file of the dataset is damaged, or the dataset lacks what the training needs."""


@dataclass(frozen=True)
class Dataset:
    """The shards of a run's training split, as dataset.json lists them."""

    url: str
    """The run, as a path or URL."""
    shards: tuple[ShardFile, ...]
    captioners: tuple[str, ...]
    sub_captions: SplitMode

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


def open_dataset(run: str) -> Dataset:
    """Open the training split of the dataset of the run at a path or URL.

    Raises:
        DatasetError: There is no dataset, its dataset.json is damaged, or the training split is empty.
    """
    layout = Run.at(run)
    content = dataset_index.read_samples_index(layout)
    shards = tuple(file for file in dataset_index.shard_files(layout, content) if file.split == "train")
    if not shards:
        raise DataError(f"{layout.dataset}: the dataset has no samples to train on")
    return Dataset(layout.url, shards, tuple(content["captioners"]), content["sub_captions"])


def select_captioners(dataset: Dataset, names: Sequence[str]) -> tuple[str, ...]:
    """The named captioners (paper, Table 9), or all if there are no names. Raises DataError for an unknown one."""
    if missing := [name for name in names if name not in dataset.captioners]:
        raise DataError(f"captioners: the dataset has no {', '.join(missing)}; it has {', '.join(dataset.captioners)}")
    return tuple(names) or dataset.captioners


class SampleOrder:
    """The endless order of the samples. Each epoch has every sample once: shards in random order, and their rows.

    No shuffle buffer is needed: rows are shuffled before the download, so the samples of a shard are a random set.
    One or two shards are open at a time. The order of an epoch is cut into `lanes` parts of similar length, and each
    lane continues on its own in the next epoch. Processes have lanes of their own, so they read different shards.
    """

    def __init__(self, counts: Sequence[int], seed: int, lanes: int = 1) -> None:
        """`counts` are the samples of each shard."""
        self._counts = np.asarray(counts)
        self._seed = seed
        self.samples = int(self._counts.sum())
        self._lane_bounds = [self.samples * lane // lanes for lane in range(lanes + 1)]

    def take(self, start: int, count: int, lane: int = 0) -> list[SampleRef]:
        """The samples at the positions `start` … `start + count - 1` of a lane."""
        samples: list[SampleRef] = []
        lane_start, lane_end = self._lane_bounds[lane : lane + 2]
        while count:
            epoch, offset = divmod(start, lane_end - lane_start)
            offset += lane_start
            shards, ends = self._shard_order(epoch)
            position = int(np.searchsorted(ends, offset, side="right"))
            shard = int(shards[position])
            rows = self._row_order(epoch, shard)
            first = offset - (int(ends[position]) - len(rows))
            taken = rows[first : first + min(count, lane_end - offset)].tolist()
            samples += [SampleRef(epoch, shard, row) for row in taken]
            start, count = start + len(taken), count - len(taken)
        return samples

    @functools.lru_cache(maxsize=4)  # noqa: B019 - the order lives as long as its training
    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in their order, and the position in the epoch at which each of them ends."""
        shards = np.random.default_rng([self._seed, _SHARD_STREAM, epoch]).permutation(len(self._counts))
        return shards, np.cumsum(self._counts[shards])

    @functools.lru_cache(maxsize=16)  # noqa: B019 - the order lives as long as its training
    def _row_order(self, epoch: int, shard: int) -> np.ndarray:
        return np.random.default_rng([self._seed, _ROW_STREAM, epoch, shard]).permutation(self._counts[shard])


class TextReader:
    """Reads the texts of a shard from its Parquet twin. The latest shards stay in memory."""

    def __init__(
        self, dataset: Dataset, captioners: Sequence[str], open_shards: int = 3, *, scores: bool = False
    ) -> None:
        """`scores`: read the scores of the captioners' texts too. Raises DataError if the dataset has none."""
        self._dataset = dataset
        self._captioners = tuple(captioners) if scores else ()
        self._columns = ["key", "raw", *(name + SUB_SUFFIX for name in captioners)]
        if scores:
            columns = (schema.text_score_column, schema.piece_scores_column)
            score_columns = [column(name, schema.SCORE) for name in captioners for column in columns]
            _require_columns(dataset, score_columns)
            self._columns += score_columns
        self.shard = shard_cache(self._read, open_shards)
        """The rows of a shard, by the index of the shard."""

    def _read(self, index: int) -> list[TextRow]:
        shard = self._dataset.shards[index]
        table = artifacts.read_parquet(shard.parquet_url, VERIFY_REMEDY, self._columns, DataError, shard.parquet.digest)
        if len(table) != shard.samples:
            raise DataError(
                f"{shard.parquet_url}: has {len(table)} samples, but dataset.json lists {shard.samples}. "
                f"{VERIFY_REMEDY}"
            )
        rows: list[TextRow] = table.to_pylist()
        for row, name in itertools.product(rows, self._captioners):
            pieces, scores = row[name + SUB_SUFFIX], row[schema.piece_scores_column(name, schema.SCORE)]
            if scores is not None and len(scores) != len(pieces or ()):
                raise DataError(
                    f"{shard.parquet_url}: {row['key']} has {len(scores)} scores for {len(pieces or ())} sub-captions "
                    f"of {name}. {VERIFY_REMEDY}"
                )
        return rows


def _require_columns(dataset: Dataset, columns: Sequence[str]) -> None:
    """Raise DataError if the dataset lacks a column of scores. All shards of a dataset have the same columns."""
    url = dataset.shards[0].parquet_url
    with artifacts.open_parquet(url, VERIFY_REMEDY, DataError) as file:
        names = file.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{url}: the dataset has no scores ({', '.join(missing)}), which text_weights: score and "
            "best_sub_captions need. Run `lotlip-data score` and `lotlip-data shard`, or remove these settings"
        )


def shard_cache(read: Callable[[int], Content], size: int) -> Callable[[int], Content]:
    """`read` with its latest `size` results cached. Several threads never read one shard twice."""
    cached, lock = functools.lru_cache(size)(read), threading.Lock()

    def get(index: int) -> Content:
        with lock:
            return cached(index)

    return get


class Batches:
    """Batch k as a pure function of k: its samples, and the texts of each sample.

    A global batch takes the next samples of every lane. `lanes` are the lanes of this process, out of `lane_count`.
    """

    def __init__(
        self,
        dataset: Dataset,
        picker: TextPicker,
        batch_size: int,
        seed: int,
        *,
        lanes: Sequence[int] = (0,),
        lane_count: int = 1,
    ) -> None:
        """`batch_size` is that of the global batch, a multiple of `lane_count`."""
        self._order = SampleOrder([shard.samples for shard in dataset.shards], seed, lane_count)
        self._reader = TextReader(
            dataset,
            picker.captioners if picker.long_texts else (),
            open_shard_count(lanes),
            scores=picker.scores is not None,
        )
        self._picker = picker
        self._lanes = lanes
        self._samples_per_lane = batch_size // lane_count
        self._seed = seed

    def samples(self, step: int) -> list[SampleRef]:
        """This process's samples of the step's global batch."""
        start, count = step * self._samples_per_lane, self._samples_per_lane
        return [sample for lane in self._lanes for sample in self._order.take(start, count, lane)]

    def texts(self, samples: Sequence[SampleRef]) -> list[SampleTexts]:
        """The texts of each sample. They depend on the seed and the sample alone."""
        return [
            self._picker.pick(
                self._reader.shard(shard)[row], np.random.default_rng([self._seed, _TEXT_STREAM, epoch, shard, row])
            )
            for epoch, shard, row in samples
        ]


def open_shard_count(lanes: Sequence[int]) -> int:
    """Number of shards that a process keeps open: the current one of each lane, one that ends and one that begins."""
    return len(lanes) + 2
