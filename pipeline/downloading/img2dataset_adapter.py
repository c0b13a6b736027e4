"""One shard through img2dataset's `Downloader`, under the guard. The only file that imports img2dataset."""

import io
import json
import os
import pathlib
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests.run_layout import SHARD_DIGITS, shard_name
from lotlip_data.manifests.schema import IMAGE_EXTENSION, IMAGES, LISTS
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading import failures as reasons
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.http_client import installed
from lotlip_data.pipeline.downloading.image_validation import prepare

ROBOTS_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
_KEY_ROWS = 10_000  # keys have four digits of row at least, however few rows a shard has


class ShardFetchError(RuntimeError):
    """The shard could not be fetched whole, through no fault of its URLs; it may be tried again."""


@dataclass(frozen=True)
class FetchedShard:
    """A shard in a local folder. `table` is what the Parquet holds: columns `schema.IMAGES`, sorted by key."""

    tar: pathlib.Path
    parquet: pathlib.Path
    table: pa.Table
    stats: dict[str, Any]
    """img2dataset's own, with what `failures.of_shard` counts: `status_dict` by the reasons of `fetch_reasons`."""

    @property
    def can_pass(self) -> bool:
        """Whether nothing was fetched, and a failure among them is of a kind that another time may not bring.

        A failure that is final, such as a name that is no host's, comes without any network too.
        """
        return not self.stats["successes"] and any(map(reasons.is_transient, self.stats["status_dict"]))


def fetch(
    rows: pa.Table, shard: int, samples_per_shard: int, settings: DownloadSettings, folder: pathlib.Path
) -> FetchedShard:
    """Fetch the images of `rows` (columns `schema.LISTS`) into the empty local `folder`.

    Raises FetchError where rows got lost on the way, because a disk was full, say.
    """
    started = time.time()
    source = folder / "rows.arrow"
    with pa.OSFile(str(source), "wb") as stream, pa.ipc.new_file(stream, LISTS) as writer:
        writer.write_table(rows.select(LISTS.names).cast(LISTS))
    with installed(settings, _expected(rows)):
        _downloader(settings, samples_per_shard, str(folder)).download_shard((shard, str(source)))
    parquet = folder / f"{shard_name(shard)}.parquet"
    table = pq.read_table(parquet)
    if table.num_rows != rows.num_rows:
        raise ShardFetchError(
            f"shard {shard}: only {table.num_rows} of {rows.num_rows} rows were written; is the disk full?"
        )
    table = _tidy(table)
    pq.write_table(table, parquet, compression="zstd")
    stats = json.loads((folder / f"{shard_name(shard)}_stats.json").read_text())
    stats |= failures.of_shard(table) | {"seconds": round(time.time() - started, 3)}
    return FetchedShard(folder / f"{shard_name(shard)}.tar", parquet, table, stats)


def _expected(rows: pa.Table) -> dict[str, dict[str, str]]:
    """By URL, as `urllib` spells it, the hashes that the lists expect of its body."""
    found: dict[str, dict[str, str]] = {}
    for column, algorithm in (("expected_sha256", "sha256"), ("expected_md5", "md5")):
        known = rows.filter(pc.is_valid(rows[column]))
        for url, digits in zip(known["url"].to_pylist(), known[column].to_pylist(), strict=True):
            found.setdefault(urllib.request.Request(url).full_url, {})[algorithm] = digits
    return found


def _downloader(settings: DownloadSettings, samples_per_shard: int, folder: str) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for its newest version
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    resizer = Resizer(
        image_size=settings.image_size,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=settings.quality,
        encode_format=IMAGE_EXTENSION,
    )
    return Downloader(
        sample_writer_class=_writer,
        resizer=GuardedResizer(resizer, settings.max_pixels),
        thread_count=settings.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=folder,
        column_list=LISTS.names,
        timeout=settings.timeout,
        number_sample_per_shard=max(samples_per_shard, _KEY_ROWS),
        oom_shard_count=SHARD_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format=IMAGE_EXTENSION,
        retries=0,  # the guard's: it knows which failures another attempt may mend
        user_agent_token=settings.user_agent,
        disallowed_header_directives=ROBOTS_DIRECTIVES if settings.respect_robots_tag else None,
    )


def _writer(*arguments: Any) -> Any:
    """img2dataset's writer. With fractions of a second in its times, each file in the tar takes a kibibyte more."""
    from img2dataset.writer import WebDatasetSampleWriter

    writer = WebDatasetSampleWriter(*arguments)
    writer.tarwriter.mtime = int(time.time())
    return writer


def _tidy(table: pa.Table) -> pa.Table:
    """Columns `schema.IMAGES`, sorted by key, each error message as `reason` or `reason: detail`."""
    messages = [message and _message(message) for message in table["error_message"].to_pylist()]
    column = table.schema.get_field_index("error_message")
    table = table.set_column(column, "error_message", pa.array(messages, pa.string()))
    return table.select(IMAGES.names).cast(IMAGES).sort_by("key")


def _message(text: str) -> str:
    reason, detail = reasons.split(text)
    return f"{reason}: {detail}" if detail else reason


Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]
"""Stored bytes, width, height, original width, original height, error message: img2dataset's convention."""


class GuardedResizer:
    """Stands for img2dataset's `Resizer`, which is `resizer`: what it would get wrong is mended or refused before."""

    def __init__(self, resizer: Callable[[io.BytesIO], Resized], max_pixels: int) -> None:
        self._resizer, self._max_pixels = resizer, max_pixels

    def __call__(self, stream: io.BytesIO, _boxes: None = None) -> Resized:
        """The stored image of the fetched one in `stream`, which stays as it is. Never raises."""
        try:
            data = prepare(stream.getvalue(), self._max_pixels)
        except FetchError as refusal:
            return None, None, None, None, None, str(refusal)
        return self._resizer(io.BytesIO(data))
