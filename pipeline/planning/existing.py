"""What `plan` says about a source of images that exist: its containers, and their rows from a sample of them."""

from collections import Counter
from collections.abc import Iterator

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.existing_images.containers import containers_of
from lotlip_data.pipeline.existing_images.filtering import usable_rows
from lotlip_data.pipeline.existing_images.rows import RejectedRow
from lotlip_data.pipeline.planning.source_plan import SourcePlan

SAMPLED_CONTAINERS = 4
"""Containers that are read of a source, evenly spaced. Of a tar every header has to be read to count its images."""


def sample_containers(source: Source, plan: SourcePlan, rows: int, manifest: Manifest) -> None:
    """Read the names of some containers of a source, and fill its plan.

    Args:
        source: The source; its images exist.
        plan: The plan to fill, with its name only.
        rows: Approximate number of rows to read of tables and folders.
        manifest: The manifest of the source.

    Raises:
        UserError: A container is missing or damaged.
    """
    sizes = [(container.url, container.rows) for container in _containers(source, manifest)]
    plan.containers, plan.columns = len(sizes), source.needed
    plan.files = len({url for url, _ in sizes})
    wanted = evenly(list(range(len(sizes))), SAMPLED_CONTAINERS)
    sampled = [container for number, container in enumerate(_containers(source, manifest)) if number in wanted]
    sample = _Sample()
    read_rows = 0
    for container in sampled:
        limit = None if container.rows is None else max(1, rows // len(sampled))
        read_rows += sample.read(container, source, limit)
    plan.seen, plan.taken, plan.blank = sample.seen, sample.taken, sample.blank
    plan.texts = sample.taken - sample.blank
    plan.invalid, plan.filtered = dict(sample.invalid.most_common()), dict(sample.filtered.most_common())
    known = [rows for _, rows in sizes if rows is not None]
    plan.read_whole = len(sampled) == len(sizes) and (not known or sum(known) == sample.seen)
    if plan.read_whole:
        plan.rows, plan.rows_exact = sample.seen, True
    elif len(known) == len(sizes):
        plan.rows, plan.rows_exact = sum(known), True
    else:
        plan.rows = _extrapolated([url for url, _ in sizes], sampled, read_rows)
    if plan.rows is not None:
        plan.images = round(plan.rows * sample.taken / sample.seen) if sample.seen else 0
        plan.images = plan.images if source.sample is None else min(plan.images, source.sample)


def _containers(source: Source, manifest: Manifest) -> Iterator[Container]:
    """The containers, one after another: those of a large folder do not fit in memory."""
    return containers_of(source, manifest.samples_per_shard, manifest.seed)


def _extrapolated(urls: list[str], sampled: list[Container], rows: int) -> int | None:
    """The rows of tars, by their sizes; None if the storage reports no sizes."""
    sizes = [storage.size(url) for url in urls]
    if None in sizes:
        return None
    by_url = {url: size or 0 for url, size in zip(urls, sizes, strict=True)}
    read = sum(by_url[container.url] for container in sampled)
    return round(rows * sum(by_url.values()) / read) if read else 0


class _Sample:
    """The rows read of one source, as counts."""

    def __init__(self) -> None:
        self.invalid: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.taken = self.blank = 0

    @property
    def seen(self) -> int:
        return self.taken + self.invalid.total() + self.filtered.total()

    def read(self, container: Container, source: Source, limit: int | None) -> int:
        """Count the rows of a container, at most about `limit`; returns their number."""
        before = self.seen
        for row in usable_rows(container, source, images=False, filtered=self._count_filtered):
            if isinstance(row, RejectedRow):
                self.invalid[row.reason] += 1
            else:
                self.taken += 1
                self.blank += not any(row.texts)
            if limit is not None and self.seen - before >= limit:
                break
        return self.seen - before

    def _count_filtered(self, reason: str, rows: int) -> None:
        self.filtered[reason] += rows
