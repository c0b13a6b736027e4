"""Which containers a run reads, in which order, and which of their images it uses.

    image sources → containers in seeded order → (rows counted, samples drawn) → lists/00012.json …, one shard each

The order is that of a hash of each container, keyed by the manifest's seed. Only listings and the metadata of tables
are read, unless a `sample` has to be drawn: then the names of all images of the source are read once, and the values
that its filter needs. A sample is exact: the images with the lowest hashes of their names, over all containers.
"""

import array
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from lotlip_data.manifests import artifacts, wording
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets
from lotlip_data.pipeline.existing_images.containers import containers_of
from lotlip_data.pipeline.existing_images.filtering import usable_rows
from lotlip_data.pipeline.existing_images.rows import RejectedRow
from lotlip_data.pipeline.url_lists.partition import PartitionError, check_shard_number, store_list
from lotlip_data.pipeline.url_lists.rows import Reject
from lotlip_data.pipeline.url_lists.sampling import ALL, SAMPLER_BUCKETS, SAMPLER_BUFFER_BYTES, hashes, sample_key

logger = logging.getLogger(__name__)

_COUNT_THREADS = 4
_CONTAINER = TypeAdapter(Container)
_RANKS = pa.schema([("order", pa.uint64()), ("rank", pa.uint64()), ("container", pa.int32())])
"""An image that can be drawn: its hash with the seed of its source, and with that of the manifest."""


@dataclass(frozen=True)
class ContainerShard:
    """What one shard reads: `lists/NNNNN.json`."""

    source: str
    """Name of the source in the manifest."""
    container: Container
    highest: dict[str, int] = field(default_factory=dict)
    """By key of the hash of an image's name, the highest hash of the images that are used. Empty: all are used."""

    def draws(self, names: Sequence[str]) -> np.ndarray:
        """Which of these images are used; bool, one per name."""
        drawn = np.ones(len(names), bool)
        for key, highest in self.highest.items():
            drawn &= _hashes(self.container, names, key) <= np.uint64(highest)
        return drawn


def read_container_shard(run: Run, shard: int) -> ContainerShard:
    """What a shard reads. Raises UserError if the object is missing or damaged."""
    return artifacts.read_json(run.container_list(shard), list_remedy(run, shard), ContainerShard)


def list_remedy(run: Run, shard: int) -> str:
    """The remedy for a damaged list of a shard that is a container."""
    return f"Remove {run.container_list(shard)} and {run.plan}; `lotlip-data download` rebuilds both."


def image_identity(container: Container, name: str) -> str:
    """What identifies an image beside all others of its source, however tables and folders are cut into containers."""
    return f"{container.kind} {container.url} {name}"


def _hashes(container: Container, names: Sequence[str], key: str) -> np.ndarray:
    return hashes(pa.array([image_identity(container, name) for name in names], pa.string()), key)


class _SpilledContainers:
    """The containers of all sources in a file: those of a large folder hold the names and the texts of its files.

    Args:
        path: A file to write.
        seed: The manifest's seed, for their order.
    """

    def __init__(self, path: pathlib.Path, seed: int) -> None:
        self._file = path.open("w+b")
        self._seed = str(seed)
        self._offsets, self._orders = array.array("Q"), array.array("Q")
        self._sources: list[str] = []
        self.rows: list[int | None] = []
        """By number, the rows of a container; None if it has to be read to know them."""

    def add(self, source: Source, container: Container) -> None:
        """Add a container; its number is that of the containers before it."""
        first_file = container.files[0].name if container.files else ""
        text = f"{source.name} {container.kind} {container.url} {container.first} {first_file}"
        self._orders.extend(hashes(pa.array([text], pa.string()), self._seed).tolist())
        self._offsets.append(self._file.tell())
        self._file.write(json.dumps(asdict(container)).encode() + b"\n")
        self._sources.append(source.name)
        self.rows.append(container.rows)

    def __len__(self) -> int:
        return len(self._offsets)

    def source(self, number: int) -> str:
        """The name of a container's source."""
        return self._sources[number]

    def container(self, number: int) -> Container:
        """A container by its number."""
        self._file.seek(self._offsets[number])
        return _CONTAINER.validate_json(self._file.readline())

    def in_order(self) -> list[int]:
        """The numbers in seeded order."""
        return np.argsort(np.array(self._orders, np.uint64), kind="stable").tolist()


