"""No file is published that differs from its digest, and copies of files take little room and leave none."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.pipeline.hub import transfer
from lotlip_data.pipeline.hub.publication import publish
from tests.faults.s3 import BUCKET, s3_server
from tests.pipeline.hub.conftest import NAME, assert_holds
from tests.support.fake_dataset_hub import FakeDatasetHub


def damage(run: Run, name: str) -> None:
    file = Path(run.shards, name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: damage(run, "train-00001.tar"), r"train-00001\.tar: damaged: its content.*lotlip-data verify"),
        (lambda run: damage(run, "train-00001.parquet"), r"train-00001\.parquet: .*lotlip-data verify"),
        (lambda run: damage(run, DATASET_JSON), rf"{DATASET_JSON}: .*lotlip-data shard"),
        (lambda run: storage.remove(run.dataset_file("train-00001.tar")), r"train-00001\.tar: missing, although"),
        (lambda run: storage.remove(run.dataset_file("README.md")), r"README\.md: missing, or not of the dataset"),
        (lambda run: storage.remove(run.dataset), r"has no dataset yet\. Run `lotlip-data shard"),
    ],
)
def test_a_damaged_dataset_is_not_published(
    hub: FakeDatasetHub, run: Run, harm: Callable[[Run], None], message: str
) -> None:
    harm(run)
    with pytest.raises(UserError, match=message):
        publish(run, NAME)
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())


def test_a_run_on_another_storage_is_copied_in_groups_and_nothing_is_left(
    hub: FakeDatasetHub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(transfer, "GROUP_FILES", 2)
    most = 0

    def count() -> None:
        nonlocal most
        most = max(
            most,
            len(list((tmp_path / "scratch").rglob("*.tar"))) + len(list((tmp_path / "scratch").rglob("*.parquet"))),
        )

    hub.after["PUT object"] = count
    memory = fsspec.filesystem("memory")
    memory.put(run.url, "/a run", recursive=True)
    try:
        remote = Run.at("memory://a run")
        publish(remote, NAME)
        assert_holds(hub.repositories[NAME], run)
        assert 0 < most <= 4
        assert list((tmp_path / "scratch").iterdir()) == []
    finally:
        memory.rm("/a run", recursive=True)


@pytest.mark.slow
def test_a_run_on_s3_is_published_while_the_storage_fails_now_and_then(
    hub: FakeDatasetHub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Run.at(f"s3://{BUCKET}/a run")
    with s3_server(tmp_path, refuse=0.1, drop=0.1) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # or it keeps the endpoint of an earlier test
        for name in storage.list_below(run.shards):
            assert storage.create_from_file(remote.dataset_file(name), run.dataset_file(name))
        publish(remote, NAME)
        assert_holds(hub.repositories[NAME], run)
        assert not publish(remote, NAME).has_changes
