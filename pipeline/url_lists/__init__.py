"""URL lists: read, filter, sample, shuffle, and partition into shards."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.url_lists.partition import load_partition
    from lotlip_data.pipeline.url_lists.reader import read_source

__all__ = ["load_partition", "read_source"]
__getattr__ = lazy_exports(
    __name__,
    {
        "partition": ["load_partition"],
        "reader": ["read_source"],
    },
)
