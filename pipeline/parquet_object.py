"""A Parquet object that another command wrote, or an error that names it and says how to have it again."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError


def read(url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows at `url`, all in memory: these `columns`, or all. Something else names it, so it has to be there.

    Raises UserError with the `remedy` where it is missing or damaged, and what else the storage raises.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"{url}: is missing, though something else names it. {remedy}") from None
    return parse(content, url, remedy, columns)


def parse(content: bytes, url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """As `read`, of bytes at hand."""
    try:
        return pq.read_table(pa.BufferReader(content), columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's own
        why = " ".join(str(error).split())
        raise UserError(f"{url}: cannot be read ({why}). {remedy}") from error
