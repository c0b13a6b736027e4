"""Objects in a run's folder, on any fsspec URL, and the one way to commit them: exclusive creation.

A rename is not a commit on an object store, and two drivers may work on one run. So whatever is final is created
exclusively: `If-None-Match` on S3, a hard link on a local disk. The first writer wins, everybody sees either the whole
object or none of it, and nothing that is committed is ever overwritten. What a storage refuses once in a while is
asked again; what is final (not there, not allowed, no space) is raised at once.

Scratch files of `storage` in a local run, left by writers that were killed.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lotlip_data.manifests.storage_retry import StorageError, with_retries


def join(base: str, *names: str) -> str:
    """`base/name/…` for a path or URL."""
    return "/".join([base.rstrip("/"), *names])


def normalise(url: str) -> str:
    """An absolute local path, or the URL without a trailing slash."""
    if "://" not in url or url.startswith("file://"):
        return str(pathlib.Path(url.removeprefix("file://")).expanduser().absolute())
    return url.rstrip("/")


def _open_fs(url: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"{url}: this kind of storage cannot be used here ({error}). Correct the URL, or install what fsspec "
            "needs for it: s3fs for s3://, gcsfs for gs://, adlfs for abfs://."
        ) from error
    return fs, path


def is_local(url: str) -> bool:
    return isinstance(_open_fs(url)[0], LocalFileSystem)


@with_retries
def exists(url: str) -> bool:
    return _kind(*_open_fs(url)) is not None


@with_retries
def is_folder(url: str) -> bool:
    return _kind(*_open_fs(url)) == "directory"


def _kind(fs: Any, path: str) -> str | None:
    """`file`, `directory` or `other`; None for what the storage says is not there.

    A question without an answer raises: fsspec's own `exists` and `isdir` take it for a no.
    """
    try:
        if isinstance(fs, LocalFileSystem):
            mode = pathlib.Path(path).stat().st_mode
            return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
        return str(fs.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


@with_retries
def read_bytes(url: str) -> bytes:
    """The whole object. Raises FileNotFoundError where there is none."""
    fs, path = _open_fs(url)
    data: bytes = fs.cat_file(path)
    return data


@with_retries
def open_read(url: str) -> IO[bytes]:
    """A seekable binary stream over one object."""
    fs, path = _open_fs(url)
    stream: IO[bytes] = fs.open(path, "rb")
    return stream


@with_retries
def list_names(folder: str, ending: str = "") -> list[str]:
    """Sorted names, of those with that `ending`, of what lies directly in `folder`; empty where it does not exist.

    One listing, of which only these names are kept: a run of many shards has many other objects beside them.
    """
    fs, path = _open_fs(folder)
    try:
        return sorted(name for name in map(_name_in(path), _paths(fs, path)) if name and name.endswith(ending))
    except (FileNotFoundError, NotADirectoryError):
        return []


@with_retries
def list_matching(pattern: str) -> list[str]:
    """Sorted paths or URLs of the objects that match; `*`, for any part of a name, is all that is not plain in it."""
    fs, path = _open_fs(pattern)
    found = sorted(name for name in fs.glob(_literal(path)) if _kind(fs, name) != "directory")
    return [fs.unstrip_protocol(name) if "://" in pattern else name for name in found]


@with_retries
def stamps_matching(pattern: str) -> dict[str, str]:
    """The paths of the objects that match, as `list_matching`, each with its stamp as in `list_stamps`. One listing."""
    fs, path = _open_fs(pattern)
    if "*" in path:
        found = fs.glob(_literal(path), detail=True)
    else:
        found = {path: fs.info(path)} if _kind(fs, path) is not None else {}
    return {name: _stamp(found[name]) for name in sorted(found) if found[name]["type"] != "directory"}


def _literal(pattern: str) -> str:
    """A pattern in which `*` is all that is not plain: folders may have brackets in their names."""
    return re.sub(r"([\[?])", r"[\1]", pattern)


def _paths(fs: Any, path: str) -> Iterator[str]:
    """The paths of what lies in a folder, of a local one only the names."""
    if isinstance(fs, LocalFileSystem):
        with os.scandir(path) as entries:
            yield from (entry.name for entry in entries)
    else:
        yield from fs.ls(path, detail=False)


@with_retries
def list_stamps(folder: str, ending: str = "") -> dict[str, str]:
    """As `list_names`, each name with a stamp that changes whenever the object does.

    The stamp is the ETag where the storage has one, otherwise size and time.
    """
    fs, path = _open_fs(folder)
    if isinstance(fs, LocalFileSystem):  # one after the other: its listing would hold all that it knows of every object
        return {name: _stamp(fs.info(f"{path}/{name}")) for name in list_names(folder, ending)}
    return {name: _stamp(entry) for name, entry in _entries(fs, path).items() if name.endswith(ending)}


@with_retries
def last_change(folder: str, names: Collection[str]) -> float | None:
    """When the last of these objects of a folder was changed, in Unix time; None where none is there. One listing."""
    fs, path = _open_fs(folder)
    return max((_time(entry) for name, entry in _entries(fs, path).items() if name in names), default=None)


def _entries(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    """What lies directly in a folder, by name, in order."""
    try:
        found = {_name_in(path)(entry["name"]): entry for entry in fs.ls(path, detail=True)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: found[name] for name in sorted(found) if name}


def _name_in(folder: str) -> Callable[[str], str]:
    """From a listed path to its name; empty for scratch files, and for the folder, which is an object on some S3s."""

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
    """Unix time; that of now where the storage does not tell."""
    changed = _changed(entry) or time.time()
    return changed.timestamp() if isinstance(changed, datetime) else float(changed)


@with_retries
def stamps_below(path: str) -> dict[str, str]:
    """Every object in a folder and its folders, or the one object `path`, each with its stamp; empty where is none.

    Names are relative to the folder, and the empty string for the object itself.
    """
    fs, root = _open_fs(path)
    found = fs.find(root, detail=True)
    return {name.removeprefix(root.rstrip("/")).lstrip("/"): _stamp(found[name]) for name in sorted(found)}


@with_retries
def size(url: str) -> int | None:
    """Bytes of an object; None where there is none, or its storage does not tell."""
    fs, path = _open_fs(url)
    try:
        size: int | None = fs.info(path)["size"]
    except FileNotFoundError:
        return None
    return size


@with_retries
def list_below(folder: str) -> list[str]:
    """Sorted paths, relative to `folder`, of every object in it and in its folders; empty where there is none."""
    fs, path = _open_fs(folder)
    root = path.rstrip("/") + "/"
    if isinstance(fs, LocalFileSystem):  # names only, as above
        folders = os.walk(path, onerror=_raise)
        paths: Iterable[str] = (f"{where}/{name}" for where, _, names in folders for name in names)
    else:
        paths = fs.find(path)
    names = (found[len(root) :] for found in paths if found.startswith(root))
    return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(".tmp-"))


def _raise(error: OSError) -> None:
    """A folder that cannot be read is not an empty one."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@with_retries