class ExistingImages:
    """The containers of a manifest's image sources, and the samples that are drawn from them.

    Args:
        manifest: The manifest.
        folder: A scratch folder.
        reject: Receives the unusable rows of tables about folders.

    Raises:
        UserError: A file is missing or damaged, or a source has no file.
    """

    def __init__(self, manifest: Manifest, folder: pathlib.Path, reject: Reject) -> None:
        self._manifest, self._folder = manifest, folder
        self._sources = {source.name: source for source in manifest.sources if source.is_images}
        self._containers = self._list_containers(reject)
        self._draws: dict[str, ExternalBuckets] = {}
        """By source of which a sample is drawn, its images."""
        self._highest: dict[str, int] = {}
        """By source with a sample of its own, the highest hash in it."""
        self._ranks: ExternalBuckets | None = None
        for name, source in self._sources.items():
            if source.sample is not None or manifest.sample is not None:
                self._draws[name] = self._read_names(source)
            if source.sample is not None:
                self._highest[name] = _highest_drawn(self._draws[name], source.sample)

    def _list_containers(self, reject: Reject) -> _SpilledContainers:
        containers = _SpilledContainers(self._folder / "containers.jsonl", self._manifest.seed)
        for source in self._sources.values():
            logger.info(f"listing the images of {source.name}")
            before = len(containers)
            for container in containers_of(source, self._manifest.samples_per_shard, self._manifest.seed, reject):
                containers.add(source, container)
            if len(containers) == before:
                raise PartitionError(f"{source.name}: no images in {', '.join(source.files)}")
        return containers

    def _read_names(self, source: Source) -> ExternalBuckets:
        """The images of a source that its filter keeps."""
        numbers = [number for number in range(len(self._containers)) if self._containers.source(number) == source.name]
        logger.info(f"{source.name}: counting the images of {wording.count(len(numbers), 'container')} for the sample")
        buckets = self._buckets(f"draw-{source.name}", SAMPLER_BUCKETS)
        keys = sample_key(source), str(self._manifest.seed)
        containers = ((number, self._containers.container(number)) for number in numbers)
        for number, columns in map_ordered(partial(_hashes_of_names, source, keys), containers, _COUNT_THREADS):
            owner = np.full(len(columns[0]), number, np.int32)
            buckets.add(pa.table([*columns, owner], schema=_RANKS))
        buckets.flush()
        return buckets

    def _buckets(self, name: str, count: int) -> ExternalBuckets:
        folder = self._folder / name
        folder.mkdir()
        return ExternalBuckets(folder, count, _RANKS, SAMPLER_BUFFER_BYTES)

    def ranks(self, number: int, count: int) -> np.ndarray:
        """The hashes, with the manifest's seed, of the images in the bucket `number` of `count`; uint64.

        Images outside the sample of their source do not count.
        """
        if self._ranks is None:
            self._ranks = self._buckets("ranks", count)
            for rows in self._drawn_images():
                by_rank = [rows["rank"], rows["order"], rows["container"]]
                self._ranks.add(pa.table(by_rank, schema=_RANKS))
            self._ranks.flush()
        return np.asarray(self._ranks.bucket(number)["order"].to_numpy())

    def _drawn_images(self) -> Iterator[pa.Table]:
        for name, buckets in self._draws.items():
            highest = np.uint64(self._highest.get(name, ALL))
            for rows in buckets:
                yield rows.filter(pa.array(rows["order"].to_numpy() <= highest))

    def store(self, run: Run, first: int, highest_rank: int | None) -> list[int | None]:
        """Write the containers that have an image to use as shards.

        Args:
            run: The run.
            first: Number of the first of them.
            highest_rank: The highest hash, with the manifest's seed, of its sample. None: it has no sample.

        Returns:
            By container that is written, its rows; None where they are not known.

        Raises:
            PartitionError: There are too many shards.
        """
        drawn = self._drawn_counts(highest_rank)
        rows: list[int | None] = []
        for number in self._containers.in_order():
            source = self._sources[self._containers.source(number)]
            count = int(drawn[number]) if source.name in self._draws else self._containers.rows[number]
            if count == 0:
                continue
            shard = first + len(rows)
            check_shard_number(shard)
            content = ContainerShard(
                source.name, self._containers.container(number), self._limits(source, highest_rank)
            )
            store_list(run, run.container_list(shard), artifacts.encode_json(asdict(content)))
            rows.append(count)
        return rows

    def _drawn_counts(self, highest_rank: int | None) -> np.ndarray:
        """The images that are used, by container of a source of which a sample is drawn."""
        counts = np.zeros(len(self._containers), np.int64)
        highest = np.uint64(ALL if highest_rank is None else highest_rank)
        for rows in self._drawn_images():
            used = rows["container"].to_numpy()[rows["rank"].to_numpy() <= highest]
            counts += np.bincount(used, minlength=len(counts))
        return counts

    def _limits(self, source: Source, highest_rank: int | None) -> dict[str, int]:
        own = {sample_key(source): self._highest[source.name]} if source.name in self._highest else {}
        return own | ({} if highest_rank is None else {str(self._manifest.seed): highest_rank})


def _hashes_of_names(
    source: Source, keys: Sequence[str], numbered: tuple[int, Container]
) -> tuple[int, list[np.ndarray]]:
    """The hashes, with each of `keys`, of the images of a container that the source's filter keeps."""
    number, container = numbered
    rows = usable_rows(container, source, images=False)
    names = [row.name for row in rows if not isinstance(row, RejectedRow)]
    return number, [_hashes(container, names, key) for key in keys]


def _highest_drawn(buckets: Iterable[pa.Table], sample: int) -> int:
    """The hash of the last image of a sample."""
    left = sample
    for rows in buckets:
        if rows.num_rows >= left:
            return int(np.partition(rows["order"].to_numpy(), left - 1)[left - 1])
        left -= rows.num_rows
    return ALL
