"""Reads the rows of a container that its source's filter keeps."""

from collections.abc import Callable, Iterator

from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.row_filter import RowFilter
from lotlip_data.pipeline.existing_images.reader import iter_rows
from lotlip_data.pipeline.existing_images.rows import ExistingRow, RejectedRow
from lotlip_data.pipeline.url_lists.reader import Filtered, kept_rows

BATCH = 64
"""Rows that are filtered at a time, with their images in memory."""


def _uncounted(reason: str, rows: int) -> None:
    """Ignore a count."""


def usable_rows(
    container: Container,
    source: Source,
    images: bool = True,
    remedy: str = "",
    filtered: Filtered = _uncounted,
    digested: Callable[[Digest], None] | None = None,
) -> Iterator[ExistingRow | RejectedRow]:
    """The rows of a container that the filter of its source keeps, and those that cannot be read, in order.

    Args:
        container: The container.
        source: Its source.
        images: Whether to read the images too.
        remedy: What to do if the container is damaged or missing; the end of the error message.
        filtered: Receives the numbers of rows that the filter excludes.
        digested: Receives the digest of the container after the last row.

    Raises:
        UserError: The container is missing or damaged, or its values do not suit the filter.
    """
    rows = iter_rows(container, source, images, remedy, digested=digested)
    if source.filter is None:
        yield from rows
        return
    keep = RowFilter(source.filter)
    where = f"{container}: the `filter` of source {source.name}"
    for batch in batched(rows, BATCH):
        readable = [row for row in batch if isinstance(row, ExistingRow)]
        columns = {name: [row.values.get(name) for row in readable] for name in keep.columns}
        kept = iter(kept_rows(columns, len(readable), keep, where, filtered))
        yield from (row for row in batch if isinstance(row, RejectedRow) or next(kept))