def remove(url: str) -> None:
    """Remove an object or a folder with all that is in it; nothing happens where it is not there."""
    fs, path = _open_fs(url)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return


@with_retries
def create(url: str, data: bytes) -> bool:
    """Create the object `url` with `data`, unless it exists.

    True where this call created it, False where it was there before: then it is left as it is. Not on a local disk,
    True also where it was there and holds `data`, since the answer to this very call may have been lost.
    Raises StorageError where the storage cannot create exclusively, OSError (a full disk, say) as it comes.
    """
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with _scratch_beside(path) as scratch:
            _write_durably(scratch, data)
            return _link(scratch, path)
    first = _create_remotely(fs, path, lambda: fs.pipe_file(path, data, mode="create"))
    return first or bool(fs.cat_file(path) == data)


@with_retries
def create_from_file(url: str, local: str, move: bool = False) -> bool:
    """As `create`, with the content of the local file `local`, which may be larger than memory.

    The file stays. With `move` it is given away: where the object is to be on the same disk, it is moved, not copied.
    """
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with _scratch_beside(path) as scratch:
            _place_durably(local, scratch, move)
            first = _link(scratch, path)
        if move:
            pathlib.Path(local).unlink()  # or whoever writes to it would write into the object
        return first
    return _create_remotely(fs, path, lambda: fs.put_file(local, path, mode="create")) or _is_equal(fs, path, local)


