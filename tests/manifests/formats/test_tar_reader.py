"""Tars are read in little memory, at random access and as a stream; damage and hostile members are named or skipped."""

import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import Digest, digest_of
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader

MIB = 1 << 20
REMEDY = "Build it again."
MEMBERS = [("0.jpg", b"image 0"), ("0.json", b"{}"), ("1.json", b"[]"), ("1.jpg", b"image 1")]


class DamagedError(UserError):
    """The error that the tests ask for."""


def write_tar(path: Path, members: list[tuple[str, bytes]] = MEMBERS, mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def read_index(url: str, suffix: str = "") -> list[bytes]:
    with tar_reader.open_seekable(url) as stream:
        index = tar_reader.TarIndex(stream, url, REMEDY, suffix, DamagedError)
        return [index.read(position) for position in range(len(index))]


def read_stream(url: str) -> list[bytes]:
    return [content for _, content in tar_reader.iter_members(url, REMEDY, error_type=DamagedError)]


READERS: list[Callable[[str], list[bytes]]] = [read_index, read_stream]


def test_stream_and_index_give_the_members_in_the_order_of_the_tar(tmp_path: Path) -> None:
    url = write_tar(tmp_path / "a.tar")
    assert list(tar_reader.iter_members(url, REMEDY)) == MEMBERS
    assert list(tar_reader.iter_members(url, REMEDY, (".jpg", ".png"))) == [MEMBERS[0], MEMBERS[3]]
    assert read_index(url) == [content for _, content in MEMBERS]
    assert read_index(url, ".jpg") == [b"image 0", b"image 1"]
    with open(url, "rb") as stream:
        assert [member.name for member in tar_reader.scan_members(stream, url, REMEDY)] == [n for n, _ in MEMBERS]


def test_neighboring_members_of_one_key_are_a_sample(tmp_path: Path) -> None:
    samples = list(tar_reader.iter_samples(write_tar(tmp_path / "a.tar"), REMEDY))
    assert [(sample.key, sorted(sample.members)) for sample in samples] == [
        ("0", ["jpg", "json"]),
        ("1", ["jpg", "json"]),
    ]
    with pytest.raises(DamagedError, match=r"b\.tar: contains 0\.jpg twice\. Build it again\.$"):
        list(tar_reader.iter_samples(write_tar(tmp_path / "b.tar", MEMBERS[:1] * 2), REMEDY, DamagedError))


def test_an_index_reads_headers_only_as_far_as_needed(tmp_path: Path) -> None:
    url = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", bytes(1000)) for number in range(100)])
    with open(url, "rb") as stream:
        index = tar_reader.TarIndex(stream, url, REMEDY)
        index.read(3)
        assert stream.tell() < 10_000
        with pytest.raises(IndexError, match="has 100 members"):
            index.span(100)
        assert len(index) == 100


def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path) -> None:
    """A header that is kept costs about 1,500 bytes, so 4,000 of them 6 MB."""
    url = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", b"x") for number in range(4000)])
    with open(url, "rb") as stream:
        for members in (tar_reader.iter_members(url, REMEDY), tar_reader.scan_members(stream, url, REMEDY)):
            tracemalloc.start()
            assert sum(1 for _ in members) == 4000
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MIB


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_tar_is_named_with_its_remedy(tmp_path: Path, read: Callable[[str], list[bytes]]) -> None:
    url = write_tar(tmp_path / "a.tar")
    whole = Path(url).read_bytes()
    for damage in (whole[:700], whole[:515], b"not a tar", b""):
        Path(url).write_bytes(damage)
        with pytest.raises(DamagedError, match=rf"^{url}: (cannot be read \(|ends within ).*Build it again\.$"):
            read(url)


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_header_is_not_the_end_of_the_tar(tmp_path: Path, read: Callable[[str], list[bytes]]) -> None:
    """tarfile stops there without an error, and the members after it would be lost."""
    url = write_tar(tmp_path / "a.tar")
    whole = Path(url).read_bytes()
    for header in (1024, 2048, 3072):
        for position in (header, header + 130, header + 150, header + 300):  # name, size, checksum, group
            damaged = bytearray(whole)
            damaged[position] ^= 4
            Path(url).write_bytes(damaged)
            with pytest.raises(DamagedError, match=rf"^{url}: cannot be read \(.*at byte {header:,}\)"):
                read(url)


