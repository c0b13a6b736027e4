"""The time of the download: from a given speed, the run's own, or this machine's CPUs; it is never left out."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests import storage
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.planning.download import estimate_download, measured_speed
from lotlip_data.pipeline.planning.hardware import Hardware
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.pipeline import run_fixture

MANIFEST = run_fixture.make_manifest()


def test_a_given_speed_decides() -> None:
    estimate = estimate_download(MANIFEST, 10_000, Hardware(download_speed=50), None)
    assert estimate and (estimate["urls"], estimate["seconds"], estimate["source"]) == (10_000, 200, "as given")


def test_without_one_it_is_assumed_for_the_cpus_of_this_machine_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    estimate = estimate_download(MANIFEST, 10_000, Hardware(), None)
    assert estimate and (estimate["urls_per_s"], estimate["seconds"]) == (200, 50)
    assert estimate["source"] == "assumed, for 4 CPUs as here; see --download-speed"
    slow = MANIFEST.replace(download={"threads": 8})
    assert (estimate := estimate_download(slow, 10_000, Hardware(), None)) and estimate["urls_per_s"] == 32


def test_a_run_gives_its_own_speed_without_its_pauses_and_what_is_left(tmp_path: Path) -> None:
    run = run_fixture.make(tmp_path / "run", shards=2, images=4, writers=()).run
    partition = Partition(images=110, shards=22, samples_per_shard=5, rows=110, duplicates=0, invalid={}, sources={})
    storage.create(run.plan, json.dumps(asdict(partition)).encode())
    assert measured_speed(run) is None
    for shard, started in ((0, 1000), (1, 9000)):
        ledger.record(run.image_ledger, shard, ledger.WorkRecord(5, 1, 0, started, started + 10))
    estimate = estimate_download(MANIFEST, None, Hardware(), run)
    assert estimate and (estimate["urls"], estimate["urls_per_s"], estimate["seconds"]) == (100, 0.5, 200)


def test_the_answer_is_short_and_the_assumptions_are_shown_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n" + "".join(f"http://{i}.example/1.jpg,x\n" for i in range(50)))
    (tmp_path / "m.yaml").write_text("name: x\nsources: [{name: a, files: [a.csv]}]\ncaptioners: [tiny-llava]\n")
    command = ["plan", str(tmp_path / "m.yaml"), "--download-speed", "25"]
    short = CliRunner().invoke(app, command).output.splitlines()
    assert len(short) <= 10 and not any(line.startswith("assumption ") for line in short)
    assert "download     2 s at 25 URLs/s (as given)" in short
    assert short[-1].endswith("shown with --assumptions")
    shown = CliRunner().invoke(app, [*command, "--assumptions"]).output.splitlines()
    assert sum(line.startswith(("assumption ", "detail ")) for line in shown) == int(short[-1].split()[1].strip(","))
    refused = CliRunner().invoke(app, [*command[:2], "--download-speed", "0"])
    assert refused.exit_code == 2 and "--download-speed 0" in refused.output
