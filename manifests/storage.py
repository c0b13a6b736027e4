"""Read, list and commit objects on any fsspec URL.

A rename is no commit on an object store, and two drivers can work on one run. Every final object is therefore created
exclusively (`create`): with `If-None-Match` on S3, with a hard link on a local disk. The first writer wins, readers
see the whole object or none, and no committed object is overwritten. Objects that can be recomputed are written with
`replace`.

Operations are repeated after transient errors. Final errors, such as a missing object, a missing permission or a full
disk, are raised at once. A write that the disk refuses raises a `DiskError`, which ends a stage.

On a local disk, an object is first written to a scratch file beside it. `remove_stale_scratch` removes the scratch
files of writers that were killed.
"""

import contextlib
import errno
import functools
import os
import pathlib
import re
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lotlip_data.manifests import storage_http
from lotlip_data.manifests.storage_local import link, place_durably, scratch_beside, write_durably
from lotlip_data.manifests.storage_retry import StorageError, with_retries, writes


def join(base: str, *names: str) -> str:
    """`base/name/…` for a path or URL."""
    return "/".join([base.rstrip("/"), *names])


def normalise(url: str) -> str:
    """Make a local path absolute; remove the trailing slash of a URL."""
    if "://" not in url or url.startswith("file://"):
        return str(pathlib.Path(url.removeprefix("file://")).expanduser().absolute())
    return url.rstrip("/")


def _open_fs(url: str) -> tuple[Any, str]:
    if url.startswith("data://"):  # fsspec takes it for a place, but it is a content
        raise StorageError(f"{url[:80]}: a `data:` URL is not supported here. Save its content as a file.")
    try:
        options = storage_http.file_system_options() if storage_http.is_http(url) else {}
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"{url}: this storage is not supported here ({error}). Correct the URL, or install the package that fsspec "
            "needs: s3fs for s3://, gcsfs for gs://, adlfs for abfs://."
        ) from error
    return fs, path


def is_local(url: str) -> bool:
    return isinstance(_open_fs(url)[0], LocalFileSystem)


@with_retries
def exists(url: str) -> bool:
    return _kind(*_open_fs(url)) is not None


@with_retries
def kind(url: str) -> str | None:
    """`file`, `directory`, or `other` for a device, a pipe or a socket; None if there is nothing."""
    return _kind(*_open_fs(url))


@with_retries
def is_folder(url: str) -> bool:
    return _kind(*_open_fs(url)) == "directory"


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """The devices of /proc and /sys, whose files, such as /proc/kmsg, can make a reader wait for ever or never end."""
    folders = [path for path in map(pathlib.Path, ("/proc", "/sys")) if path.exists()]
    return frozenset(path.stat().st_dev for path in folders) - {pathlib.Path("/").stat().st_dev}


def local_kind(path: str) -> str:
    """As `kind`, for a path on this machine whatever its name looks like. Raises OSError if there is nothing."""
    status = pathlib.Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        return "directory"
    return "file" if stat.S_ISREG(status.st_mode) and status.st_dev not in _kernel_devices() else "other"


def _kind(fs: Any, path: str) -> str | None:
    """`file`, `directory` or `other`; None if the storage answers that nothing is there.

    Errors are raised. fsspec's own `exists` and `isdir` return False for them.
    """
    try:
        return local_kind(path) if isinstance(fs, LocalFileSystem) else str(fs.info(path)["type"])
    except FileNotFoundError as error:
        storage_http.raise_unless_absent(error, path)
        return None
    except NotADirectoryError:
        return None


@with_retries
def read_bytes(url: str) -> bytes:
    """Read a whole object. Raises FileNotFoundError if there is none."""
    fs, path = _open_fs(url)
    data: bytes = fs.cat_file(path)
    return data


@with_retries
def open_read(url: str, ahead: int | None = None) -> IO[bytes]:
    """Open an object as a binary stream. It is seekable, unless a web server sends only whole files.

    Args:
        url: The object, as a path or URL.
        ahead: Bytes that an object store sends beyond those that are read. Default: that of its file system, which can
            be 50 MB.
    """
    fs, path = _open_fs(url)
    if storage_http.is_http(path):
        return storage_http.open_read(fs, path)
    stream: IO[bytes] = fs.open(path, "rb", block_size=ahead)
    return stream


@with_retries
def list_names(folder: str, ending: str = "") -> list[str]:
    """Sorted names of the objects and folders directly in `folder` that end with `ending`; empty if it does not exist.

    It takes one listing, and holds only these names in memory: a run of many shards has many other objects.
    """
    fs, path = _open_fs(folder)
    try:
        return sorted(name for name in map(_name_in(path), _paths(fs, path)) if name and name.endswith(ending))
    except (FileNotFoundError, NotADirectoryError):
        return []


@with_retries
def list_matching(pattern: str) -> list[str]:
    """Sorted paths or URLs of the objects that match. Only `*` is special: it stands for any part of a name."""
    fs, path = _open_fs(pattern)
    paths = sorted(match for match in fs.glob(_escape(path)) if _kind(fs, match) != "directory")
    if not paths and storage_http.is_http(path):  # fsspec takes a server that does not answer for an empty folder
        _kind(fs, path.partition("*")[0].rpartition("/")[0] + "/")
    return [fs.unstrip_protocol(match) if "://" in pattern else match for match in paths]


