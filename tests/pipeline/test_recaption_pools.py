"""Pools share what a cluster has: real nodes, with GPUs that exist for Ray's accounting only."""

import re
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from lotlip_data.pipeline import ledger
from lotlip_data.pipeline.choice import choose
from tests.pipeline import fake_run
from tests.pipeline.cluster_run import Nodes, decoded, nodes, rows, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY = ["tiny-llava", "tiny-sharegpt4v", "tiny-instructblip"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Nodes]:
    with nodes(tmp_path, 0) as made:
        yield made


def test_three_pools_that_each_want_a_gpu_run_in_turn_on_one(cluster: Nodes, tmp_path: Path) -> None:
    """Nobody has said so: no pool setting is given but the engine. Every captioner says what it says by itself."""
    run = fake_run.make(tmp_path / "run", 2, 8, writers=(), pixels=96).run
    cluster.add(num_cpus=4, num_gpus=1)
    driver = cluster.driver(run, [{"preset": name, "pool": {"engine": "transformers"}} for name in TINY])
    assert driver.end()["code"] == 0
    told = re.findall(r"^(tiny-[a-z0-9]+): (an engine is ready|shard \d)", driver.log.read_text(), re.MULTILINE)
    turns = [name for name, _ in groupby(name for name, _ in told)]
    assert sorted(turns) == sorted(TINY)  # one after the other: nobody's lines stand between another's
    assert len(told) == 3 * 3
    images = decoded(run)
    for name in TINY:
        done = ledger.effort(ledger.recorded(run.caption_ledger(name)).values())
        assert done.gpu_seconds == done.seconds > 0
        assert {row["uid"]: row["text"] for row in rows(run, name)} == undisturbed(images, name)


def test_a_pool_without_work_gives_its_gpu_to_the_others(cluster: Nodes, tmp_path: Path) -> None:
    """Two GPUs, two pools, one of which has a single shard: the other one ends with both."""
    run = fake_run.make(tmp_path / "run", 30, 12, writers=(), pixels=96).run
    little = {"preset": TINY[2], "name": "little", "pool": {"engine": "transformers"}}
    much = {"preset": TINY[1], "name": "much", "pool": {"engine": "transformers", "concurrency": 1}}
    for shard in range(29):
        fake_run.claim_captioner(run, "little", choose([little])[0].config.id.partition("@")[2])
        fake_run.write_captions(run, "little", shard, fake_run.captions_of(run, "llava", shard))
    cluster.add(num_cpus=4, num_gpus=2)
    driver = cluster.driver(run, [little, much])
    assert driver.end()["code"] == 0
    out = driver.log.read_text()
    assert [ready(out, name) for name in ("little", "much")] == [1, 2]


def test_an_actor_waits_for_the_node_that_it_asks_for(cluster: Nodes, tmp_path: Path) -> None:
    """A custom resource, an accelerator and a label that no node has at first. Of half a GPU half its hours count."""
    run = fake_run.make(tmp_path / "run", 1, 8, writers=(), pixels=96).run
    cluster.add(num_cpus=2)
    pool = {
        "engine": "transformers",
        "resources": {"captioner_slot": 1},
        "accelerator_type": "A100",
        "num_gpus": 0.5,
        "labels": {"tier": "spot"},
    }
    driver = cluster.driver(run, [{"preset": TINY[2], "pool": pool}])
    time.sleep(12)
    assert cluster.actors() == [] and driver.running()
    cluster.add(
        num_cpus=1,
        num_gpus=1,
        resources={"captioner_slot": 1, "accelerator_type:A100": 1},
        labels={"tier": "spot"},
    )
    assert driver.end()["code"] == 0
    assert len(rows(run, TINY[2])) == 8
    done = ledger.effort(ledger.recorded(run.caption_ledger(TINY[2])).values())
    assert done.gpu_seconds == pytest.approx(done.seconds / 2, abs=0.001) and done.seconds > 0


def ready(out: str, name: str) -> int:
    return len(re.findall(rf"^{name}: an engine is ready", out, re.MULTILINE))
