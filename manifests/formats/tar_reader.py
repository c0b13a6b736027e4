"""Reads tars of images and samples, from a local disk or any storage.

Nothing else in the project reads the tars of a run:

- `iter_members` and `iter_samples` stream a tar once, from front to back.
- `stream_members` streams a tar of other tools: it names what is no plain file, and notices a tar that is cut off.
- `scan_members` reads the headers alone, and `TarIndex` reads members by position, over a seekable stream.
- `open_seekable` opens such a stream.

Memory does not grow with the tar: streaming holds one member or one sample, an index holds 16 bytes per member.

Only plain files are read. Links, devices, folders and sparse files are skipped, so a hostile tar can neither point
outside itself nor claim content that it does not hold.

If a tar is damaged or missing, the error is of the caller's `error_type`, names the tar and ends with the caller's
`remedy`. A damaged header is damage, not the end of the tar. If the caller has the tar's digest, every bit is compared
with it: by a stream at its end, by `open_seekable` before it returns. Other errors of the storage, such as a lost
connection, are raised as OSError.
"""

import array
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Self

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import Digest, HashingReader
from lotlip_data.manifests.errors import UserError

MAX_TAR_BYTES = 1 << 38
"""A member, or a position in a tar, beyond it is damage."""

_COPY_BYTES = 1 << 22
_MAX_EXTENSION_BYTES, _MAX_GLOBAL_FIELDS = 1 << 20, 100


class TarMember(NamedTuple):
    """The name of a member, and where its content is in the tar: offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass
class TarSample:
    """Neighboring members of one key: `{key}.jpg` and `{key}.json`, for example."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    """Content by extension, without the leading dot."""


def split_name(name: str) -> tuple[str, str]:
    """The key of a sample and the extension of a member: `0001` and `jpg` of `0001.jpg`."""
    key, _, extension = name.partition(".")
    return key, extension


def iter_members(
    url: str,
    remedy: str,
    suffixes: str | tuple[str, ...] = "",
    error_type: type[UserError] = UserError,
    recorded: Digest | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Stream the members of a tar, which may be compressed.

    Args:
        url: The tar, as a path or URL.
        remedy: What to do if the tar is damaged or missing; the end of the error message.
        suffixes: Only members whose name, in lower case, ends with one of them.
        error_type: The type of the error for a damaged or missing tar.
        recorded: The digest of the tar in the marker that names it. It is compared after the last member, so the caller
            must not commit what it makes of the members before the iterator has ended.

    Yields:
        Name and content of each member, in the order of the tar.
    """
    with _damage_explained(url, remedy, error_type), storage.open_read(url) as stream:
        reader = stream if recorded is None else HashingReader(stream)
        with tarfile.open(fileobj=reader, mode="r|*", tarinfo=_TarHeader) as tar:  # type: ignore[call-overload]
            for member in _plain_files(tar):
                if member.name.lower().endswith(suffixes) and (content := tar.extractfile(member)) is not None:
                    yield member.name, content.read()
        if recorded is not None and isinstance(reader, HashingReader):
            recorded.check(reader.read_to_end())


def iter_samples(
    url: str, remedy: str, error_type: type[UserError] = UserError, recorded: Digest | None = None
) -> Iterator[TarSample]:
    """Stream the samples of a tar: neighboring members of the same key, in any order. The arguments of `iter_members`.

    A key whose members are not neighbors gives several samples. Raises `error_type` if a sample has a member twice.
    """
    sample = None
    for name, content in iter_members(url, remedy, error_type=error_type, recorded=recorded):
        key, extension = split_name(name)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = TarSample(key)
        if extension in sample.members:
            raise error_type(f"{url}: contains {name} twice. {remedy}".rstrip())
        sample.members[extension] = content
    if sample is not None:
        yield sample


class StreamedMember(NamedTuple):
    """A member of `stream_members`."""

    name: str
    size: int
    """The size of its content in bytes, as its header gives it."""
    is_file: bool
    """Whether it is a plain file. Otherwise it is a link, a device or a sparse file."""
    content: bytes | None
    """None: it is no plain file, or was not wanted."""
    end: int
    """Offset of the end of its content in the tar, before compression."""


