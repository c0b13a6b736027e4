"""The pages of a run on S3 (moto's server, on loopback) equal those of the same run on disk, also with S3 errors."""

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
from tests.faults.s3 import BUCKET, SECRET, fault_counts, s3_server
from tests.pipeline.viewer import dataset_fixture

PATHS = ("/", "/?at=1.3", "/?q=number", "/?q=%2229.%22", "/?captioner=llava", "/sample/1/2", "/quarantine")
FAULT_RATES = {"refuse": 0.1, "lose": 0.05, "drop": 0.1, "delay": 0.02}


@pytest.mark.slow
def test_a_run_on_s3_has_the_same_pages_as_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_run, remote_run = dataset_fixture.make(tmp_path / "a run"), Run.at(f"s3://{BUCKET}/a run")
    failed = {"key": "000000001", "uid": "u", "url": "http://images.test/x.jpg", "reason": "timeout", "detail": ""}
    quarantine = Path(local_run.quarantine("images", "00000.parquet"))
    quarantine.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([failed], QUARANTINE), quarantine)
    with s3_server(tmp_path, **FAULT_RATES) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # or it keeps the endpoint of an earlier test
        for name in storage.list_below(local_run.url):
            assert storage.create_from_file(f"{remote_run.url}/{name}", f"{local_run.url}/{name}")
        local, remote = (
            TestClient(create_app(View(run, seconds=60.0)), base_url="http://localhost")
            for run in (local_run, remote_run)
        )
        for path in PATHS:
            expected, answer = local.get(path), remote.get(path)
            assert (expected.status_code, answer.status_code) == (200, 200)
            assert answer.text == expected.text.replace(local_run.url, remote_run.url), path
            assert SECRET not in answer.text
        for shard, row in ((0, 0), (0, 9), (2, 5)):
            picture = remote.get(f"/image/{shard}/{row}")
            assert picture.status_code == 200
            assert picture.content == local.get(f"/image/{shard}/{row}").content
    assert sum(fault_counts(tmp_path).values()) >= 5