def test_every_flipped_bit_is_noticed_with_the_digest_of_the_tar(tmp_path: Path) -> None:
    url = write_tar(tmp_path / "a.tar")
    recorded = digest_of(url)
    assert len(list(tar_reader.iter_members(url, REMEDY, ".jpg", recorded=recorded))) == 2
    whole = Path(url).read_bytes()
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        Path(url).write_bytes(damaged)
        with pytest.raises(DamagedError, match=rf"^{url}: cannot be read \(.*Build it again\.$"):
            list(tar_reader.iter_members(url, REMEDY, ".jpg", DamagedError, recorded))
        with (
            pytest.raises(DamagedError, match="does not match its recorded sha256"),
            tar_reader.open_seekable(url, remedy=REMEDY, error_type=DamagedError, recorded=recorded),
        ):
            pass


def test_a_missing_tar_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"none\.tar: is missing\. Build it again\.$"):
        read_stream(str(tmp_path / "none.tar"))


@pytest.mark.parametrize("read", READERS)
def test_links_devices_folders_and_sparse_files_are_skipped(tmp_path: Path, read: Callable[[str], list[bytes]]) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    write_tar(path, MEMBERS[:1], "a")
    assert read(str(path)) == [b"image 0"]


def test_a_compressed_tar_is_streamed(tmp_path: Path) -> None:
    assert read_stream(write_tar(tmp_path / "a.tar.gz", mode="w:gz")) == [content for _, content in MEMBERS]


def test_a_remote_tar_is_read_like_a_local_one(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/a.tar"
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/a.tar", Path(write_tar(tmp_path / "a.tar")).read_bytes())
    assert read_stream(url) == read_index(url) == [content for _, content in MEMBERS]
    with storage.open_read(url) as stream:
        assert tar_reader.TarIndex(stream, url, REMEDY).read(3) == b"image 1"


def test_other_errors_of_the_storage_are_raised_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise ConnectionError("the connection was lost")

    monkeypatch.setattr(storage, "open_read", fail)
    with pytest.raises(ConnectionError):
        read_stream(write_tar(tmp_path / "a.tar"))


def stream_names(url: str) -> list[str]:
    return [member.name for member in tar_reader.stream_members(url, lambda name, size: True, REMEDY, DamagedError)]


def test_members_of_other_tools_are_named_with_what_they_are_and_read_where_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
    write_tar(path, MEMBERS[:2], "a")
    digests: list[Digest] = []
    wanted = lambda name, size: name.endswith(".jpg") and size == 7  # noqa: E731
    members = list(tar_reader.stream_members(str(path), wanted, REMEDY, DamagedError, digests.append))
    assert [(each.name, each.is_file, each.content) for each in members] == [
        ("link.jpg", False, None),
        ("0.jpg", True, b"image 0"),
        ("0.json", True, None),
    ]
    assert digests == [digest_of(str(path))]


def test_a_tar_of_other_tools_must_have_its_end(tmp_path: Path) -> None:
    """The readers of a run's own tars compare a digest instead."""
    url = write_tar(tmp_path / "a.tar")
    whole = Path(url).read_bytes()
    Path(url).write_bytes(whole[:2048])
    assert len(read_stream(url)) == 2
    with pytest.raises(
        DamagedError, match=r"a\.tar: cannot be read \(it ends without the mark of its end.*Build it again"
    ):
        stream_names(url)
    Path(url).write_bytes(whole + b"x")
    with pytest.raises(DamagedError, match="there is more after the mark of its end"):
        stream_names(url)
    Path(url).write_bytes(whole + bytes(100_000))
    assert len(stream_names(url)) == 4
