"""Twenty random kills in a run of one vLLM pool and two transformers pools lose, duplicate and repeat nothing."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.pipeline.core.ledger import captioned_shards
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.recaptioning.cluster_run import (
    Driver,
    Nodes,
    assert_exactly_once,
    committed,
    decoded,
    kill,
    nodes,
    undisturbed,
    wait_for,
)

KILLS = 20
SHARDS, IMAGES = 16, 80
POOL = {"max_actors": 1, "part_size": 16}
SLOW_POOL = {**POOL, "engine": "transformers", "concurrency": 2}  # slow enough that 20 kills hit unfinished shards
CAPTIONERS = [
    {"preset": "tiny-llava", "pool": {**POOL, "engine": "vllm"}},
    {"preset": "tiny-sharegpt4v", "pool": SLOW_POOL},
    {"preset": "tiny-instructblip", "pool": SLOW_POOL},
]
NAMES = [str(captioner["preset"]) for captioner in CAPTIONERS]


def kill_one(cluster: Nodes, driver: Driver, kind: str, rng: random.Random) -> bool:
    """Kill one process or node of that kind. Returns False if there is none at the moment."""
    if kind == "driver":
        driver.kill()
        return True
    if kind == "node":
        cluster.kill_node(rng.choice(cluster.workers))
        cluster.add()
        return True
    victims = cluster.engines() if kind == "engine" else cluster.actors()
    if victims:
        kill(rng.choice(victims))
    return bool(victims)


def wait_for_progress(driver: Driver, saved: Callable[[], list[str]]) -> None:
    """Wait until the storage holds new results, or the driver has ended."""
    before = saved()
    wait_for(lambda: saved() != before or not driver.running(), "progress")


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_twenty_random_kills(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "a run", SHARDS, IMAGES, writers=(), pixels=96).run
    images = decoded(run)
    rng = random.Random(seed := random.randrange(10**6))
    print(f"seed {seed}")
    kinds = ["actor"] * 11 + ["engine"] * 3 + ["node"] * 3 + ["driver"] * 3
    rng.shuffle(kinds)
    (tmp_path / "faults").mkdir()

    def saved() -> list[str]:
        names = [name for captioner in NAMES for name in storage.list_below(run.captioner(captioner))]
        return [name for name in names if "suspects-" not in name]

    with nodes(tmp_path / "faults", 3) as cluster:
        driver = cluster.driver(run, CAPTIONERS)
        first_commits: dict[str, tuple[int, bytes]] = {}
        kills = []
        while kinds:
            wait_for_progress(driver, saved)
            time.sleep(rng.uniform(0, 2))
            assert driver.running(), f"the run ended after {kills}: {driver.end()}"
            first_commits |= {
                path: content for path, content in committed(run, NAMES).items() if path not in first_commits
            }
            kind = next((kind for kind in kinds if kill_one(cluster, driver, kind, rng)), None)
            if kind:
                kinds.remove(kind)
                kills.append((kind, sum(len(captioned_shards(run, name)) for name in NAMES)))
            if kind == "driver":
                driver = cluster.driver(run, CAPTIONERS)
        print(kills)
        assert len(kills) == KILLS
        summary = driver.end()
    assert summary["code"] == 0
    assert first_commits.items() <= committed(run, NAMES).items()
    for name in NAMES:
        assert_exactly_once(run, name, undisturbed(images, name))