def stream_members(
    url: str,
    wanted: Callable[[str, int], bool],
    remedy: str = "",
    error_type: type[UserError] = UserError,
    digested: Callable[[Digest], None] | None = None,
) -> Iterator[StreamedMember]:
    """Stream the members of a tar that another tool has written, which may be compressed. Folders are skipped.

    Beyond what `iter_members` notices, it is damage if the tar lacks the mark of its end, because it is then cut off
    between two members; if something other than zeros comes after it, as in tars that were joined with `cat`; and if a
    header claims more than `MAX_TAR_BYTES`.

    Args:
        url: The tar, as a path or URL.
        wanted: Whether the content of a member is read: a function of its name and its size.
        remedy: What to do if the tar is damaged or missing; the end of the error message.
        error_type: The type of the error for a damaged or missing tar.
        digested: Receives the digest of the whole tar after the last member. A DigestMismatch that it raises is damage.
    """
    with _damage_explained(url, remedy, error_type), storage.open_read(url) as stream:
        reader = stream if digested is None else HashingReader(stream)
        mode = "r:" if digested is None and _can_skip(stream, url) else "r|*"
        with tarfile.open(fileobj=reader, mode=mode, tarinfo=_StrictHeader) as tar:  # type: ignore[call-overload]
            for member in _headers(tar):
                if not member.isdir():
                    is_file = _is_plain_file(member)
                    reads = is_file and wanted(member.name, member.size)
                    content = tar.extractfile(member) if reads else None
                    data = None if content is None else content.read()
                    yield StreamedMember(member.name, member.size, is_file, data, member.offset_data + member.size)
            _check_end(tar)
        if digested is not None and isinstance(reader, HashingReader):
            digested(reader.read_to_end())


def _can_skip(stream: IO[bytes], url: str) -> bool:
    """Whether members can be skipped without reading them: in a tar on this machine that is not compressed."""
    if not storage.is_local(url):
        return False
    head = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    return head[257:262] == b"ustar"


def scan_members(
    stream: IO[bytes], url: str, remedy: str, error_type: type[UserError] = UserError
) -> Iterator[TarMember]:
    """The members of an uncompressed tar, from their headers alone.

    Args:
        stream: A seekable stream over the tar. The caller may move its position between two members.
        url: The name of the tar in errors.
        remedy: What to do if the tar is damaged; the end of the error message.
        error_type: The type of the error for a damaged tar.
    """
    with (
        _damage_explained(url, remedy, error_type),
        tarfile.open(fileobj=stream, mode="r:", tarinfo=_TarHeader) as tar,
    ):
        for member in _plain_files(tar):
            yield TarMember(member.name, member.offset_data, member.size)


def read_member(
    stream: IO[bytes], member: TarMember, url: str, remedy: str, error_type: type[UserError] = UserError
) -> bytes:
    """The content of a member of `scan_members`; the other arguments are those of that function.

    Raises `error_type` if the tar ends within the member.
    """
    stream.seek(member.offset)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise error_type(f"{url}: ends within {member.name}. {remedy}".rstrip())
    return content


class TarIndex:
    """Random access to the members of an uncompressed tar by position.

    Headers are read only up to the last member that was asked for, so the first members of a large tar are cheap, also
    on an object store. Not safe for use by several threads at once.
    """

    def __init__(
        self, stream: IO[bytes], url: str, remedy: str, suffix: str = "", error_type: type[UserError] = UserError
    ) -> None:
        """Args:
        stream: A seekable stream over the tar, which stays open as long as members are read.
        url: The name of the tar in errors.
        remedy: What to do if the tar is damaged; the end of the error message.
        suffix: Only members whose name, in lower case, ends with it have a position.
        error_type: The type of the error for a damaged tar.
        """
        self._stream, self._url, self._remedy, self._error_type = stream, url, remedy, error_type
        self._suffix = suffix
        self._headers = scan_members(stream, url, remedy, error_type)
        self._spans = array.array("Q")  # offset and size of each member

    def __len__(self) -> int:
        """The number of members. Reads all headers."""
        while self._read_header():
            pass
        return len(self._spans) // 2

    def span(self, position: int) -> tuple[int, int]:
        """Offset and size in bytes of the member at `position` (from 0). Raises IndexError if the tar has fewer."""
        while len(self._spans) <= 2 * position:
            if not self._read_header():
                raise IndexError(f"{self._url}: has {len(self._spans) // 2} members {self._suffix}")
        offset, size = self._spans[2 * position : 2 * position + 2]
        return offset, size

    def read(self, position: int) -> bytes:
        """The content of the member at `position` (from 0)."""
        member = TarMember(f"member {position}", *self.span(position))
        return read_member(self._stream, member, self._url, self._remedy, self._error_type)

    def _read_header(self) -> bool:
        """Add the next member to the index. False at the end of the tar."""
        for member in self._headers:
            if member.name.lower().endswith(self._suffix):
                self._spans.extend((member.offset, member.size))
                return True
        return False


