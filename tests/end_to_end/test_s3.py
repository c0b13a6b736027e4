"""The pipeline on a faulty S3 server (moto, on loopback) gives the results of a local disk."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.synthetic.http_server import SceneServer
from lotlip_data.synthetic.scenes import SPLITS
from lotlip_data.synthetic.url_list import write_list, write_manifest
from tests.faults.s3 import BUCKET, SECRET, fault_counts, s3_server
from tests.pipeline import run_fixture as fake_run

CAPTIONER = "tiny-llava"
SHARDS, IMAGES = 2, 12
TRAINING = {"method": "lotlip", "preset": "demo", "epochs": 1, "batch": 8, "warm_up": 1, "checkpoint_every": 1}
FAULTS = {"refuse": 0.03, "lose": 0.03, "drop": 0.03, "delay": 0.02}


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder with a short path, as Ray's sockets need it."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def start(*command: str) -> subprocess.Popen[str]:
    command_line = [sys.executable, "-m", "lotlip_data.pipeline.cli", *command]
    return subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a process and return its output. It must succeed and must not print the secret."""
    out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    assert SECRET not in out + errors
    return out


def results(run: Run) -> dict[str, Any]:
    """All results that must not depend on the storage."""
    index = dataset_index.read_index(run)
    names = [file.name for record in dataset_index.read_records(run, index) for file in record.files]
    by_name: dict[str, Any] = {name: storage.read_bytes(f"{run.shards}/{name}") for name in sorted(names)}
    by_name["samples"], by_name["dropped"] = index["samples"], index["dropped"]
    by_name["model"] = storage.read_bytes(f"{run.train('lotlip')}/model/model.safetensors")
    evaluation = json.loads(storage.read_bytes(run.evaluation("lotlip")))
    return by_name | {"retrieval": evaluation["retrieval"], "classification": evaluation["classification"]}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_pipeline_on_a_faulty_s3_server_gives_the_results_of_a_local_disk(
    tmp_path: Path, ray_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest, list and run are S3 URLs. Credentials in the environment reach Ray's workers, and no log."""
    monkeypatch.setenv("RAY_TMPDIR", ray_folder)
    local, remote = Run.at(str(tmp_path / "run")), Run.at(f"s3://{BUCKET}/a run")
    with SceneServer() as scene_server, s3_server(tmp_path, **FAULTS) as environment:
        use(environment, monkeypatch)
        write_list(str(tmp_path / "images.csv"), scene_server.url, SPLITS["images"][: SHARDS * IMAGES - 1], {"dead": 1})
        settings = {
            "samples_per_shard": IMAGES,
            "captioners": [CAPTIONER],
            "train": [TRAINING],
            "evaluate": ["world"],
        }
        write_manifest(str(tmp_path / "images.yaml"), "images.csv", **settings)
        write_manifest(str(tmp_path / "s3.yaml"), f"s3://{BUCKET}/lists/*.csv", **settings)
        assert storage.create_from_file(f"s3://{BUCKET}/lists/images.csv", str(tmp_path / "images.csv"))
        assert storage.create_from_file(f"s3://{BUCKET}/s3.yaml", str(tmp_path / "s3.yaml"))
        output_of(start("run", str(tmp_path / "images.yaml"), local.url))
        for stage in (("download", f"s3://{BUCKET}/s3.yaml"), ("recaption",), ("shard",), ("train",)):
            output_of(start(*stage, remote.url))
        output_of(start("run", f"s3://{BUCKET}/s3.yaml", remote.url))  # only the evaluation is left
        assert "nothing to do" in output_of(start("run", f"s3://{BUCKET}/s3.yaml", remote.url))
        assert json.loads(output_of(start("status", remote.url, "--json")))["dataset"] is True
        stats = [json.loads(output_of(start("stats", run.url, "--json"))) for run in (local, remote)]
        assert stats[0] == stats[1] and stats[0]["texts"] == SHARDS * IMAGES - 1
        output_of(start("verify", remote.url))
        features = f"{remote.url}/features.parquet"
        texts = tmp_path / "texts.txt"
        texts.write_text("a red circle\na blue square\n")
        output_of(start("embed", f"{remote.train('lotlip')}/model", features, "--texts", str(texts)))
        with storage.open_read(features) as stream:
            assert pq.read_table(stream).num_rows == 2
        expected, actual = results(local), results(remote)
        assert [name for name in expected if actual[name] != expected[name]] == [] and list(actual) == list(expected)
        for name in storage.list_below(remote.url):
            assert SECRET.encode() not in storage.read_bytes(f"{remote.url}/{name}"), name
    logs = [path for path in Path(ray_folder).rglob("*") if path.is_file()]
    assert logs and [path for path in logs if SECRET.encode() in path.read_bytes()] == []
    assert all(fault_counts(tmp_path)[fault] >= 5 for fault in ("refuse", "lose", "drop"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_drivers_on_one_run_on_s3_leave_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_run.make(tmp_path / "run", shards=SHARDS, images=6, writers=[])
    run = Run.at(f"s3://{BUCKET}/run")
    with s3_server(tmp_path, delay=0.02) as environment:
        use(environment, monkeypatch)
        for name in storage.list_below(fake.run.url):
            assert storage.create_from_file(f"{run.url}/{name}", f"{fake.run.url}/{name}")
        for command in (("recaption", run.url, "-c", CAPTIONER), ("shard", run.url)):
            both = [start(*command), start(*command)]
            for driver in both:
                output_of(driver)
            output_of(start(command[0], fake.run.url, *command[2:]))
        for shard in range(SHARDS):
            remote_file = fsspec.filesystem("s3").open(run.caption_shard(CAPTIONER, shard))
            texts = [
                table.column("text")
                for table in map(pq.read_table, (remote_file, fake.run.caption_shard(CAPTIONER, shard)))
            ]
            assert texts[0] == texts[1] and len(texts[0]) == 6
        assert len(ledger.recorded(run.caption_ledger(CAPTIONER))) == SHARDS
        assert storage.list_below(run.parts(CAPTIONER)) == []
        assert [shard for shard, _ in dataset_index.done_shards(run)] == list(range(SHARDS))
        assert verify(run) == [] and verify(fake.run) == []
        files, local_files = (
            [
                file
                for record in dataset_index.read_records(each_run, dataset_index.read_index(each_run))
                for file in record.files
            ]
            for each_run in (run, fake.run)
        )
        assert files == local_files
        expected_names = {file.name for file in files} | {
            dataset_index.DATASET_JSON,
            dataset_index.CARD,
            dataset_index.CROISSANT,
            dataset_index.MARKERS,
        }
        assert set(storage.list_names(run.shards)) == expected_names
