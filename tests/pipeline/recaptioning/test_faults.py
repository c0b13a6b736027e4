"""Whatever dies: every image has one caption or one reason, nothing committed is made again, texts are a calm run's.

A real Ray of several nodes (`ray.cluster_utils.Cluster`), real engines with the tiny models in float32.
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
WARM_UP = hash_of(Image.new("RGB", (64, 64), "grey"))
"""Of the image that every engine starts with."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture
def faults(cluster: Nodes) -> Iterator[Path]:
    """The folder that the faults of one test are written to."""
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


def under_way(run: Run) -> list[str]:
    return storage.list_below(run.parts(NAME))


def finished(faults: Path) -> int:
    """Captions of the run's images that engines have finished."""
    log = faults / "log"
    return sum(name != WARM_UP for name in log.read_text().split()) if log.exists() else 0


def hold(faults: Path, *images: Image.Image) -> list[Path]:
    """Notes that make these images wait until they are removed."""
    notes = [faults / f"hold-{hash_of(image)}" for image in images]
    for note in notes:
        note.touch()
    return notes


def release(notes: list[Path]) -> None:
    for note in notes:
        note.unlink()


def test_killed_actors(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """SIGKILL to each of the two actors at work."""
    driver = cluster.driver(run, [entry(faults, concurrency=8)])  # what waits for a part has room in it
    wait_for(lambda: under_way(run), "part")
    victims = cluster.actors()
    before = committed(run, [NAME])
    for victim in victims:
        kill(victim)
    assert driver.end()["code"] == 0 and victims
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()
    assert finished(faults) <= len(texts) + len(victims) * 16  # at most a part each was lost


def test_a_killed_node(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """SIGKILL to a node's raylet: its actor goes on elsewhere, or not at all, and the other one does its work."""
    cluster.add()
    driver = cluster.driver(run, [entry(faults, max_actors=3)])
    wait_for(lambda: under_way(run), "part")
    before = committed(run, [NAME])
    cluster.kill_node(cluster.workers[-1])
    assert driver.end()["code"] == 0
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()


def test_an_engine_that_runs_out_of_memory_or_hangs(
    cluster: Nodes, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """Once each: the engine is replaced, and the image that it happened at gets its caption."""
    names = [hash_of(image) for image in images.values()]
    (faults / f"once-oom-{names[5]}").touch()
    (faults / f"once-hang-{names[60]}").touch()
    assert cluster.driver(run, [entry(faults, stall_seconds=20)]).end()["code"] == 0
    assert not list(faults.glob("once-*"))
    assert_exactly_once(run, NAME, texts)


def test_poison_images_are_isolated(
    cluster: Nodes, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """One kills its process, one hangs the engine, one fails its request: each has its reason, all else is there."""
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


def test_storage_that_fails_once_in_a_while(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """One operation in ten fails, some after they were done; none so often that asking again does not help."""
    (faults / "storage").write_text(json.dumps({"rate": 0.12}))
    driver = cluster.driver(Run(f"faulty://{run.url}"), [entry(faults)])
    assert driver.end()["code"] == 0
    assert_exactly_once(run, NAME, texts)


def test_a_full_disk(
    cluster: Nodes, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """It is said; with space again, the next start goes on from what was saved, and nothing is made again."""
    remote = Run(f"faulty://{run.url}")
    of_last_shard = hold(faults, list(images.values())[-1])
    driver = cluster.driver(remote, [entry(faults)])
    wait_for(lambda: captioned_shards(run, NAME), "committed shard")
    (faults / "storage").write_text(json.dumps({"full": True}))
    release(of_last_shard)
    summary = driver.end()
    assert summary["code"] == 1
    assert all("No space left on device" in line for line in summary["failed"]) and summary["failed"]
    before = committed(run, [NAME])
    assert len(before) < SHARDS
    (faults / "storage").unlink()
    assert cluster.driver(remote, [entry(faults)]).end()["code"] == 0
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()


def test_two_drivers_whose_engines_say_different_things_leave_one_text_each(
    cluster: Nodes, tmp_path: Path, faults: Path, run: Run, texts: dict[str, str], images: dict[str, Image.Image]
) -> None:
    """Every shard is one driver's alone, and what one of them has committed is what stays.

    The first commits nothing until the second is at work, which starts when the first is.
    """
    other = tmp_path / "other"
    other.mkdir()
    (other / "say").write_text("Hello. ")
    one_of_each_shard = hold(faults, *list(images.values())[::IMAGES])
    drivers = []
    for folder in (faults, other):
        drivers.append(cluster.driver(run, [entry(folder, max_actors=1)]))
        wait_for(lambda folder=folder: finished(folder), "caption")
    release(one_of_each_shard)
    seen: dict[str, Any] = {}
    while any(driver.running() for driver in drivers):
        for path, content in committed(run, [NAME]).items():
            assert seen.setdefault(path, content) == content
        time.sleep(0.05)
    assert [driver.end()["code"] for driver in drivers] == [0, 0]
    found = rows(run, NAME)
    assert sorted(row["uid"] for row in found) == sorted(texts)
    assert all(row["text"] in (texts[row["uid"]], "Hello. " + texts[row["uid"]]) for row in found)
    assert storage.list_below(run.parts(NAME)) == []


def test_a_killed_engine_process_inside_an_actor(cluster: Nodes, faults: Path, run: Run, texts: dict[str, str]) -> None:
    """SIGKILL to vLLM's own process while it writes: the actor saves what it has, and is started again."""
    # two images at a time, so that there is work left for seconds after the first part
    pool = {"max_actors": 1, "engine": "vllm", "part_size": 16, "concurrency": 2}
    driver = cluster.driver(run, [{"preset": MODEL, "name": NAME, "pool": pool}])
    (victim,) = wait_for(cluster.engines, "engine")
    wait_for(lambda: under_way(run), "part")
    before = committed(run, [NAME])
    kill(victim)
    assert len(before) < SHARDS
    assert driver.end()["code"] == 0
    assert_exactly_once(run, NAME, texts)
    assert before.items() <= committed(run, [NAME]).items()
