"""An object is created by exactly one writer, is complete or missing, and is never overwritten."""

import errno
import os
import pathlib
import pickle
import subprocess
import sys
import time
import uuid

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lotlip_data.manifests import storage
from lotlip_data.manifests.storage_retry import DiskError, StorageError
from tests.manifests.concurrent_writers import outputs_of_writers

KINDS = ["local", "memory"]


def base_url(kind: str, tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "a folder") if kind == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_created_object_does_not_change(kind: str, tmp_path: pathlib.Path) -> None:
    url = storage.join(base_url(kind, tmp_path), "deep", "x")
    assert storage.create(url, b"first")
    assert not storage.create(url, b"second")
    (tmp_path / "local").write_bytes(b"third")
    assert not storage.create_from_file(url, str(tmp_path / "local"))
    assert storage.read_bytes(url) == b"first"
    assert storage.create_from_file(url + "2", str(tmp_path / "local"))
    assert storage.read_bytes(url + "2") == b"third"
    assert (tmp_path / "local").exists()


@pytest.mark.parametrize("same_disk", [True, False])
def test_a_later_write_to_the_source_file_does_not_change_the_object(
    same_disk: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_within_a_folder(source: str, target: str) -> None:
        if not same_disk and pathlib.Path(source).parent != pathlib.Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target)

    monkeypatch.setattr(os, "link", link_within_a_folder)
    local, folder = tmp_path / "local", tmp_path / "run"
    for name in ("created", "moved", "replaced"):
        local.write_bytes(name.encode())
        inode = local.stat().st_ino
        if name == "replaced":
            storage.replace_from_file(str(folder / name), str(local))
        else:
            assert storage.create_from_file(str(folder / name), str(local), move=name == "moved")
        assert local.exists() == (name != "moved")
        assert ((folder / name).stat().st_ino == inode) == (name == "moved" and same_disk)
    local.write_bytes(b"something else")
    assert not storage.create_from_file(str(folder / "moved"), str(local), move=True), "the object exists already"
    assert {name: storage.read_bytes(str(folder / name)) for name in storage.list_names(str(folder))} == {
        name: name.encode() for name in ("created", "moved", "replaced")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_listed_read_replaced_and_removed(kind: str, tmp_path: pathlib.Path) -> None:
    base = base_url(kind, tmp_path)
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


def test_a_request_without_a_response_is_repeated_and_never_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For `exists`, `is_folder`, and the check of an exclusive creation that failed."""
    base = base_url("memory", pathlib.Path())
    url = storage.join(base, "x")
    assert storage.create(url, b"first")
    info, failures_left = MemoryFileSystem.info, [0]

    def fail_sometimes(self: MemoryFileSystem, path: str, **options: object) -> object:
        failures_left[0] -= 1
        if failures_left[0] >= 0:
            raise OSError(errno.EIO, "the connection was reset")
        return info(self, path, **options)

    def reject(self: MemoryFileSystem, path: str, value: bytes, **options: object) -> None:
        raise FileExistsError(path)  # as an object store, without a call of `info`

    monkeypatch.setattr(MemoryFileSystem, "info", fail_sometimes)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", reject)
    for failures in range(3):
        failures_left[0] = failures
        assert storage.exists(url)
        failures_left[0] = failures
        assert storage.is_folder(base)
        failures_left[0] = failures
        assert not storage.create(url, b"second")
    failures_left[0] = 100
    with pytest.raises(OSError, match="reset"):
        storage.exists(url)
    failures_left[0] = 0
    assert storage.read_bytes(url) == b"first" and not storage.exists(url + "2") and not storage.is_folder(url)


@pytest.mark.parametrize("url", ["foo://bucket/run", "gs://bucket/run"])
def test_an_unsupported_storage_is_an_error_of_one_line(url: str) -> None:
    with pytest.raises(storage.StorageError, match=rf"^{url}: this storage is not supported here"):
        storage.exists(url)


def test_a_url_that_is_its_own_content_is_refused() -> None:
    with pytest.raises(storage.StorageError, match=r"^data://text/csv;base64,\w+: a `data:` URL is not supported here"):
        storage.kind("data://text/csv;base64,dXJs")


def test_files_match_a_pattern_in_folders_with_special_characters(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a [1]").mkdir()
    (tmp_path / "a [1]" / "folder.csv").mkdir()
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / "a [1]" / name).touch()
    assert storage.list_matching(f"{tmp_path}/a [1]/*.csv") == [f"{tmp_path}/a [1]/{name}.csv" for name in "ab"]
    assert list(storage.stamps_matching(f"{tmp_path}/a [1]/*.csv")) == storage.list_matching(f"{tmp_path}/a [1]/*.csv")
    base = base_url("memory", tmp_path)
    storage.create(f"{base}/x-1.csv", b"")
    assert storage.list_matching(f"{base}/x-*") == [f"{base}/x-1.csv".replace("memory://", "memory:///")]


def test_an_unreadable_folder_does_not_count_as_empty(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    assert storage.list_below(str(tmp_path)) == ["a/b/c"]
    scandir = os.scandir

    def scandir_without_permission(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_without_permission)
    with pytest.raises(PermissionError):
        storage.list_below(str(tmp_path))
    assert storage.list_below(str(tmp_path / "nothing")) == []


def test_exactly_one_of_many_processes_creates_each_object(tmp_path: pathlib.Path) -> None:
    code = """
import sys
from lotlip_data.manifests import storage
folder, writer = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for index in range(100):
    if storage.create(f"{folder}/{index}", writer.encode() * 1000):
        print(index)
"""
    printed = outputs_of_writers(code, [(str(tmp_path), str(writer)) for writer in range(3)])
    created = [(index, writer) for writer, indices in enumerate(printed) for index in indices.split()]
    assert sorted(int(index) for index, _ in created) == list(range(100)), "exactly one writer creates each object"
    for index, writer in created:
        assert storage.read_bytes(f"{tmp_path}/{index}") == str(writer).encode() * 1000
    assert len(list(tmp_path.iterdir())) == 100  # and no scratch file


def test_a_killed_writer_leaves_complete_objects_only(tmp_path: pathlib.Path) -> None:
    code = """
import sys
from lotlip_data.manifests import storage
for index in range(10**6):
    storage.create(f"{sys.argv[1]}/{index}", bytes([index % 251]) * 3_000_000)
"""
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
        while not storage.list_names(str(folder)):
            assert process.poll() is None, "it ended before it created an object"
            time.sleep(0.001)
        time.sleep(0.013 * attempt)
        process.kill()
        process.wait()
        for name in storage.list_names(str(folder)):
            assert storage.read_bytes(f"{folder}/{name}") == bytes([int(name) % 251]) * 3_000_000


def test_paths_become_absolute_and_urls_lose_their_trailing_slash(
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


REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
}


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_write_that_the_disk_refuses_is_tried_once_and_names_the_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: str
) -> None:
    local, calls = tmp_path / "local", []
    local.write_bytes(b"content")
    base = storage.join(base_url(kind, tmp_path), "run")

    def refuse(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        raise OSError(code, os.strerror(code))

    for name in ("pipe_file", "put_file"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    url = storage.join(base, "object")
    writes = [
        lambda: storage.create(url, b"content"),
        lambda: storage.create_from_file(url, str(local)),
        lambda: storage.create_from_file(url, str(local), move=True),
        lambda: storage.replace(url, b"content"),
        lambda: storage.replace_from_file(url, str(local)),
        lambda: storage.check_writable(base),
    ]
    for write in writes:
        calls.clear()
        with pytest.raises(DiskError, match=rf"^{base}: {REFUSALS[code]}.* run the same command again") as error:
            write()
        assert len(calls) == 1 and error.value.errno == code
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # as Ray sends it
    assert local.exists() and storage.list_names(base) == []


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_the_trial_write_leaves_nothing(tmp_path: pathlib.Path, kind: str) -> None:
    base = base_url(kind, tmp_path)
    storage.check_writable(base)
    assert storage.stamps_below(base) == {}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS, errno.EINVAL, errno.EACCES])
def test_a_file_system_without_hard_links_is_named_whatever_it_answers(
    code: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="has no hard links"):
        storage.create(str(tmp_path / "x"), b"")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_one_link_where_others_work_is_raised_as_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def fail_for_x(source: str, target: str) -> None:
        if str(target).endswith("x"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        link(source, target)

    monkeypatch.setattr(os, "link", fail_for_x)
    with pytest.raises(DiskError, match="may not write there"):
        storage.create(str(tmp_path / "x"), b"")
    assert list(tmp_path.iterdir()) == []
