"""A run that streams, in one process or in three, killed at any time, gives the dataset of the stages in turn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import JSON_KEY
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.synthetic.http_server import SceneServer
from lotlip_data.synthetic.scenes import SPLITS
from lotlip_data.synthetic.url_list import write_list, write_manifest
from tests.faults.s3 import BUCKET, s3_server
from tests.support.paths import ROOT
from tests.support.processes import kill_driver

SHARDS, IMAGES = 6, 8
CAPTIONERS = ("first_long", "first_short", "second_long")
SECONDS = 600
FAULTS = ROOT / "tests" / "faults"
"""Has a captioner that needs no model."""


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Processes have a cluster of their own, and find the captioner."""
    paths = [str(FAULTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", *arguments, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], Any], *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output


def captioned(run: Run) -> int:
    return sum(len(ledger.captioned_shards(run, name)) for name in CAPTIONERS)


def dataset(run: Run) -> dict[str, bytes]:
    """The files of the dataset. The fingerprints in dataset.json are those of the run's own inputs."""
    names = [name for name in storage.list_names(run.shards) if not name.startswith(".")]
    files = {name: storage.read_bytes(run.dataset_file(name)) for name in names}
    index = json.loads(files["dataset.json"])
    del index[JSON_KEY]
    for entry in index["inputs"]:
        del entry["fingerprint"]
    return files | {"dataset.json": json.dumps(index).encode()}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A manifest whose images are served, and the dataset that its stages give in turn."""
    folder = tmp_path_factory.mktemp("input")
    pool = {"engine_options": {"engine_args": {"faults": str(folder)}}}
    settings: dict[str, Any] = {"kind": "texts", "model": "m", "pool": pool}
    with SceneServer() as server:
        write_list(str(folder / "images.tsv"), server.url, SPLITS["images"][: SHARDS * IMAGES - 4], {"dead": 4})
        path = str(folder / "images.yaml")
        write_manifest(
            path,
            "images.tsv",
            samples_per_shard=IMAGES,
            captioners=[
                {"name": "first", "prompts": {"long": "Describe.", "short": "Name."}} | settings,
                {"name": "second", "prompts": {"long": "Describe it."}} | settings,
            ],
            train=[],
        )
        staged = Run.at(str(folder / "staged"))
        for command in (["download", path], ["recaption"], ["shard"]):
            end(start(*command, staged.url))
        yield path, dataset(staged)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_streamed_run_gives_the_dataset_of_the_stages_in_turn_also_after_kills(
    tmp_path: Path, manifest: tuple[str, dict[str, bytes]]
) -> None:
    """The first call is killed, the second is asked to stop, and the third ends."""
    path, expected = manifest
    run = Run.at(str(tmp_path / "run"))
    driver = start("run", path, run.url)
    wait_for(lambda: captioned(run), driver)
    assert not storage.exists(run.dataset)
    kill_driver(driver)
    done = captioned(run)
    driver = start("run", path, run.url)
    wait_for(lambda: captioned(run) > done, driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 130 and "run the same command again to resume" in output, output
    end(start("run", path, run.url))
    assert dataset(run) == expected and verify(run) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_processes_with_only_s3_between_them_give_it_too(
    tmp_path: Path, manifest: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The followers start before the run exists. The download is killed in between, and a captioner too."""
    path, expected = manifest
    with s3_server(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        run = Run.at(f"s3://{BUCKET}/run")
        writer, captioner = start("shard", run.url, "--follow"), start("recaption", run.url, "--follow")
        download = start("download", path, run.url)
        wait_for(lambda: ledger.fetched_shards(run), writer, captioner, download)
        kill_driver(download)
        wait_for(lambda: captioned(run), writer, captioner)
        kill_driver(captioner)
        captioner = start("recaption", run.url, "--follow")
        end(start("download", path, run.url))
        end(captioner)
        end(writer)
        assert dataset(run) == expected and verify(run) == []
