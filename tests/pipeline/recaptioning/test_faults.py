"""After any fault, every image has one caption or one reason, and no committed shard is captioned again.

The texts are those of an undisturbed run. The tests use a real Ray cluster of several nodes
(`ray.cluster_utils.Cluster`) and real engines with tiny models in float32.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.ledger import captioned_shards
from lotlip_data.pipeline.recaptioning.worker import WARM_UP_SIZES
from tests.faults.captioner import hash_of
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.recaptioning.cluster_run import (
    Nodes,
    assert_exactly_once,
    committed,
    decoded,
    kill,
    nodes,
    rows,
    undisturbed,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

MODEL = "tiny-instructblip"
NAME = "one"
SHARDS, IMAGES = 6, 24
WARM_UP = {hash_of(Image.new("RGB", size, "grey")) for size in WARM_UP_SIZES}
"""The hashes of the images that warm up every engine."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(tmp_path_factory.mktemp("faults")) as two_nodes:
        yield two_nodes


@pytest.fixture
def faults(cluster: Nodes) -> Iterator[Path]:
    """The folder for the faults of one test."""
    yield cluster.faults
    cluster.kill_drivers()
    for note in cluster.faults.iterdir():
        note.unlink()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image.Image]:
    return decoded(fake_run.make(tmp_path_factory.mktemp("images"), SHARDS, IMAGES, writers=(), pixels=96).run)


@pytest.fixture(scope="module")
def texts(images: dict[str, Image.Image]) -> dict[str, str]:
    return undisturbed(images, MODEL)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fake_run.make(tmp_path / "a run", SHARDS, IMAGES, writers=(), pixels=96).run


def entry(faults: Path, name: str = NAME, **pool: Any) -> dict[str, Any]:
    settings = {"max_actors": 2, "engine": "transformers", "part_size": 16}
    options = {"engine_args": {"faults": str(faults)}}
    return {"name": name, "kind": "faulty", "model": MODEL, "pool": {**settings, "engine_options": options, **pool}}


def saved_parts(run: Run) -> list[str]:
    return storage.list_below(run.parts(NAME))


def finished(faults: Path) -> int:
    """Number of captions of the run's images that engines have finished."""
    log = faults / "log"
    return sum(name not in WARM_UP for name in log.read_text().split()) if log.exists() else 0


def hold(faults: Path, *images: Image.Image) -> list[Path]:
    """Make these images wait until `release` is called with the result."""
    notes = [faults / f"hold-{hash_of(image)}" for image in images]
    for note in notes:
        note.touch()
    return notes


def release(notes: list[Path]) -> None:
    for note in notes:
        note.unlink()


def test_a_captioner_that_fails_on_most_images_commits_no_shard_and_each_is_tried_once(
    cluster: Nodes, faults: Path, run: Run, images: dict[str, Image.Image], texts: dict[str, str]
) -> None:
    """It captions plain images, so its start succeeds. Once it is mended, it captions all images."""
    notes = [faults / f"fail-{hash_of(image)}" for image in images.values()]
    for note in notes:
        note.touch()
    summary = cluster.driver(run, [entry(faults)]).end()
    assert summary["code"] == 1 and captioned_shards(run, NAME) == []
    assert len(summary["failed"]) == SHARDS
    reason = f"{IMAGES} of its {IMAGES} images were rejected, {IMAGES} of them with: the request failed"
    assert all(reason in line for line in summary["failed"])
    for note in notes:
        note.unlink()
    assert cluster.driver(run, [entry(faults)]).end()["code"] == 0
    assert_exactly_once(run, NAME, texts)


