"""`storage` keeps its guarantees on an S3 server (moto, on loopback), with and without faults of the server."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.storage_retry import StorageError
from tests.faults.s3 import BUCKET, SECRET, fault_counts, s3_server
from tests.manifests.concurrent_writers import outputs_of_writers

RUN = f"s3://{BUCKET}/a run"
FAULT_RATES = {"refuse": 0.05, "lose": 0.05, "drop": 0.05, "delay": 0.02}


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path) as environment:
        use(environment, monkeypatch)
        yield environment


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # it has the endpoint of an earlier test


def test_a_storage_that_ignores_conditional_requests_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path, unconditional=1) as environment:
        use(environment, monkeypatch)
        with pytest.raises(StorageError, match=rf"^{RUN}/images: this storage ignores conditional requests"):
            storage.check_writable(f"{RUN}/images")
        assert storage.list_below(RUN) == []


def test_a_storage_that_honours_conditional_requests_is_accepted(s3: dict[str, str]) -> None:
    storage.check_writable(f"{RUN}/images")
    assert storage.list_below(RUN) == []


def test_a_created_object_does_not_change(s3: dict[str, str], tmp_path: Path) -> None:
    url, local = f"{RUN}/deep/x", tmp_path / "local"
    local.write_bytes(b"third")
    assert storage.create(url, b"first")
    assert not storage.create(url, b"second")
    assert not storage.create_from_file(url, str(local))
    assert storage.read_bytes(url) == b"first" and storage.size(url) == 5
    assert storage.create_from_file(url + "2", str(local))
    assert storage.read_bytes(url + "2") == b"third"
    assert storage.create(url + "3", b"") and storage.read_bytes(url + "3") == b""


def test_objects_are_listed_stamped_replaced_and_removed(s3: dict[str, str], tmp_path: Path) -> None:
    assert storage.list_names(RUN) == [] and storage.list_below(RUN) == [] and storage.stamps_below(RUN) == {}
    assert storage.size(f"{RUN}/a") is None and storage.last_change(RUN, ["a"]) is None
    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{BUCKET}/a run/", b"")  # a folder, as the S3 console creates one
    for name in ("a", "b", "folder/c", "folder/deep/d", "folder-2"):
        assert storage.create(f"{RUN}/{name}", name.encode())
    assert storage.list_names(RUN) == ["a", "b", "folder", "folder-2"]
    assert storage.list_below(f"{RUN}/folder") == ["c", "deep/d"]
    before = storage.list_stamps(RUN)
    assert list(before) == storage.list_names(RUN)
    assert storage.stamps_below(f"{RUN}/a") == {"": before["a"]}
    objects = {f"{BUCKET}/a run/{name}": before[name] for name in ("a", "b", "folder-2")}
    assert storage.stamps_matching(f"{RUN}/*") == objects and storage.stamps_matching(f"{RUN}/c*") == {}
    assert list(storage.stamps_matching(f"{RUN}/b").values()) == [before["b"]]
    assert storage.stamps_matching(f"{RUN}/c") == storage.stamps_matching(f"{RUN}/folder") == {}
    assert list(storage.stamps_below(f"{RUN}/folder")) == ["c", "deep/d"]
    (tmp_path / "new").write_bytes(b"new")
    storage.replace_from_file(f"{RUN}/a", str(tmp_path / "new"))
    assert storage.read_bytes(f"{RUN}/a") == b"new"
    after = storage.list_stamps(RUN)
    assert [name for name in after if after[name] != before[name]] == ["a"]
    assert abs((storage.last_change(RUN, ["a", "b"]) or 0) - time.time()) < 60
    storage.remove(f"{RUN}/folder")
    storage.remove(f"{RUN}/nothing")
    assert storage.list_names(RUN) == ["a", "b", "folder-2"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{RUN}/folder/c")


def test_a_large_file_is_a_multipart_upload_and_is_created_once(s3: dict[str, str], tmp_path: Path) -> None:
    """Twice the size of a part, so that S3 gets a multipart upload with a conditional completion."""
    large, other = tmp_path / "large", tmp_path / "other"
    large.write_bytes(os.urandom(1 << 20) * 101)
    other.write_bytes(os.urandom(1 << 20) * 101)
    assert storage.create_from_file(f"{RUN}/large", str(large))
    assert not storage.create_from_file(f"{RUN}/large", str(other))
    assert storage.create_from_file(f"{RUN}/large", str(large)), "the same bytes: a response can have been lost"
    fs = fsspec.filesystem("s3")
    assert "-" in fs.info(f"{BUCKET}/a run/large")["ETag"], "the ETag of a multipart upload"
    with storage.open_read(f"{RUN}/large") as stored, large.open("rb") as expected:
        while chunk := expected.read(1 << 23):
            assert stored.read(1 << 23) == chunk
        assert stored.read(1) == b""


def test_exactly_one_of_many_processes_creates_each_object(s3: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys
from lotlip_data.manifests import storage
folder, writer, local = sys.argv[1:]
open(local, "wb").write(writer.encode() * 1000)
storage.exists(folder)  # imports the client of S3
print("ready", flush=True)
sys.stdin.readline()
for index in range(40):
    url = f"{folder}/{index}"
    is_first = storage.create(url, writer.encode() * 1000) if index % 2 else storage.create_from_file(url, local)
    if is_first:
        print(index)
"""
    printed = outputs_of_writers(code, [(RUN, str(writer), str(tmp_path / str(writer))) for writer in range(2)])
    created = [(index, writer) for writer, indices in enumerate(printed) for index in indices.split()]
    assert sorted(int(index) for index, _ in created) == list(range(40)), "exactly one writer creates each object"
    for index, writer in created:
        assert storage.read_bytes(f"{RUN}/{index}") == str(writer).encode() * 1000


@pytest.mark.slow
def test_with_faults_of_the_server_everything_is_created_once_and_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors, lost responses and dropped connections: the writer that created an object always gets True."""
    local = tmp_path / "local"
    with s3_server(tmp_path, **FAULT_RATES) as environment:
        use(environment, monkeypatch)
        created: dict[tuple[int, int], bool] = {}

        def write(writer: int) -> None:
            for index in range(30):
                created[index, writer] = storage.create(f"{RUN}/{index}", b"%d" % writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index in range(30):
            (winner,) = [writer for writer in range(2) if created[index, writer]]
            assert storage.read_bytes(f"{RUN}/{index}") == b"%d" % winner
        for index in range(15):
            local.write_bytes(b"%d" % index)
            assert storage.create_from_file(f"{RUN}/file-{index}", str(local))
        local.write_bytes(os.urandom(1 << 20) * 101)
        assert storage.create_from_file(f"{RUN}/large", str(local))
        assert len(storage.list_below(RUN)) == 46
    assert all(fault_counts(tmp_path)[fault] >= 2 for fault in ("refuse", "lose", "drop"))


def test_an_error_that_a_user_must_fix_says_how(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(storage.StorageError, match=r"no-such-bucket/x.*Create the bucket"):
        storage.create("s3://no-such-bucket/x", b"1")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(storage.StorageError, match=r"s3://lotlip/x: no credentials .*AWS_ACCESS_KEY_ID") as error:
        storage.create(f"s3://{BUCKET}/x", b"1")
    assert SECRET not in str(error.value)
