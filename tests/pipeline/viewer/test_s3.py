"""The page of a run on S3 (moto's server, on loopback) is that of the same run on a disk, in bad days too."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.downloading.commit import QUARANTINE
from lotlip_data.pipeline.viewer.app import View, create_app
from tests.faults.s3 import BUCKET, SECRET, dealt, s3_server
from tests.pipeline.viewer import dataset_fixture as view_run

PATHS = ("/", "/?at=1.3", "/?q=number", "/?q=%2229.%22", "/?captioner=llava", "/sample/1/2", "/quarantine")
BAD_DAYS = {"refuse": 0.1, "lose": 0.05, "drop": 0.1, "delay": 0.02}


def test_a_run_on_s3_is_shown_as_that_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = view_run.make(tmp_path / "a run"), Run.at(f"s3://{BUCKET}/a run")
    failed = {"key": "000000001", "uid": "u", "url": "http://images.test/x.jpg", "reason": "timeout", "detail": ""}
    quarantine = Path(here.quarantine("images", "00000.parquet"))
    quarantine.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([failed], QUARANTINE), quarantine)
    with s3_server(tmp_path, **BAD_DAYS) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # which keeps the endpoint of an earlier test
        for name in storage.list_below(here.url):
            assert storage.create_from_file(f"{there.url}/{name}", f"{here.url}/{name}")
        local, remote = (
            TestClient(create_app(View(run, seconds=60.0)), base_url="http://localhost") for run in (here, there)
        )
        for path in PATHS:
            wanted, found = local.get(path), remote.get(path)
            assert (wanted.status_code, found.status_code) == (200, 200)
            assert found.text == wanted.text.replace(here.url, there.url), path
            assert SECRET not in found.text
        for shard, row in ((0, 0), (0, 9), (2, 5)):
            picture = remote.get(f"/image/{shard}/{row}")
            assert picture.status_code == 200
            assert picture.content == local.get(f"/image/{shard}/{row}").content
    assert sum(dealt(tmp_path).values()) >= 5
