"""What is stale, and the next command: after each stage of a run, and after a change of an input."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.stage import shard
from lotlip_data.pipeline.reporting.next_step import find_not_started, find_stale, next_command
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.pipeline import run_fixture

MANIFEST = run_fixture.make_manifest().replace(
    captioners=["llava"], train=[{"method": "lit"}], evaluate=["synthetic", {"task": "iiw", "data": "iiw"}]
)


def stale_of(run: Run, manifest: Manifest = MANIFEST) -> list[tuple[str, str]]:
    stale = find_stale(run, manifest, get_status(run))
    assert all(entry["name"] == "" for entry in stale if entry["stage"] == "dataset")
    return [(entry["stage"], entry["reason"]) for entry in stale]


def next_of(run: Run, manifest: Manifest = MANIFEST) -> str:
    """The next command, without the program and the run."""
    status = get_status(run)
    line = next_command(run, manifest, status, find_stale(run, manifest, status))
    return line.removeprefix("lotlip-data ").removesuffix(f" {run.url}").replace(run.url, "RUN")


def make_run(folder: Path, shards: int = 2, writers: tuple[str, ...] = ("llava",)) -> Run:
    """A run with the given shards downloaded, out of two."""
    run = run_fixture.make(folder, shards=shards, images=4, writers=writers).run
    partition = Partition(images=10, shards=2, samples_per_shard=5, rows=10, duplicates=0, invalid={}, sources={})
    storage.create(run.plan, json.dumps(asdict(partition)).encode())
    return run


def finish_training(run: Run, name: str) -> None:
    dataset = [entry["tar"]["sha256"] for entry in dataset_index.read_index(run)["shards"]]
    storage.create(storage.join(run.train(name), "config.json"), json.dumps({"dataset": dataset}).encode())
    storage.create(run.training_done(name), b"{}")


def test_the_next_command_is_the_first_stage_that_is_not_complete(tmp_path: Path, ray_cluster: None) -> None:
    assert next_of(make_run(tmp_path / "partial", shards=1)) == "download RUN/manifest.yaml"
    captionless = make_run(tmp_path / "captionless", writers=())
    assert next_of(captionless) == "recaption"
    assert find_not_started(MANIFEST, get_status(captionless)) == {
        "recaption": ["llava"],
        "train": ["lit"],
    }
    run = make_run(tmp_path / "run")
    assert next_of(run) == "shard"
    shard(MANIFEST, run)
    assert next_of(run) == "train" and stale_of(run) == []
    finish_training(run, "lit")
    assert next_of(run) == "run RUN/manifest.yaml"
    storage.create(run.evaluation("lit"), b"{}")
    storage.create(storage.join(run.train("lit"), "eval-iiw.json"), b"{}")
    assert next_of(run) == "view" and stale_of(run) == []


def test_a_dataset_without_captions_that_came_later_is_stale_and_shard_is_next(
    tmp_path: Path, ray_cluster: None
) -> None:
    run = make_run(tmp_path / "run")
    shard(MANIFEST, run)
    finish_training(run, "lit")
    run_fixture.claim_captioner(run, "mine")
    for number in range(2):
        run_fixture.write_captions(run, "mine", number, run_fixture.captions_of(run, "llava", number))
    assert stale_of(run) == [("dataset", "captions by mine are not in it")]
    assert next_of(run) == "shard"
    shard(MANIFEST, run)
    ((stage, reason),) = stale_of(run)
    assert stage == "train" and "the dataset has changed since" in reason


def test_a_dataset_of_chosen_captioners_asks_for_no_other(tmp_path: Path, ray_cluster: None) -> None:
    """Also if one of the others has captions left."""
    run = make_run(tmp_path / "run", writers=("llava", "instructblip"))
    run_fixture.claim_captioner(run, "later")
    manifest = MANIFEST.replace(captioners=["llava", {"name": "later", "kind": "llava", "model": "m"}])
    shard(manifest, run, ["llava"])
    assert dataset_index.read_dataset_summary(run)["captioners_chosen"] is True
    assert stale_of(run, manifest) == [] and next_of(run, manifest) == "train"
    shard(MANIFEST, run)
    assert "captioners_chosen" not in dataset_index.read_dataset_summary(run)
    shard(MANIFEST, run, ["instructblip", "llava"])  # the default ones
    assert "captioners_chosen" not in dataset_index.read_dataset_summary(run)


def test_a_dataset_built_with_other_settings_or_images_is_stale(tmp_path: Path, ray_cluster: None) -> None:
    run = make_run(tmp_path / "run")
    shard(MANIFEST, run)
    stricter = MANIFEST.replace(clean={"min_side": 64})
    assert [stage for stage, _ in stale_of(run, stricter)] == ["dataset"] and next_of(run, stricter) == "shard"
    run_fixture.write_images(run, 2, [3_500_000])
    assert ("dataset", "1 downloaded image is not in it") in stale_of(run)


def test_a_dataset_built_before_images_were_compared_is_stale_until_shard_compares_them(
    tmp_path: Path, ray_cluster: None
) -> None:
    run = make_run(tmp_path / "run")
    shard(MANIFEST, run)
    compared = MANIFEST.replace(clean={"near_duplicates": 4})
    assert stale_of(run, compared) == [("dataset", "near_duplicates was None, is 4")]
    assert next_of(run, compared) == "shard"
    shard(compared, run)
    assert stale_of(run, compared) == []
    kept_first = MANIFEST.replace(clean={"near_duplicates": 4, "keep": "first"})
    assert stale_of(run, kept_first) == [("dataset", "keep was largest, is first")]
    assert stale_of(run, MANIFEST.replace(clean={"near_duplicates": 4, "evaluation_distance": 2})) == []  # no set


def test_a_damaged_dataset_is_named_and_the_status_is_shown_all_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    storage.create(run.dataset, b"{")
    ((stage, reason),) = stale_of(run)
    assert stage == "dataset" and reason.startswith(f"{run.dataset}: ")


@pytest.mark.parametrize("train", [[], [{"method": "lit"}]])
def test_a_path_with_a_space_is_quoted(tmp_path: Path, train: list[dict[str, str]]) -> None:
    run = make_run(tmp_path / "my run")
    status = get_status(run)
    assert next_command(run, MANIFEST.replace(train=train), status, []).endswith(f" '{run.url}'")