@with_retries
def stamps_matching(pattern: str) -> dict[str, str]:
    """Paths of the objects that match as in `list_matching`, each with its stamp as in `list_stamps`. One listing."""
    fs, path = _open_fs(pattern)
    if "*" in path:
        infos = fs.glob(_escape(path), detail=True)
    else:
        infos = {path: fs.info(path)} if _kind(fs, path) is not None else {}
    return {name: _stamp(infos[name]) for name in sorted(infos) if infos[name]["type"] != "directory"}


def _escape(pattern: str) -> str:
    """The pattern for fsspec in which only `*` is special: names of folders can contain brackets."""
    return re.sub(r"([\[?])", r"[\1]", pattern)


def _paths(fs: Any, path: str) -> Iterator[str]:
    """Paths of the objects in a folder; of a local folder only the names."""
    if isinstance(fs, LocalFileSystem):
        with os.scandir(path) as entries:
            yield from (entry.name for entry in entries)
    else:
        yield from fs.ls(path, detail=False)


@with_retries
def list_stamps(folder: str, ending: str = "") -> dict[str, str]:
    """Names as in `list_names`, each with a stamp that changes whenever the object does.

    The stamp is the ETag if the storage has one, otherwise size and time of change.
    """
    fs, path = _open_fs(folder)
    if isinstance(fs, LocalFileSystem):  # one by one: a detailed listing would hold all properties of every object
        return {name: _stamp(fs.info(f"{path}/{name}")) for name in list_names(folder, ending)}
    return {name: _stamp(entry) for name, entry in _entries(fs, path).items() if name.endswith(ending)}


@with_retries
def last_change(folder: str, names: Collection[str]) -> float | None:
    """Unix time of the latest change of the objects `names` in a folder; None if none exists. One listing."""
    fs, path = _open_fs(folder)
    return max((_time(entry) for name, entry in _entries(fs, path).items() if name in names), default=None)


def _entries(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    """Name → fsspec's properties of each object directly in a folder, sorted by name."""
    try:
        entries = {_name_in(path)(entry["name"]): entry for entry in fs.ls(path, detail=True)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: entries[name] for name in sorted(entries) if name}


def _name_in(folder: str) -> Callable[[str], str]:
    """A function from a listed path to its name. It returns an empty string for scratch files, and for the folder
    itself, which some S3 servers list as an object."""

    def name(path: str) -> str:
        last = path.rstrip("/").rsplit("/", 1)[-1]
        return "" if last.startswith(".tmp-") or path.rstrip("/") == folder.rstrip("/") else last

    return name


def _stamp(entry: dict[str, Any]) -> str:
    etag = entry.get("ETag") or entry.get("etag")
    return str(etag) if etag else f"{entry['size']} {_changed(entry)}"


def _changed(entry: dict[str, Any]) -> Any:
    return next((entry[name] for name in ("mtime", "LastModified", "updated", "created") if entry.get(name)), "")


def _time(entry: dict[str, Any]) -> float:
    """Unix time of the last change; the present if the storage does not report it."""
    changed = _changed(entry) or time.time()
    return changed.timestamp() if isinstance(changed, datetime) else float(changed)


@with_retries
def stamps_below(path: str) -> dict[str, str]:
    """Every object below a folder, or the object `path` itself, with its stamp; empty if there is none.

    Names are relative to the folder; the name of the object `path` itself is the empty string.
    """
    fs, root = _open_fs(path)
    infos = fs.find(root, detail=True)
    return {name.removeprefix(root.rstrip("/")).lstrip("/"): _stamp(infos[name]) for name in sorted(infos)}


@with_retries
def size(url: str) -> int | None:
    """Size of an object in bytes; None if there is none, or if the storage does not report it."""
    fs, path = _open_fs(url)
    try:
        size: int | None = fs.info(path)["size"]
    except FileNotFoundError as error:
        storage_http.raise_unless_absent(error, path)
        return None
    return size


@with_retries
def list_below(folder: str) -> list[str]:
    """Sorted paths, relative to `folder`, of every object below it; empty if there is none."""
    fs, path = _open_fs(folder)
    root = path.rstrip("/") + "/"
    if isinstance(fs, LocalFileSystem):  # names only, to save memory
        folders = os.walk(path, onerror=_raise)
        paths: Iterable[str] = (f"{where}/{name}" for where, _, names in folders for name in names)
    else:
        paths = fs.find(path)
    names = (below[len(root) :] for below in paths if below.startswith(root))
    return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(".tmp-"))


