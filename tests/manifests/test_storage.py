"""An object is created by exactly one writer, is whole or not there, and is never overwritten."""

import errno
import os
import pathlib
import subprocess
import sys
import time
import uuid

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lotlip_data.manifests import storage
from tests.manifests.concurrent_writers import outputs_of_writers

KINDS = ["local", "memory"]


def place(kind: str, tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "a folder") if kind == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_stays_as_it_is(kind: str, tmp_path: pathlib.Path) -> None:
    url = storage.join(place(kind, tmp_path), "deep", "x")
    assert storage.create(url, b"first")
    assert not storage.create(url, b"second")
    (tmp_path / "local").write_bytes(b"third")
    assert not storage.create_from_file(url, str(tmp_path / "local"))
    assert storage.read_bytes(url) == b"first"
    assert storage.create_from_file(url + "2", str(tmp_path / "local"))
    assert storage.read_bytes(url + "2") == b"third"
    assert (tmp_path / "local").exists()


@pytest.mark.parametrize("same_disk", [True, False])
def test_whoever_writes_to_a_file_again_does_not_write_into_the_object_made_of_it(
    same_disk: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def only_beside(source: str, target: str) -> None:
        if not same_disk and pathlib.Path(source).parent != pathlib.Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target)

    monkeypatch.setattr(os, "link", only_beside)
    local, folder = tmp_path / "local", tmp_path / "run"
    for name in ("created", "moved", "replaced"):
        local.write_bytes(name.encode())
        number = local.stat().st_ino
        if name == "replaced":
            storage.replace_from_file(str(folder / name), str(local))
        else:
            assert storage.create_from_file(str(folder / name), str(local), move=name == "moved")
        assert local.exists() == (name != "moved")
        assert ((folder / name).stat().st_ino == number) == (name == "moved" and same_disk)
    local.write_bytes(b"something else")
    assert not storage.create_from_file(str(folder / "moved"), str(local), move=True), "there is one already"
    assert {name: storage.read_bytes(str(folder / name)) for name in storage.list_names(str(folder))} == {
        name: name.encode() for name in ("created", "moved", "replaced")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_listed_read_replaced_and_removed(kind: str, tmp_path: pathlib.Path) -> None:
    base = place(kind, tmp_path)
    assert storage.list_names(base) == []
    for name in ("b", "a", "folder/c"):
        assert storage.create(storage.join(base, name), name.encode())
    assert storage.list_names(base) == ["a", "b", "folder"] and storage.list_names(base, "r") == ["folder"]
    assert storage.list_below(base) == ["a", "b", "folder/c"] and list(storage.list_stamps(base, "b")) == ["b"]
    assert storage.exists(storage.join(base, "a"))
    with storage.open_read(storage.join(base, "b")) as stream:
        assert stream.read() == b"b"
    storage.replace(storage.join(base, "a"), b"new")
    (tmp_path / "new").write_bytes(b"new")
    storage.replace_from_file(storage.join(base, "d"), str(tmp_path / "new"))
    assert storage.read_bytes(storage.join(base, "a")) == storage.read_bytes(storage.join(base, "d")) == b"new"
    storage.remove(storage.join(base, "folder"))
    storage.remove(storage.join(base, "nothing"))
    assert storage.list_names(base) == ["a", "b", "d"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(base, "nothing"))


def test_a_question_that_is_not_answered_is_asked_again_and_never_taken_for_a_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether an object exists, whether it is a folder, and whether an exclusive creation came second."""
    base = place("memory", pathlib.Path())
    url = storage.join(base, "x")
    assert storage.create(url, b"first")
    info, left = MemoryFileSystem.info, [0]

    def fails_at_times(self: MemoryFileSystem, path: str, **options: object) -> object:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, "the connection was reset")
        return info(self, path, **options)

    def refuses(self: MemoryFileSystem, path: str, value: bytes, **options: object) -> None:
        raise FileExistsError(path)  # an object store does not ask itself through `info`

    monkeypatch.setattr(MemoryFileSystem, "info", fails_at_times)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuses)
    for failures in range(3):
        left[0] = failures
        assert storage.exists(url)
        left[0] = failures
        assert storage.is_folder(base)
        left[0] = failures
        assert not storage.create(url, b"second")
    left[0] = 100
    with pytest.raises(OSError, match="reset"):
        storage.exists(url)
    left[0] = 0
    assert storage.read_bytes(url) == b"first" and not storage.exists(url + "2") and not storage.is_folder(url)


@pytest.mark.parametrize("url", ["foo://bucket/run", "gs://bucket/run"])
def test_a_storage_that_cannot_be_used_here_is_told_in_one_line(url: str) -> None:
    with pytest.raises(storage.StorageError, match=rf"^{url}: this storage is not supported here"):
        storage.exists(url)


def test_files_match_a_pattern_whatever_else_their_folders_names_hold(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a [1]").mkdir()
    (tmp_path / "a [1]" / "folder.csv").mkdir()
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / "a [1]" / name).touch()
    assert storage.list_matching(f"{tmp_path}/a [1]/*.csv") == [f"{tmp_path}/a [1]/{name}.csv" for name in "ab"]
    assert list(storage.stamps_matching(f"{tmp_path}/a [1]/*.csv")) == storage.list_matching(f"{tmp_path}/a [1]/*.csv")
    base = place("memory", tmp_path)
    storage.create(f"{base}/x-1.csv", b"")
    assert storage.list_matching(f"{base}/x-*") == [f"{base}/x-1.csv".replace("memory://", "memory:///")]


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    assert storage.list_below(str(tmp_path)) == ["a/b/c"]
    scandir = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        storage.list_below(str(tmp_path))
    assert storage.list_below(str(tmp_path / "nothing")) == []


def test_of_many_processes_exactly_one_creates_each_object(tmp_path: pathlib.Path) -> None:
    code = """
import sys
from lotlip_data.manifests import storage
folder, me = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for index in range(100):
    if storage.create(f"{folder}/{index}", me.encode() * 1000):
        print(index)
"""
    printed = outputs_of_writers(code, [(str(tmp_path), str(me)) for me in range(3)])
    won = [(index, me) for me, indices in enumerate(printed) for index in indices.split()]
    assert sorted(int(index) for index, _ in won) == list(range(100)), "one winner each, and never two"
    for index, me in won:
        assert storage.read_bytes(f"{tmp_path}/{index}") == str(me).encode() * 1000
    assert len(list(tmp_path.iterdir())) == 100  # and no scratch file


def test_a_writer_that_is_killed_leaves_whole_objects_only(tmp_path: pathlib.Path) -> None:
    code = """
import sys
from lotlip_data.manifests import storage
for index in range(10**6):
    storage.create(f"{sys.argv[1]}/{index}", bytes([index % 251]) * 3_000_000)
"""
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen([sys.executable, "-c", code, str(folder)])
        while not storage.list_names(str(folder)):
            assert writer.poll() is None, "it ended before it had created anything"
            time.sleep(0.001)
        time.sleep(0.013 * attempt)
        writer.kill()
        writer.wait()
        for name in storage.list_names(str(folder)):
            assert storage.read_bytes(f"{folder}/{name}") == bytes([int(name) % 251]) * 3_000_000


def test_paths_are_made_absolute_and_urls_lose_their_last_slash(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a b/c") == f"{tmp_path}/a b/c"
    assert storage.normalise(f"file://{tmp_path}/x") == f"{tmp_path}/x"
    assert storage.normalise("~/x") == str(pathlib.Path.home() / "x")
    assert storage.normalise("s3://bucket/run/") == "s3://bucket/run"
    assert storage.join("s3://bucket/run/", "a", "b") == "s3://bucket/run/a/b"
    assert storage.is_local(str(tmp_path))
    assert not storage.is_local("memory://x")
