"""Reads WebDataset tars: neighboring members of one key are a sample.

Members without an extension are no samples. Memory holds the files of one sample that are needed, and a hash of each
key.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.formats.tar_reader import StreamedMember
from lotlip_data.pipeline.existing_images.rows import (
    DUPLICATE,
    MAX_IMAGE_BYTES,
    MAX_ROWS,
    MAX_TEXT_BYTES,
    NO_IMAGE,
    NOT_A_FILE,
    SEVERAL_IMAGES,
    TEXT_TOO_LONG,
    TOO_LARGE,
    Problem,
    Sample,
    name_problem,
)
from lotlip_data.pipeline.existing_images.side_files import META, SideFiles, split_name

_SHOWN_EXTENSIONS = 4


@dataclass
class _Group:
    """The members of one sample that are needed."""

    key: str
    image_name: str | None = None
    image: bytes | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    extensions: set[str] = field(default_factory=set)
    """The extensions of the needed members."""
    first_extensions: list[str] = field(default_factory=list)
    """Those of the first members, needed or not, for a message."""
    problem: Problem | None = None
    cell_problem: Problem | None = None


def tar_samples(
    container: Container,
    side_files: SideFiles,
    images: bool,
    remedy: str,
    error_type: type[UserError],
    digested: Callable[[Digest], None] | None,
) -> Iterator[Sample]:
    """The samples of a tar, in its order.

    Args:
        container: The container.
        side_files: The text members to read.
        images: Whether to read images.
        remedy: What to do if the tar is damaged or missing; the end of the error message.
        error_type: The type of the error for such a tar, and for one with more than `MAX_ROWS` samples.
        digested: Receives the digest of the tar at its end.
    """
    extensions = frozenset(container.image)

    def is_wanted(name: str, size: int) -> bool:
        extension = _extension(name)
        if extension in extensions:
            return images and size <= MAX_IMAGE_BYTES
        return extension in side_files.extensions and size <= MAX_TEXT_BYTES

    members = tar_reader.stream_members(container.url, is_wanted, remedy, error_type, digested)
    keys: set[bytes] = set()
    for row, group in enumerate(_groups(members, extensions, side_files.extensions)):
        if row == MAX_ROWS:
            raise error_type(f"{container.url}: has more than {MAX_ROWS:,} samples; cut it into smaller tars")
        key = hashlib.blake2b(group.key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in keys:
            group.problem = Problem(DUPLICATE, "the members of this key are not neighbors, or two samples have it")
        keys.add(key)
        yield _sample(row, group, side_files)


def tar_image(container: Container, name: str, remedy: str, error_type: type[UserError]) -> bytes | None:
    """The first member of this name, if it is an image. The arguments of `tar_samples`."""

    def is_wanted(member: str, size: int) -> bool:
        return member == name and _extension(member) in container.image and size <= MAX_IMAGE_BYTES

    members = tar_reader.stream_members(container.url, is_wanted, remedy, error_type)
    return next((member.content for member in members if member.content is not None), None)


def estimated_samples(url: str, limit: int) -> int | None:
    """The number of samples of a tar, from the sizes of the first `limit` samples; exact if it has no more.

    None if the storage does not report the size of the tar. Raises UserError for a damaged or missing tar.
    """
    size = storage.size(url)
    count, key, end = 0, None, 0
    for member in tar_reader.stream_members(url, lambda name, size: False):
        parts = None if META.match(member.name) else split_name(member.name)
        if parts is not None and parts[0] != key:
            if count == limit:
                return None if size is None else max(round(count * size / end), count)
            count, key = count + 1, parts[0]
        end = member.end
    return count


def _extension(name: str) -> str:
    parts = split_name(name)
    return "" if parts is None else parts[1]


def _groups(
    members: Iterator[StreamedMember], image_extensions: frozenset[str], text_extensions: frozenset[str]
) -> Iterator[_Group]:
    group = None
    for member in members:
        parts = None if META.match(member.name) else split_name(member.name)
        if parts is None:
            continue
        key, extension = parts
        if group is None or key != group.key:
            if group is not None:
                yield group
            group = _Group(key)
        if len(group.first_extensions) < _SHOWN_EXTENSIONS:
            group.first_extensions.append(extension)
        if extension in image_extensions or extension in text_extensions:
            _add(group, member, extension, is_image=extension in image_extensions)
    if group is not None:
        yield group


def _add(group: _Group, member: StreamedMember, extension: str, is_image: bool) -> None:
    """Add a needed member to its sample."""
    problem = None
    if extension in group.extensions:
        problem = Problem(DUPLICATE, f"the sample has two members like {member.name}")
    elif not member.is_file:
        problem = Problem(NOT_A_FILE, f"{member.name} is a link, a device or a sparse file")
    elif is_image and member.size > MAX_IMAGE_BYTES:
        problem = Problem(TOO_LARGE, f"{member.name} has {member.size:,} bytes")
    elif not is_image and member.size > MAX_TEXT_BYTES:
        problem = Problem(TEXT_TOO_LONG, f"{member.name} has {member.size:,} bytes")
    elif is_image and group.image_name is not None:
        names = f"{group.image_name} and {member.name}"
        problem = Problem(SEVERAL_IMAGES, f"{names}: name the extension in `image` of the source")
    group.extensions.add(extension)
    if is_image:
        group.problem = group.problem or problem
        group.image_name = group.image_name or member.name
        if group.image is None:
            group.image = member.content
    else:
        group.cell_problem = group.cell_problem or problem
        if member.content is not None:
            group.texts.setdefault(extension, member.content)


def _sample(row: int, group: _Group, side_files: SideFiles) -> Sample:
    name = group.image_name or group.key
    problem = name_problem(name) or group.problem
    if problem is None and group.image_name is None:
        extensions = ", ".join(group.first_extensions)
        detail = f"no member has the extension of an image; they begin at the first dot: {extensions}"
        problem = Problem(NO_IMAGE, detail)
    if problem is not None:
        return Sample(row, name, None, problem)
    cells = side_files.cells(group.texts)
    if group.cell_problem is not None or isinstance(cells, Problem):
        return Sample(row, name, group.image, cell_problem=group.cell_problem or cells)  # type: ignore[arg-type]
    return Sample(row, name, group.image, cells=cells)