def test_killed_actors(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """Kill each of the two actors with SIGKILL while they caption."""
    driver = cluster.driver(run, [entry(faults, concurrency=8)])  # fewer images in flight than a part holds
    wait_for(lambda: saved_parts(run), "part")
    victims = cluster.actors()
    before = committed(run, [NAME])
    for victim in victims:
        kill(victim)
    assert driver.end()["code"] == 0 and victims
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()
    assert finished(faults) <= len(texts) + len(victims) * 16  # each kill lost at most one part


def test_a_killed_node(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """Kill a node's raylet with SIGKILL. Its actor restarts elsewhere or nowhere, and the others finish its shards."""
    cluster.add()
    driver = cluster.driver(run, [entry(faults, max_actors=3)])
    wait_for(lambda: saved_parts(run), "part")
    before = committed(run, [NAME])
    cluster.kill_node(cluster.workers[-1])
    assert driver.end()["code"] == 0
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()


def test_an_engine_that_runs_out_of_memory_or_hangs(
    cluster: Nodes, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """Each fault happens once. The engine is replaced, and the image at which it happened gets its caption."""
    names = [hash_of(image) for image in images.values()]
    (faults / f"once-oom-{names[5]}").touch()
    (faults / f"once-hang-{names[60]}").touch()
    assert cluster.driver(run, [entry(faults, stall_seconds=20)]).end()["code"] == 0
    assert not list(faults.glob("once-*"))
    assert_exactly_once(run, NAME, texts)


def test_poison_images_are_isolated(
    cluster: Nodes, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """One image kills its process, one hangs the engine, one fails its request. Each gets its reason."""
    uids = list(texts)
    deadly, hanging, failing = uids[3], uids[40], uids[41]
    (faults / f"kill-{hash_of(images[deadly])}").touch()
    (faults / f"hang-{hash_of(images[hanging])}").touch()
    (faults / f"fail-{hash_of(images[failing])}").touch()
    assert cluster.driver(run, [entry(faults, stall_seconds=20)]).end()["code"] == 0
    assert_exactly_once(run, NAME, texts, failed=[deadly, hanging, failing])
    reasons = {row["uid"]: row["error"] for row in rows(run, NAME)}
    assert "2 of them with it alone: killed, or crashed" in reasons[deadly]
    assert "the engine hung: no answer for" in reasons[hanging]
    assert reasons[failing] == "the request failed"


def test_storage_that_fails_now_and_then(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """One operation in ten fails, some of them after they took effect. Retries succeed."""
    (faults / "storage").write_text(json.dumps({"rate": 0.12}))
    driver = cluster.driver(Run(f"faulty://{run.url}"), [entry(faults)])
    assert driver.end()["code"] == 0
    assert_exactly_once(run, NAME, texts)


def test_a_full_disk(
    cluster: Nodes, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """The first refused write ends the driver. With free space, the next driver resumes from the saved parts."""
    remote = Run(f"faulty://{run.url}")
    held = hold(faults, list(images.values())[-1])
    driver = cluster.driver(remote, [entry(faults)])
    wait_for(lambda: captioned_shards(run, NAME), "committed shard")
    (faults / "storage").write_text(json.dumps({"full": True}))
    release(held)
    summary = driver.end()
    assert summary["code"] == 1
    assert len(summary["failed"]) == 1 and f"captions/{NAME}" in summary["failed"][0]
    assert "the disk is full. Free space on it" in summary["failed"][0]
    before = committed(run, [NAME])
    assert len(before) < SHARDS
    (faults / "storage").unlink()
    assert cluster.driver(remote, [entry(faults)]).end()["code"] == 0
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()


def test_two_drivers_whose_engines_give_different_texts_leave_one_text_per_image(
    cluster: Nodes, tmp_path: Path, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """Every shard has the texts of one driver, and what is committed first stays.

    Images of the first shards are held, so that no driver commits before both caption.
    """
    other = tmp_path / "other"
    other.mkdir()
    (other / "say").write_text("Hello. ")
    held = hold(faults, *list(images.values())[::IMAGES])
    drivers = []
    for folder in (faults, other):
        drivers.append(cluster.driver(run, [entry(folder, max_actors=1)]))
        wait_for(lambda folder=folder: finished(folder), "caption")
    release(held)
    first_commits: dict[str, Any] = {}
    while any(driver.running() for driver in drivers):
        for path, content in committed(run, [NAME]).items():
            assert first_commits.setdefault(path, content) == content
        time.sleep(0.05)
    assert [driver.end()["code"] for driver in drivers] == [0, 0]
    committed_rows = rows(run, NAME)
    assert sorted(row["uid"] for row in committed_rows) == sorted(texts)
    assert all(row["text"] in (texts[row["uid"]], "Hello. " + texts[row["uid"]]) for row in committed_rows)
    assert storage.list_below(run.parts(NAME)) == []


def test_a_killed_engine_process_inside_an_actor(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """Kill vLLM's own process with SIGKILL. The actor saves finished captions and is restarted."""
    # Two images at a time, so that images are left for seconds after the first part.
    pool = {"max_actors": 1, "engine": "vllm", "part_size": 16, "concurrency": 2}
    driver = cluster.driver(run, [{"preset": MODEL, "name": NAME, "pool": pool}])
    (victim,) = wait_for(cluster.engines, "engine")
    wait_for(lambda: saved_parts(run), "part")
    before = committed(run, [NAME])
    kill(victim)
    assert len(before) < SHARDS
    assert driver.end()["code"] == 0
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()
