"""Downloads one shard with img2dataset's `Downloader` and our HTTP client. The only file that imports img2dataset."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION, IMAGES, LISTS
from lotlip_data.manifests.progress import Progress, progress_bar
from lotlip_data.manifests.run_layout import SHARD_DIGITS, shard_name
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.http_client import guarded_urlopen
from lotlip_data.pipeline.downloading.image_tar import ImageTarWriter
from lotlip_data.pipeline.downloading.images.isolation import Converter, ConverterError, Suspects
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings, Converted

_KEY_ROWS = 10_000  # keys have at least four row digits, however few rows a shard has


class ShardFetchError(RuntimeError):
    """img2dataset lost rows of the shard; the URLs are not to blame. A retry can succeed."""


@dataclass(frozen=True)
class FetchedShard:
    """A downloaded shard in a local folder."""

    tar: pathlib.Path | None
    """None for images that stay where they are."""
    parquet: pathlib.Path
    """The rows (`schema.IMAGES`), sorted by key."""
    stats: dict[str, Any]
    """img2dataset's own statistics, with the counts of `failures.count_failures`."""

    @property
    def is_retriable(self) -> bool:
        """Whether no image downloaded and at least one failure is transient.

        One is enough: permanent failures, such as a malformed host name, occur without a network as well.
        """
        return not self.stats["successes"] and any(map(failures.is_transient, self.stats["status_dict"]))


def fetch(
    rows: pa.Table,
    shard: int,
    samples_per_shard: int,
    settings: DownloadSettings,
    folder: pathlib.Path,
    suspects: Suspects | None = None,
) -> FetchedShard:
    """Download the images of `rows` (columns `schema.LISTS`) into the empty local `folder`.

    Args:
        rows: The rows of the shard.
        shard: Its number.
        samples_per_shard: The number of rows of a full shard.
        settings: The settings of the download.
        folder: Where the files of the shard are written.
        suspects: The memory of images with which earlier attempts died.

    Raises:
        ShardFetchError: Rows got lost.
        ConverterError: No image can be decoded here.
        OSError: The folder cannot be written to, for example because the disk is full.
    """
    started = time.time()
    source = folder / "rows.arrow"
    with pa.OSFile(str(source), "wb") as stream, pa.ipc.new_file(stream, LISTS) as writer:
        writer.write_table(rows.select(LISTS.names).cast(LISTS))
    failure = Failure()
    with Converter(conversion_settings(settings), suspects) as converter, contextlib.ExitStack() as stack:
        resizer = IsolatedResizer(converter, failure)
        stack.enter_context(guarded_urlopen(settings, _expected(rows), resizer.start))
        bar = stack.enter_context(progress_bar("download", rows.num_rows, "URL"))
        downloader = _downloader(settings, samples_per_shard, str(folder), resizer, bar, failure)
        downloader.download_shard((shard, str(source)))
    if failure.error is not None:
        raise failure.error
    parquet = folder / f"{shard_name(shard)}.parquet"
    table = pq.read_table(parquet)
    if table.num_rows != rows.num_rows:
        raise ShardFetchError(f"shard {shard}: only {table.num_rows} of {rows.num_rows} rows were written")
    table = _normalise(table)
    parquet.write_bytes(artifacts.encode_parquet(table))
    stats = json.loads((folder / f"{shard_name(shard)}_stats.json").read_text())
    stats |= failures.count_failures(table) | {"seconds": round(time.time() - started, 3)}
    return FetchedShard(folder / f"{shard_name(shard)}.tar", parquet, stats)


def conversion_settings(settings: DownloadSettings) -> ConversionSettings:
    """The settings of the download that a conversion depends on."""
    names = (field.name for field in dataclasses.fields(ConversionSettings))
    return ConversionSettings(**{name: getattr(settings, name) for name in names})


def _expected(rows: pa.Table) -> dict[str, dict[str, str]]:
    """URL, as `urllib` spells it → the hashes that the lists expect of its body."""
    expected: dict[str, dict[str, str]] = {}
    for column, algorithm in (("expected_sha256", "sha256"), ("expected_md5", "md5")):
        with_hash = rows.filter(pc.is_valid(rows[column]))
        for url, digits in zip(with_hash["url"].to_pylist(), with_hash[column].to_pylist(), strict=True):
            expected.setdefault(urllib.request.Request(url).full_url, {})[algorithm] = digits
    return expected