@contextmanager
def open_seekable(
    url: str,
    folder: Path | None = None,
    *,
    remedy: str = "",
    error_type: type[UserError] = UserError,
    recorded: Digest | None = None,
) -> Iterator[IO[bytes]]:
    """A stream over an object in which seeking is cheap: the local file, or an unnamed copy of a remote object.

    Args:
        url: The object, as a path or URL.
        folder: Where the copy is made. Default: the system's temporary folder.
        remedy: What to do if the object is damaged; the end of the error message.
        error_type: The type of the error for a damaged object.
        recorded: The digest of the object in the marker that names it; None compares nothing.

    Raises:
        FileNotFoundError: There is no such object.
        UserError: `error_type`, if the object does not match its digest.
    """
    if storage.is_local(url):
        with Path(storage.normalise(url)).open("rb") as file:
            if recorded is not None:
                with _damage_explained(url, remedy, error_type):
                    recorded.check(HashingReader(file).read_to_end())
                file.seek(0)
            yield file
        return
    with storage.open_read(url) as source, tempfile.TemporaryFile(dir=folder) as copy:
        reader = HashingReader(source)
        while chunk := reader.read(_COPY_BYTES):
            copy.write(chunk)
        if recorded is not None:
            with _damage_explained(url, remedy, error_type):
                recorded.check(reader.read_to_end())
        copy.seek(0)
        yield copy


class _TarHeader(tarfile.TarInfo):
    """A header that raises ReadError if it is damaged or cut off, where tarfile takes it for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tar.offset:,}") from None


_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _StrictHeader(_TarHeader):
    """A header that also raises ReadError for a tar without the mark of its end, and for sizes beyond all reason."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise tarfile.ReadError("it ends without the mark of its end, so it is cut off")
        header = super().frombuf(buf, encoding, errors)
        is_extension = header.type in _EXTENSIONS
        # tarfile reads an extension of a header as a whole, and skips a member block by block, also beyond the end.
        if not 0 <= header.size <= (_MAX_EXTENSION_BYTES if is_extension else MAX_TAR_BYTES):
            raise tarfile.ReadError(f"a header claims {header.size:,} bytes")
        return header


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError if something other than zeros comes after the end of a streamed tar."""
    while rest := tar.fileobj.read(tarfile.RECORDSIZE):
        if rest.count(0) < len(rest):
            raise tarfile.ReadError("there is more after the mark of its end; unpack joined tars with `tar -i`")


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members. tarfile's own iterator would keep the header of every member in memory."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # documented nowhere; from Python 3.13, `stream=True` does this
        if not 0 <= member.size <= MAX_TAR_BYTES or member.offset > MAX_TAR_BYTES:  # the size may be an extension's
            raise tarfile.ReadError(f"the header of {member.name!r} claims {member.size:,} bytes")
        if len(tar.pax_headers) > _MAX_GLOBAL_FIELDS:
            raise tarfile.ReadError(f"its global headers have more than {_MAX_GLOBAL_FIELDS} fields")
        yield member


def _plain_files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in _headers(tar) if _is_plain_file(member))


def _is_plain_file(member: tarfile.TarInfo) -> bool:
    return member.isfile() and not member.issparse()


@contextmanager
def _damage_explained(url: str, remedy: str, error_type: type[UserError]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise error_type(f"{url}: is missing. {remedy}".rstrip()) from None
    except (tarfile.TarError, EOFError, ValueError, IndexError, RecursionError) as error:  # the last two of tarfile
        raise error_type(f"{url}: cannot be read ({error}). {remedy}".rstrip()) from error
