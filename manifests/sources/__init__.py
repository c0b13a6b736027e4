"""What identifies and selects the rows of a source: published lists, filters, host names and uids."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.manifests.sources.catalog import published, scales

__all__ = ["published", "scales"]
__getattr__ = lazy_exports(__name__, {"catalog": ["published", "scales"]})
