"""Reads a container: its rows, its images, one image, or its digest. One image is in memory at a time.

The digest of a tar is that of its file. The digest of a table's rows or a folder's files is that of the images and
their names alone, so that other rows and files do not matter.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa

from lotlip_data.manifests import digests
from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.storage_retry import client_errors
from lotlip_data.pipeline.existing_images.folders import folder_samples
from lotlip_data.pipeline.existing_images.rows import (
    ExistingRow,
    RejectedRow,
    Sample,
    StoredImage,
    columns_of,
    rows_of,
)
from lotlip_data.pipeline.existing_images.side_files import SideFiles
from lotlip_data.pipeline.existing_images.tables import TableColumns, table_samples
from lotlip_data.pipeline.existing_images.tars import tar_image, tar_samples
from lotlip_data.pipeline.url_lists.parquet_pages import ParquetDamageError
from lotlip_data.pipeline.url_lists.rows import ListError

CHANGED = "Restore it as it was, or use another run folder."
"""The remedy for a container that is no longer what its digest says."""


def iter_rows(
    container: Container,
    source: Source,
    images: bool = True,
    remedy: str = "",
    error_type: type[UserError] = UserError,
    digested: Callable[[Digest], None] | None = None,
) -> Iterator[ExistingRow | RejectedRow]:
    """The rows of a container, in order.

    Args:
        container: The container.
        source: The source that it belongs to.
        images: Whether to read the images. Without them, rows are not rejected for what is wrong with an image's bytes.
        remedy: What to do if the container is damaged or missing; the end of the error message.
        error_type: The type of the error for a damaged or missing container.
        digested: Receives the digest of the container after the last row. It needs the images.

    Raises:
        UserError: `error_type`, if the container is damaged or missing.
        OSError: The storage fails, for example with a lost connection.
    """
    yield from rows_of(_samples(container, columns_of(source), images, remedy, error_type, digested), source)


def iter_images(
    container: Container,
    remedy: str = "",
    error_type: type[UserError] = UserError,
    recorded: Digest | None = None,
) -> Iterator[StoredImage]:
    """The images of a container, in order: those of all rows of `iter_rows`, and of rows whose texts are rejected.

    Args:
        container: The container.
        remedy: What to do if the container is damaged or missing; the end of the error message.
        error_type: The type of the error for a damaged or missing container.
        recorded: The digest that `iter_rows` gave. It is compared after the last image, so the caller must not commit
            what it makes of the images before the iterator has ended.

    Raises:
        UserError: `error_type`, if the container is damaged or missing, or differs from `recorded`.
        OSError: The storage fails, for example with a lost connection.
    """
    check = None if recorded is None else recorded.check
    for sample in _samples(container, (), True, remedy, error_type, check):
        if sample.problem is None and sample.image is not None:
            yield StoredImage(sample.row, sample.name, sample.image)


def digest_of(container: Container, remedy: str = "", error_type: type[UserError] = UserError) -> Digest:
    """The digest of a container that `iter_rows` gives. Raises what `iter_images` raises."""
    results: list[Digest] = []
    if container.kind == "tar":
        try:
            return digests.digest_of(container.url)
        except FileNotFoundError:
            raise error_type(f"{container}: is missing. {remedy}".rstrip()) from None
    for _ in _samples(container, (), True, remedy, error_type, results.append):
        pass
    return results[0]


def read_image(container: Container, name: str, remedy: str = "", error_type: type[UserError] = UserError) -> bytes:
    """One image that `iter_images` gives, by its name.

    Raises KeyError if the container has no such image, and what `iter_images` raises.
    """
    if container.kind == "tar":
        with _errors_name(container, remedy, error_type):
            image = tar_image(container, name, remedy, error_type)
        if image is None:
            raise KeyError(name)
        return image
    part = container
    if container.kind == "folder":
        part = replace(container, files=tuple(file for file in container.files if file.name == name))
    elif container.kind == "table" and container.key is None and name.isdecimal():
        part = replace(container, first=int(name), rows=1)
    for stored in iter_images(part, remedy, error_type):
        if stored.name == name:
            return stored.image
    raise KeyError(name)


def _samples(
    container: Container,
    columns: tuple[str, ...],
    images: bool,
    remedy: str,
    error_type: type[UserError],
    digested: Callable[[Digest], None] | None,
) -> Iterator[Sample]:
    with _errors_name(container, remedy, error_type):
        if container.kind == "tar":
            yield from tar_samples(container, SideFiles(columns), images, remedy, error_type, digested)
            return
        if container.kind == "table":
            image = container.image[0] if images else None
            samples = table_samples(container, TableColumns(image, container.key, columns), remedy, error_type)
        else:
            samples = folder_samples(container, SideFiles(columns), images)
        yield from samples if digested is None else _hashed(samples, digested)


def _hashed(samples: Iterator[Sample], digested: Callable[[Digest], None]) -> Iterator[Sample]:
    """The samples, with the digest of their names and images at the end."""
    sha256, size = hashlib.sha256(), 0
    for sample in samples:
        if sample.problem is None and sample.image is not None:
            sha256.update(f"{sample.name}\0{len(sample.image)}\0".encode())
            sha256.update(sample.image)
            size += len(sample.image)
        yield sample
    digested(Digest(size, sha256.hexdigest()))


@contextmanager
def _errors_name(container: Container, remedy: str, error_type: type[UserError]) -> Iterator[None]:
    """Turn damage into `error_type`, and errors of storage clients into ConnectionErrors. OSErrors stay what they are.

    What Arrow cannot decompress or parse is an OSError too, without the number of an error.
    """
    try:
        yield
    except error_type:
        raise
    except ListError as error:
        raise error_type(f"{error}. {remedy}".rstrip()) from None
    except FileNotFoundError:
        raise error_type(f"{container}: is missing. {remedy}".rstrip()) from None
    except (ValueError, pa.ArrowException, OSError) as error:
        is_damage = type(error) is OSError and error.errno is None
        if isinstance(error, OSError) and not is_damage and not isinstance(error, ParquetDamageError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise error_type(f"{container}: cannot be read ({reason}). {remedy}".rstrip()) from error
    except client_errors() as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(f"{container}: {reason}") from error
