"""Which containers a run reads, in which order, and which of their images it uses.

    image sources → containers in seeded order → (rows counted, samples drawn) → lists/00012.json …, one shard each

The order is that of a hash of each container, keyed by the manifest's seed. Only listings and the metadata of tables
are read, unless a `sample` has to be drawn: then the names of all images of the source are read once, and the values
that its filter needs. A sample is exact: the images with the lowest hashes of their names, over all containers.
"""

import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

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
from lotlip_data.pipeline.url_lists.sampling import ALL, SAMPLER_BUCKETS, SAMPLER_BUFFER_BYTES, hashes, sample_key

logger = logging.getLogger(__name__)

_COUNT_THREADS = 4
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


def identity(container: Container) -> str:
    """The name of a container in hashes."""
    return f"{container.kind} {container.url} {container.first}"


def _hashes(container: Container, names: Sequence[str], key: str) -> np.ndarray:
    prefix = identity(container)
    return hashes(pa.array([f"{prefix} {name}" for name in names], pa.string()), key)


class ExistingImages:
    """The containers of a manifest's image sources, and the samples that are drawn from them.

    Args:
        manifest: The manifest.
        folder: A scratch folder.

    Raises:
        UserError: A file is missing or damaged, or a source has no file.
    """

    def __init__(self, manifest: Manifest, folder: pathlib.Path) -> None:
        self._manifest, self._folder = manifest, folder
        self._sources = {source.name: source for source in manifest.sources if source.is_images}
        self._containers = self._ordered_containers()
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

    def _ordered_containers(self) -> list[tuple[Source, Container]]:
        containers = []
        for source in self._sources.values():
            logger.info(f"listing the images of {source.name}")
            of_source = list(containers_of(source, self._manifest.samples_per_shard, self._manifest.seed))
            if not of_source:
                raise PartitionError(f"{source.name}: no images in {', '.join(source.files)}")
            containers += [(source, container) for container in of_source]
        names = [f"{source.name} {identity(container)}" for source, container in containers]
        order = np.argsort(hashes(pa.array(names, pa.string()), str(self._manifest.seed)), kind="stable")
        return [containers[place] for place in order]

    def _read_names(self, source: Source) -> ExternalBuckets:
        """The images of a source that its filter keeps."""
        numbers = [number for number, (owner, _) in enumerate(self._containers) if owner is source]
        logger.info(f"{source.name}: counting the images of {wording.count(len(numbers), 'container')} for the sample")
        buckets = self._buckets(f"draw-{source.name}", SAMPLER_BUCKETS)
        read = partial(_names_of, source)
        containers = [self._containers[number][1] for number in numbers]
        for number, names in zip(numbers, map_ordered(read, containers, _COUNT_THREADS), strict=True):
            container = self._containers[number][1]
            keys = sample_key(source), str(self._manifest.seed)
            columns = [_hashes(container, names, key) for key in keys]
            buckets.add(pa.table([*columns, np.full(len(names), number, np.int32)], schema=_RANKS))
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

    def store(self, run: Run, first: int, highest_rank: int | None) -> list[int]:
        """Write the containers that have an image to use as shards.

        Args:
            run: The run.
            first: Number of the first of them.
            highest_rank: The highest hash, with the manifest's seed, of its sample. None: it has no sample.

        Returns:
            By container that is written, its rows; `samples_per_shard` where they are not known.

        Raises:
            PartitionError: There are too many shards.
        """
        drawn = self._drawn_counts(highest_rank)
        rows = []
        for number, (source, container) in enumerate(self._containers):
            count = int(drawn[number]) if source.name in self._draws else container.rows
            if count == 0:
                continue
            shard = first + len(rows)
            check_shard_number(shard)
            content = asdict(ContainerShard(source.name, container, self._limits(source, highest_rank)))
            store_list(run, run.container_list(shard), artifacts.encode_json(content))
            rows.append(self._manifest.samples_per_shard if count is None else count)
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


def _names_of(source: Source, container: Container) -> list[str]:
    """The images of a container that the source's filter keeps."""
    rows = usable_rows(container, source, images=False)
    return [row.name for row in rows if not isinstance(row, RejectedRow)]


def _highest_drawn(buckets: Iterable[pa.Table], sample: int) -> int:
    """The hash of the last image of a sample."""
    left = sample
    for rows in buckets:
        if rows.num_rows >= left:
            return int(np.partition(rows["order"].to_numpy(), left - 1)[left - 1])
        left -= rows.num_rows
    return ALL
