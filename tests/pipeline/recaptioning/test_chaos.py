"""Twenty random kills in one run, one vLLM pool and two of transformers: nothing is lost, doubled or made again."""

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
SLOWLY = {**POOL, "engine": "transformers", "concurrency": 2}  # so that there is work left to kill for a while
CAPTIONERS = [
    {"preset": "tiny-llava", "pool": {**POOL, "engine": "vllm"}},
    {"preset": "tiny-sharegpt4v", "pool": SLOWLY},
    {"preset": "tiny-instructblip", "pool": SLOWLY},
]
NAMES = [str(captioner["preset"]) for captioner in CAPTIONERS]


def strike(cluster: Nodes, driver: Driver, kind: str, dice: random.Random) -> bool:
    """Kill one thing of that kind; False where there is none just now."""
    if kind == "driver":
        driver.kill()
        return True
    if kind == "node":
        cluster.kill_node(dice.choice(cluster.workers))
        cluster.add()
        return True
    victims = cluster.engines() if kind == "engine" else cluster.actors()
    if victims:
        kill(dice.choice(victims))
    return bool(victims)


def wait_for_progress(driver: Driver, safe: Callable[[], list[str]]) -> None:
    """Until something more is safe in storage, or the driver has ended."""
    before = safe()
    wait_for(lambda: safe() != before or not driver.running(), "progress")


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_twenty_random_kills(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "a run", SHARDS, IMAGES, writers=(), pixels=96).run
    images = decoded(run)
    dice = random.Random(seed := random.randrange(10**6))
    print(f"seed {seed}")
    kinds = ["actor"] * 11 + ["engine"] * 3 + ["node"] * 3 + ["driver"] * 3
    dice.shuffle(kinds)
    (tmp_path / "faults").mkdir()

    def safe() -> list[str]:
        below = [name for captioner in NAMES for name in storage.list_below(run.captioner(captioner))]
        return [name for name in below if "suspects-" not in name]

    with nodes(tmp_path / "faults", 3) as cluster:
        driver = cluster.driver(run, CAPTIONERS)
        seen: dict[str, tuple[int, bytes]] = {}
        struck = []
        while kinds:
            wait_for_progress(driver, safe)
            time.sleep(dice.uniform(0, 2))
            assert driver.running(), f"the run ended after {struck}: {driver.end()}"
            seen |= {path: content for path, content in committed(run, NAMES).items() if path not in seen}
            kind = next((kind for kind in kinds if strike(cluster, driver, kind, dice)), None)
            if kind:
                kinds.remove(kind)
                struck.append((kind, sum(len(captioned_shards(run, name)) for name in NAMES)))
            if kind == "driver":
                driver = cluster.driver(run, CAPTIONERS)
        print(struck)
        assert len(struck) == KILLS
        summary = driver.end()
    assert summary["code"] == 0
    assert seen.items() <= committed(run, NAMES).items()
    for name in NAMES:
        assert_exactly_once(run, name, undisturbed(images, name))
