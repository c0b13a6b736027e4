"""What `plan` says about a source of images that exist: its containers, and their rows from the beginnings of some.

Images are not read. Of a tar that is not on this machine, though, all that comes before a text has to be transferred,
so only its first rows are read.
"""

from collections import Counter
from collections.abc import Iterator

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.iteration import evenly, map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.existing_images.containers import containers_of
from lotlip_data.pipeline.existing_images.filtering import usable_rows
from lotlip_data.pipeline.existing_images.rows import RejectedRow
from lotlip_data.pipeline.existing_images.tars import estimated_samples
from lotlip_data.pipeline.planning.raw_texts import TextSigns
from lotlip_data.pipeline.planning.source_plan import SourcePlan

SAMPLED_CONTAINERS = 4
"""Maximum number of containers sampled per source, evenly spaced."""
REMOTE_TAR_ROWS = 200
"""Maximum number of rows read of a tar that is not on this machine."""


def sample_containers(source: Source, plan: SourcePlan, rows: int, manifest: Manifest) -> None:
    """Read the names and texts of some containers of a source, and fill its plan.

    Args:
        source: The source; its images exist.
        plan: The plan to fill, with its name only.
        rows: Approximate number of rows to read.
        manifest: The manifest of the source.

    Raises:
        UserError: A container is missing or damaged.
    """
    lengths = [(container.url, container.rows) for container in _containers(source, manifest)]
    plan.containers, plan.columns = len(lengths), source.needed
    plan.files = len({url for url, _ in lengths})
    wanted = frozenset(evenly(list(range(len(lengths))), SAMPLED_CONTAINERS))
    sampled = [container for number, container in enumerate(_containers(source, manifest)) if number in wanted]
    sample = _Sample()
    limits = [_limit(container, max(1, rows // len(sampled))) for container in sampled]
    ended = [sample.read(container, source, limit) for container, limit in zip(sampled, limits, strict=True)]
    sample.fill(plan)
    if source.url is not None and sample.taken and not sample.urls:
        plan.remarks.append(f"no row read has a URL in {source.url!r} (`url`): images are identified by their content")
    plan.read_whole = all(ended) and len(sampled) == len(lengths)
    known = [length for _, length in lengths if length is not None]
    if plan.read_whole:
        plan.rows, plan.rows_exact = sample.seen, True
    elif len(known) == len(lengths):
        plan.rows, plan.rows_exact = sum(known), True
    elif source.format_of(source.files[0]) == "webdataset":
        plan.rows = _extrapolated([url for url, _ in lengths], sampled, limits)
    if plan.rows is not None:
        plan.images = round(plan.rows * sample.taken / sample.seen) if sample.seen else 0
        plan.images = plan.images if source.sample is None else min(plan.images, source.sample)


def _containers(source: Source, manifest: Manifest) -> Iterator[Container]:
    """The containers, one after another: those of a large folder do not fit in memory."""
    return containers_of(source, manifest.samples_per_shard, manifest.seed)


def _limit(container: Container, rows: int) -> int:
    """The number of rows to read of a container."""
    is_remote = container.kind == "tar" and not storage.is_local(container.url)
    return min(rows, REMOTE_TAR_ROWS) if is_remote else rows


def _extrapolated(urls: list[str], sampled: list[Container], limits: list[int]) -> int | None:
    """The rows of tars, by their sizes; None if the storage reports no sizes."""
    sizes = dict(zip(urls, map_ordered(storage.size, urls), strict=True))
    if None in sizes.values():
        return None
    rows = sum(estimated_samples(tar.url, limit) or 0 for tar, limit in zip(sampled, limits, strict=True))
    read = sum(sizes[tar.url] or 0 for tar in sampled)
    return round(rows * sum(size or 0 for size in sizes.values()) / read) if read else 0


class _Sample:
    """The rows read of one source, as counts."""

    def __init__(self) -> None:
        self.invalid: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.defects: Counter[str] = Counter()
        self.signs = TextSigns()
        self.taken = self.blank = self.urls = 0

    @property
    def seen(self) -> int:
        return self.taken + self.invalid.total() + self.filtered.total()

    def read(self, container: Container, source: Source, limit: int) -> bool:
        """Count the rows of a container until about `limit` are seen; return whether it ended before that."""
        end = self.seen + limit
        for row in usable_rows(container, source, images=False, filtered=self._count_filtered):
            if self.seen >= end:
                return False
            if isinstance(row, RejectedRow):
                self.invalid[row.reason] += 1
                continue
            self.taken += 1
            self.blank += not any(row.texts)
            self.urls += row.url is not None
            self.signs.add(row.texts)
            if row.defect is not None:
                self.defects[row.defect] += 1
        return True

    def fill(self, plan: SourcePlan) -> None:
        """Put the counts into the plan."""
        plan.seen, plan.taken, plan.blank = self.seen, self.taken, self.blank
        plan.invalid, plan.filtered = dict(self.invalid.most_common()), dict(self.filtered.most_common())
        plan.not_texts = dict(self.defects.most_common())
        plan.signs, plan.texts = dict(self.signs.counts), self.signs.texts

    def _count_filtered(self, reason: str, rows: int) -> None:
        self.filtered[reason] += rows