@with_retries
def replace(url: str, data: bytes) -> None:
    """Write an object that may be overwritten: a view that can be made again, never a result."""
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with _scratch_beside(path) as scratch:
            _write_durably(scratch, data)
            pathlib.Path(scratch).replace(path)
    else:
        fs.pipe_file(path, data)


@with_retries
def replace_from_file(url: str, local: str) -> None:
    """As `replace`, with the content of the local file `local`, which stays."""
    fs, path = _open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with _scratch_beside(path) as scratch:
            _place_durably(local, scratch)
            pathlib.Path(scratch).replace(path)
    else:
        fs.put_file(local, path)


@contextmanager
def replacing(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Write a local file so that it appears whole and on disk, or not at all.

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
    """Whether `write`, which creates the object exclusively, was the first to do so."""
    try:
        write()
    except OSError as error:
        # S3 does not know the upload in parts any more that a lost answer completed.
        if (_lost_the_race(error) or isinstance(error, FileNotFoundError)) and _kind(fs, path) is not None:
            return False
        if isinstance(error, FileNotFoundError):
            raise StorageError(f"{path}: cannot be created ({error}). Make the bucket, or correct its name.") from error
        raise
    return True


def _is_equal(fs: Any, path: str, local: str) -> bool:
    """Whether the object holds what the local file holds."""
    if fs.info(path)["size"] != pathlib.Path(local).stat().st_size:
        return False
    with fs.open(path, "rb") as theirs, open(local, "rb") as ours:
        while chunk := ours.read(1 << 22):
            if theirs.read(len(chunk)) != chunk:
                return False
    return True


def _lost_the_race(error: OSError) -> bool:
    """Whether a storage's error says that the object exists (S3 answers 412, or 409 while two writers race)."""
    if isinstance(error, FileExistsError) or error.errno == errno.EEXIST:
        return True
    text = str(error)
    return any(sign in text for sign in ("PreconditionFailed", "At least one of the pre-conditions", "412", "409"))


@contextmanager
def _scratch_beside(path: str) -> Iterator[str]:
    """A name for a scratch file in the folder of `path`, removed at the end where it still exists."""
    folder = pathlib.Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        yield str(scratch)
    finally:
        scratch.unlink(missing_ok=True)


def _write_durably(path: str, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _place_durably(local: str, path: str, move: bool = False) -> None:
    """Copy the file `local` to `path`; to `move`, give it that name as well where it is on the same disk."""
    if not (move and _is_linked(local, path)):
        with open(local, "rb") as source, open(path, "xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    with open(path, "rb") as placed:
        os.fsync(placed.fileno())


def _is_linked(local: str, path: str) -> bool:
    try:
        os.link(local, path)
    except OSError:  # another disk, or one without links
        return False
    return True


def _link(scratch: str, path: str) -> bool:
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise StorageError(
                f"{path}: this file system has no hard links, so a result cannot be committed exclusively. "
                "Put the run on another disk, or on S3."
            ) from error
        raise
    return True


_SCRATCH = re.compile(r"\.tmp-[0-9a-f]{32}")


def remove_stale_scratch(folder: str, seconds: float = 86_400) -> int:
    """Remove scratch files in `folder` and its folders that nobody has written to for so many seconds; how many.

    Storage other than a local disk has none.
    """
    if not is_local(folder):
        return 0
    removed = 0
    for path, _, names in os.walk(folder.removeprefix("file://")):
        for scratch in (pathlib.Path(path, name) for name in names if _SCRATCH.fullmatch(name)):
            with contextlib.suppress(OSError):  # its writer lives and is done, or another sweep was faster
                if time.time() - scratch.stat().st_mtime > seconds:
                    scratch.unlink()
                    removed += 1
    return removed
