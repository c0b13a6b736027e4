"""The recaption stage with the real command, real Ray actors and a tiny captioner."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import checks
from lotlip_data.pipeline.core.ledger import captioned_shards
from lotlip_data.pipeline.recaptioning import stage
from lotlip_data.pipeline.recaptioning.claims import claim_settings
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from lotlip_data.pipeline.recaptioning.stage import recaption
from tests.pipeline import run_fixture as fake_run
from tests.support.processes import kill_driver

CAPTIONER = "tiny-instructblip"
SHARDS, IMAGES = 12, 16
COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli", "recaption"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def captions(run: Run) -> list[dict[str, Any]]:
    return [
        row
        for shard in captioned_shards(run, CAPTIONER)
        for row in pq.read_table(run.caption_shard(CAPTIONER, shard)).to_pylist()
    ]


@pytest.mark.slow
def test_a_killed_driver_loses_no_commit_and_the_next_one_gives_the_texts_of_a_calm_run(tmp_path: Path) -> None:
    """At the kill, some but not all shards are committed. The next driver captions only the others."""
    calm, killed = (
        fake_run.make(tmp_path / name, SHARDS, IMAGES, writers=(), pixels=96).run for name in ("calm", "a killed run")
    )
    assert subprocess.run([*COMMAND, calm.url, "-c", CAPTIONER], env=ENVIRONMENT).returncode == 0

    driver = subprocess.Popen([*COMMAND, killed.url, "-c", CAPTIONER], env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while not captioned_shards(killed, CAPTIONER):
        assert time.monotonic() < deadline and driver.poll() is None, "nothing was committed"
        time.sleep(0.005)
    kill_driver(driver)
    done = captioned_shards(killed, CAPTIONER)
    assert 0 < len(done) < SHARDS
    kept = {shard: Path(killed.caption_shard(CAPTIONER, shard)).stat().st_mtime_ns for shard in done}

    again = subprocess.run([*COMMAND, killed.url, "-c", CAPTIONER, "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert again.returncode == 0
    figures = json.loads(again.stdout)[CAPTIONER]
    assert figures["shards_done"] == SHARDS - len(done)
    assert figures["shards_skipped"] == len(done)
    assert kept == {shard: Path(killed.caption_shard(CAPTIONER, shard)).stat().st_mtime_ns for shard in done}
    assert captions(killed) == captions(calm)
    assert len({row["uid"] for row in captions(killed)}) == len(captions(killed)) == SHARDS * IMAGES

    third = subprocess.run([*COMMAND, killed.url, "-c", CAPTIONER], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert third.returncode == 0 and third.stdout.startswith("recaption: nothing to do, all of it is done\nnext: ")


@pytest.mark.slow
def test_more_pools_than_resources_run_in_turn(tmp_path: Path, ray_cluster: None) -> None:
    """Each of three captioners takes all CPUs of the cluster. All shards of all captioners are finished in the end."""
    run = fake_run.make(tmp_path, shards=2, images=4, writers=(), pixels=96).run
    names = ["one", "two", "three"]
    jobs = resolve_captioners({"preset": CAPTIONER, "name": name, "pool": {"num_cpus": 2}} for name in names)
    summary = recaption(run, jobs)
    assert dict(summary.units) == dict.fromkeys(names, 2)
    assert dict(summary.captions) == dict.fromkeys(names, 8)
    starts = [json.loads(file.read_text()) for file in Path(run.logs, "engines").glob("*.json")]
    assert len(starts) == 3  # one record per actor
    capacity = {"dtype": "float32", "device": "the CPU", "sequences": 16}
    assert all(start["model"] == CAPTIONER and start["capacity"].items() >= capacity.items() for start in starts)


def test_an_unreadable_shard_fails_with_its_reason_and_all_others_are_captioned(
    tmp_path: Path, ray_cluster: None
) -> None:
    run = fake_run.make(tmp_path, shards=3, images=4, writers=(), pixels=96).run
    tar = Path(run.images, json.loads(storage.read_bytes(run.image_stats(1)))["tar"])
    tar.write_bytes(tar.read_bytes()[:3000])
    summary = recaption(run, resolve_captioners([CAPTIONER]))
    assert captioned_shards(run, CAPTIONER) == [0, 2]
    assert len(summary.failed) == 1
    assert str(tar) in summary.failed[0] and "cannot be read" in summary.failed[0]


def test_a_model_that_cannot_be_loaded_fails_with_its_reason(tmp_path: Path, ray_cluster: None) -> None:
    run = fake_run.make(tmp_path / "run", shards=2, images=4, writers=()).run
    model = tmp_path / "model"
    shutil.copytree(resolve("tiny-llava"), model)
    (model / "tokenizer.json").write_text("{")
    entry = {"name": "none", "kind": "llava", "model": str(model), "pool": {"max_actors": 2}}
    started = time.monotonic()
    (failed,) = recaption(run, resolve_captioners([entry])).failed
    assert failed.startswith(f"none: 2 shards not captioned: captioner 'none': {model} does not load: ")
    (trace,) = Path(run.logs, "engines").iterdir()
    assert trace.name.startswith("none-") and str(trace) in failed and "Traceback" in trace.read_text()
    assert time.monotonic() - started < 120  # one try


def test_a_model_that_cannot_be_had_is_an_error_before_ray_starts_and_claims_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "cluster", lambda: pytest.fail("Ray starts"))
    run = fake_run.make(tmp_path / "run", shards=1, images=2, writers=()).run
    (tmp_path / "empty").mkdir()
    for model, message in (
        (tmp_path / "empty", "has no config.json"),
        (tmp_path / "none", "there is no such folder"),
        (resolve("tiny-instructblip"), "model_type='instructblip': captioners of this kind need 'llava'"),
    ):
        with pytest.raises(UserError, match=f"captioner 'none': .*{re.escape(str(model))}.*{message}.*; "):
            recaption(run, resolve_captioners([{"name": "none", "kind": "llava", "model": str(model)}]))
        assert not storage.exists(run.captioner("none"))


@pytest.mark.parametrize(
    ("pool", "missing"),
    [
        ({"resources": {"slot": 1}}, "1 slot"),
        ({"num_cpus": 1000}, "1000 CPU"),
        ({"accelerator_type": "H100"}, "accelerator_type:H100"),
        ({"labels": {"tier": "spot"}}, "the label tier=spot"),
    ],
)
def test_an_actor_that_no_machine_can_hold_stops_its_captioner_at_once(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, pool: dict[str, Any], missing: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = fake_run.make(tmp_path / "run", shards=2, images=2, writers=()).run
    (failed,) = recaption(run, resolve_captioners(["tiny-llava"], pool)).failed
    assert failed.startswith("tiny-llava: 2 shards not captioned: no machine has what one actor asks for (")
    assert missing in failed and "Correct the captioner's `pool`" in failed


def test_more_gpus_than_the_machine_has_are_an_error_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "cluster", lambda: pytest.fail("Ray starts"))
    monkeypatch.setattr(checks, "available_gpus", lambda: 1)
    run = fake_run.make(tmp_path / "run", shards=1, images=2, writers=()).run
    with pytest.raises(UserError, match="captioner 'tiny-llava': asks for 2 GPUs, and this machine has 1; "):
        recaption(run, resolve_captioners(["tiny-llava"], {"num_gpus": 2}))


@pytest.mark.slow
def test_a_captioner_that_fails_on_every_image_commits_nothing_and_captions_all_once_it_is_mended(
    tmp_path: Path, ray_cluster: None
) -> None:
    run, mine = fake_run.make(tmp_path / "run", shards=2, images=4, writers=(), pixels=96).run, tmp_path / "mine"
    shutil.copytree(resolve("tiny-llava"), mine)
    processor = json.loads((mine / "processor_config.json").read_text())
    (mine / "processor_config.json").write_text(
        json.dumps({name: value for name, value in processor.items() if name != "num_additional_image_tokens"})
    )
    jobs = resolve_captioners([{"name": "mine", "kind": "llava", "model": str(mine)}])
    (failed,) = recaption(run, jobs).failed
    assert failed.startswith("mine: 2 shards not captioned: captioner 'mine' cannot caption a plain image of ")
    assert "image tokens" in failed and "processor_config.json" in failed
    assert captioned_shards(run, "mine") == [] and not storage.exists(run.quarantine("captions", "mine"))

    (mine / "processor_config.json").write_text(json.dumps(processor))
    summary = recaption(run, jobs)
    assert (summary.failed, summary.captions["mine"], summary.rejected["mine"]) == ([], 8, 0)

    (mine / "tokenizer_config.json").write_text("{}")
    with pytest.raises(RecaptionError, match=r"mine has changed .*\(changed: tokenizer_config.json\)"):
        recaption(run, jobs)


def test_captions_of_different_settings_never_mix(tmp_path: Path, ray_cluster: None) -> None:
    run = fake_run.make(tmp_path, shards=1, images=4, writers=(), pixels=96).run
    recaption(run, resolve_captioners([CAPTIONER]))
    with pytest.raises(RecaptionError, match=r"changed: max_new_tokens.*Give the captioner another name"):
        recaption(run, resolve_captioners([{"preset": CAPTIONER, "max_new_tokens": 9}]))


def test_the_recorded_settings_of_a_captioner_need_not_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fake_run.make(tmp_path, shards=1, images=1, writers=()).run
    (job,) = resolve_captioners([CAPTIONER])
    claim_settings(run, job.config)

    def refuse(url: str, data: bytes) -> bool:
        raise OSError(errno.EROFS, "Read-only file system", url)

    monkeypatch.setattr(storage, "create", refuse)
    claim_settings(run, job.config)


def test_without_images_the_error_names_the_command_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(RecaptionError, match="Run `lotlip-data download` first"):
        recaption(Run.at(str(tmp_path)), resolve_captioners([CAPTIONER]))


@pytest.mark.slow
@pytest.mark.parametrize("captioner", ["tiny-llava", "tiny-instructblip"])
def test_the_command_commits_the_same_captions_with_either_engine(tmp_path: Path, captioner: str) -> None:
    """vLLM in a Ray actor against transformers: text, tokens and finish reason of every image (float32, greedy)."""
    rows_of_engine = {}
    for engine in ("transformers", "vllm"):
        run = fake_run.make(tmp_path / engine, shards=2, images=16, writers=(), pixels=96).run
        process = subprocess.run([*COMMAND, run.url, "-c", captioner, "--engine", engine], env=ENVIRONMENT)
        assert process.returncode == 0
        rows = [pq.read_table(run.caption_shard(captioner, shard)).to_pylist() for shard in (0, 1)]
        rows_of_engine[engine] = [{key: row[key] for key in row if key != "engine"} for row in rows[0] + rows[1]]
    assert len(rows_of_engine["vllm"]) == 32
    assert rows_of_engine["vllm"] == rows_of_engine["transformers"]