def _raise(error: OSError) -> None:
    """Raise errors of os.walk, so that an unreadable folder does not count as empty."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@with_retries
def remove(url: str) -> None:
    """Remove an object, or a folder with everything in it. Nothing happens if it does not exist."""
    fs, path = _open_fs(url)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return


@with_retries
@writes
def create(url: str, data: bytes) -> bool:
    """Create an object exclusively: commit `data` unless the object exists already.

    Returns:
        True if this call created the object. False if it existed; it does not change then. On an object store also
        True if it existed with the same `data`, because the response to this very call can have been lost.

    Raises:
        StorageError: If the storage cannot create exclusively.
        DiskError: The disk is full or read-only, or this user may not write there.
        OSError: Other errors, as the storage raises them.
    """
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with scratch_beside(path) as scratch:
            write_durably(scratch, data)
            return link(scratch, path)
    created = _create_remotely(fs, path, lambda: fs.pipe_file(path, data, mode="create"))
    return created or bool(fs.cat_file(path) == data)


@with_retries
@writes
def create_from_file(url: str, local: str, move: bool = False) -> bool:
    """As `create`, with the content of a local file, which can be larger than memory.

    Args:
        url: The object.
        local: Path of the file. It stays, unless `move` is set.
        move: Remove the file at the end. On the disk of the object, the file is moved instead of copied.
    """
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with scratch_beside(path) as scratch:
            place_durably(local, scratch, move)
            created = link(scratch, path)
        if move:
            pathlib.Path(local).unlink()  # otherwise a later write to it would change the object
        return created
    return _create_remotely(fs, path, lambda: fs.put_file(local, path, mode="create")) or _is_equal(fs, path, local)


@with_retries
@writes
def replace(url: str, data: bytes) -> None:
    """Write or overwrite an object that can be recomputed. Results are committed with `create`."""
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with scratch_beside(path) as scratch:
            write_durably(scratch, data)
            pathlib.Path(scratch).replace(path)
    else:
        fs.pipe_file(path, data)


@with_retries
@writes
def replace_from_file(url: str, local: str) -> None:
    """As `replace`, with the content of the local file `local`, which stays."""
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with scratch_beside(path) as scratch:
            place_durably(local, scratch)
            pathlib.Path(scratch).replace(path)
    else:
        fs.put_file(local, path)


_PROBE_BYTES = 1 << 20


def check_writable(folder: str) -> None:
    """Write a small object to a folder and remove it, before work starts whose results go there.

    Raises:
        DiskError: The disk is full or read-only, or this user may not write there.
        StorageError: The storage overwrites objects that are created exclusively, so two drivers would overwrite each
            other's results.
    """
    probe = join(folder, f".tmp-{uuid.uuid4().hex}")
    try:
        replace(probe, bytes(_PROBE_BYTES if is_local(folder) else 1))
        if not is_local(folder) and create(probe, b"again"):
            raise StorageError(
                f"{folder}: this storage ignores conditional requests (If-None-Match), so a committed result could be "
                "overwritten. Put the run on storage that honours them, such as Amazon S3, MinIO or a local disk."
            )
    finally:
        with contextlib.suppress(OSError):  # a storage may allow to write and not to remove
            remove(probe)


@contextlib.contextmanager
def replacing(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Write a local file so that it appears complete and on disk, or not at all.

    Args:
        file: The file; an earlier one is replaced. Only one process may write it at a time.

    Yields:
        The path to write to, beside the file. It is renamed at the end, and removed after an error.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)


def _create_remotely(fs: Any, path: str, write: Callable[[], object]) -> bool:
    """Call `write`, which creates the object exclusively. Returns False if the object existed already."""
    try:
        write()
    except OSError as error:
        # After a lost response, S3 no longer knows the multipart upload that the first request completed.
        if (_already_exists(error) or isinstance(error, FileNotFoundError)) and _kind(fs, path) is not None:
            return False
        if isinstance(error, FileNotFoundError):
            raise StorageError(
                f"{path}: cannot be created ({error}). Create the bucket, or correct its name."
            ) from error
        raise
    return True


def _is_equal(fs: Any, path: str, local: str) -> bool:
    """Whether the object and the local file have the same content."""
    if fs.info(path)["size"] != pathlib.Path(local).stat().st_size:
        return False
    with fs.open(path, "rb") as theirs, open(local, "rb") as ours:
        while chunk := ours.read(1 << 22):
            if theirs.read(len(chunk)) != chunk:
                return False
    return True


def _already_exists(error: OSError) -> bool:
    """Whether the error means that the object exists. S3 returns 412, or 409 during a race of two writers."""
    if isinstance(error, FileExistsError) or error.errno == errno.EEXIST:
        return True
    text = str(error)
    return any(sign in text for sign in ("PreconditionFailed", "At least one of the pre-conditions", "412", "409"))


_SCRATCH = re.compile(r"\.tmp-[0-9a-f]{32}")


def remove_stale_scratch(folder: str, seconds: float = 86_400) -> int:
    """Remove the scratch files below a local folder that nobody has written to for `seconds`.

    Returns:
        The number of removed files. Other storage has no scratch files.
    """
    if not is_local(folder):
        return 0
    removed = 0
    for path, _, names in os.walk(folder.removeprefix("file://")):
        for scratch in (pathlib.Path(path, name) for name in names if _SCRATCH.fullmatch(name)):
            with contextlib.suppress(OSError):  # the writer has just finished, or another process removed the file
                if time.time() - scratch.stat().st_mtime > seconds:
                    scratch.unlink()
                    removed += 1
    return removed