class Failure:
    """The first error that is no fault of an image. img2dataset itself would go on to request the rest of the shard."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def record(self, error: Exception) -> None:
        """Record the first error, and send no further request: no image can be stored."""
        self.error = self.error or error
        urllib.request.install_opener(_NoRequests())  # type: ignore[arg-type]  # it has what urlopen uses


class _NoRequests:
    """An opener that sends no request. `guarded_urlopen` removes it at its end."""

    def open(self, *request: Any) -> None:
        raise OSError("no image can be stored")


def _downloader(
    settings: DownloadSettings,
    samples_per_shard: int,
    folder: str,
    resizer: "IsolatedResizer",
    bar: Progress,
    failure: Failure,
) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # stops its version check over the network
    with _temporary_files_in(folder):  # wandb, which img2dataset imports, makes folders that a killed worker leaves
        from img2dataset.downloader import Downloader

    return Downloader(
        sample_writer_class=partial(_ShardWriter, bar, failure),
        resizer=resizer,
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
        retries=0,  # GuardedOpener retries: it knows which failures are transient
        user_agent_token=None,  # GuardedOpener sends its own header, and honours X-Robots-Tag
        disallowed_header_directives=None,
    )


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Put the temporary files that Python code makes meanwhile into `folder`."""
    earlier, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = earlier


class _ShardWriter:
    """Takes the place of img2dataset's `WebDatasetSampleWriter`: writes the same files in less time.

    It counts its rows in a progress bar, and ends the requests at the first failed write.

    Args:
        bar: Shows the rows.
        failure: Receives the error of a write.
        shard: Its number.
        folder: Where the files are written.
        _save_caption: Not used, nor are `_digits`: arguments of img2dataset's writer.
        schema: The columns of the Parquet file.
        _extension: Not used, as the tar's writer has its own.
    """

    def __init__(
        self,
        bar: Progress,
        failure: Failure,
        shard: int,
        folder: str,
        _save_caption: bool,
        _digits: int,
        schema: pa.Schema,
        _extension: str,
    ) -> None:
        from img2dataset.writer import BufferedParquetWriter

        self._bar, self._failure, self._downloaded = bar, failure, 0
        stem = f"{folder}/{shard_name(shard)}"
        self._rows = BufferedParquetWriter(f"{stem}.parquet", schema)
        self._tar = ImageTarWriter(pathlib.Path(f"{stem}.tar"))

    def write(self, image: bytes | None, key: str, _caption: None, row: dict[str, Any]) -> None:
        if self._failure.error is not None:
            return
        with self._stopping_at_errors():
            if image is not None:
                self._tar.add(key, image, row)
                self._downloaded += 1
            self._rows.write(row)
            self._bar.note(counts={"downloaded": self._downloaded})
            self._bar.update()

    def close(self) -> None:
        if self._failure.error is None:
            with self._stopping_at_errors():
                self._rows.close()
                self._tar.close()

    @contextmanager
    def _stopping_at_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failure.record(error)


def _normalise(table: pa.Table) -> pa.Table:
    """The columns `schema.IMAGES`, sorted by key, with error messages as `reason` or `reason: detail`."""
    messages = [message and _message(message) for message in table["error_message"].to_pylist()]
    column = table.schema.get_field_index("error_message")
    table = table.set_column(column, "error_message", pa.array(messages, pa.string()))
    return table.select(IMAGES.names).cast(IMAGES).sort_by("key")


def _message(text: str) -> str:
    reason, detail = failures.split_message(text)
    return f"{reason}: {detail}" if detail else reason


Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]
"""img2dataset's convention: stored bytes, width, height, original width, original height, error message."""


class IsolatedResizer:
    """Takes the place of img2dataset's `Resizer`: passes each downloaded body to a `Converter`.

    img2dataset calls it in one thread, which writes the files too. So that the converter does not wait for this thread,
    `start` submits each body as soon as it is received.
    """

    def __init__(self, converter: Converter, failure: Failure) -> None:
        self._converter, self._failure = converter, failure
        self._started: dict[int, tuple[bytes, Future[Converted]]] = {}
        """By the identity of the body, which stays its own while it is stored here."""

    def start(self, body: bytes) -> None:
        """Submit a body that img2dataset will pass on. Any thread may call it."""
        self._started[id(body)] = (body, self._converter.submit(body))

    def __call__(self, stream: io.BytesIO, _boxes: None = None) -> Resized:
        """The converted image of the downloaded body in `stream`, which stays unchanged."""
        body = stream.getvalue()  # no copy: the object that `start` received
        started = self._started.pop(id(body), None)
        conversion = started[1] if started is not None else self._converter.submit(body)
        if self._failure.error is None:
            try:
                image = conversion.result()
            except FetchError as error:
                return None, None, None, None, None, str(error)
            except (ConverterError, OSError) as error:
                self._failure.record(error)
            else:
                return image.body, image.width, image.height, image.original_width, image.original_height, None
        return None, None, None, None, None, failures.OTHER
