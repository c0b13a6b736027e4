"""Pools share the resources of a cluster. The nodes are real; their GPUs exist in Ray's accounting only."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from tests.faults.captioner import hash_of
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.recaptioning.cluster_run import Driver, Nodes, decoded, nodes, rows, undisturbed, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TINY = ["tiny-llava", "tiny-sharegpt4v", "tiny-instructblip"]
SHARDS = 8


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Nodes]:
    with nodes(tmp_path, 0) as empty_cluster:
        yield empty_cluster


def test_three_pools_that_each_want_a_gpu_run_in_turn_on_one(cluster: Nodes, tmp_path: Path) -> None:
    """Nothing but the engine is set for the pools. Every captioner generates the texts that it generates alone."""
    run = fake_run.make(tmp_path / "run", 2, 8, writers=(), pixels=96).run
    cluster.add(num_cpus=4, num_gpus=1)
    pool = {"engine": "transformers", "engine_options": {"engine_args": {"faults": str(tmp_path)}}}
    driver = cluster.driver(run, [{"name": name, "kind": "faulty", "model": name, "pool": pool} for name in TINY])
    assert driver.end()["code"] == 0
    events = re.findall(r"^(tiny-[a-z0-9]+): (engine ready|shard \d)", driver.log.read_text(), re.MULTILINE)
    turns = [name for name, _ in groupby(name for name, _ in events)]
    assert sorted(turns) == sorted(TINY)  # one after another: the lines of two captioners never alternate
    assert len(events) == 3 * 3
    images = decoded(run)
    for name in TINY:
        throughput = ledger.throughput(ledger.recorded(run.caption_ledger(name)).values())
        assert throughput.gpu_seconds == throughput.seconds > 0
        assert {row["uid"]: row["text"] for row in rows(run, name)} == undisturbed(images, name)


def test_an_actor_whose_reserved_gpu_torch_does_not_see_ends_the_pool_with_the_reason(
    cluster: Nodes, tmp_path: Path
) -> None:
    """It would caption on the CPU, in float32, and hold the GPU."""
    run = fake_run.make(tmp_path / "run", 1, 4, writers=(), pixels=96).run
    cluster.add(num_cpus=4, num_gpus=1)
    summary = cluster.driver(run, [{"preset": TINY[0], "pool": {"engine": "transformers"}}]).end()
    assert summary["code"] == 1 and len(summary["failed"]) == 1
    assert re.search(r"Ray reserved 1 GPU on .*, but torch sees 0.*num_gpus: 0", summary["failed"][0])


def test_a_finished_pool_releases_its_gpu_to_the_others(cluster: Nodes, tmp_path: Path) -> None:
    """Two pools share two GPUs. One pool has a single shard, so the other pool has both GPUs in the end.

    Its first image waits until the second engine is ready, so that there are shards left for it.
    """
    run = fake_run.make(tmp_path / "run", SHARDS, 12, writers=(), pixels=96).run
    options = {"engine_args": {"faults": str(tmp_path)}}
    little_pool = {"engine": "transformers", "engine_options": options}
    little = {"name": "little", "kind": "faulty", "model": TINY[2], "pool": little_pool}
    pool = {"engine": "transformers", "concurrency": 1, "engine_options": options}
    much = {"name": "much", "kind": "faulty", "model": TINY[1], "pool": pool}
    hold = tmp_path / f"hold-{hash_of(next(iter(decoded(run).values())))}"
    hold.touch()
    for shard in range(SHARDS - 1):
        fake_run.claim_captioner(run, "little", resolve_captioners([little])[0].config.id.partition("@")[2])
        fake_run.write_captions(run, "little", shard, fake_run.captions_of(run, "llava", shard))
    cluster.add(num_cpus=4, num_gpus=2)
    driver = cluster.driver(run, [little, much])
    wait_for(lambda: engines_ready(driver, "much") == 2, "second engine")
    hold.unlink()
    assert driver.end()["code"] == 0
    assert [engines_ready(driver, name) for name in ("little", "much")] == [1, 2]


def test_an_actor_waits_for_a_node_with_the_requested_resources(cluster: Nodes, tmp_path: Path) -> None:
    """At first no node has the custom resource, the accelerator and the label. Half a GPU counts half its hours."""
    run = fake_run.make(tmp_path / "run", 1, 8, writers=(), pixels=96).run
    cluster.add(num_cpus=2)
    pool = {
        "engine": "transformers",
        "engine_options": {"engine_args": {"faults": str(tmp_path)}},
        "resources": {"captioner_slot": 1},
        "accelerator_type": "A100",
        "num_gpus": 0.5,
        "labels": {"tier": "spot"},
    }
    driver = cluster.driver(run, [{"name": TINY[2], "kind": "faulty", "model": TINY[2], "pool": pool}])
    wait_for(lambda: "no engine is ready after 30 s" in driver.log.read_text(), "warning about the wait")
    assert cluster.actors() == [] and driver.running()
    cluster.add(
        num_cpus=1,
        num_gpus=1,
        resources={"captioner_slot": 1, "accelerator_type:A100": 1},
        labels={"tier": "spot"},
    )
    assert driver.end()["code"] == 0
    assert len(rows(run, TINY[2])) == 8
    throughput = ledger.throughput(ledger.recorded(run.caption_ledger(TINY[2])).values())
    assert throughput.gpu_seconds == pytest.approx(throughput.seconds / 2, abs=0.001) and throughput.seconds > 0


def engines_ready(driver: Driver, name: str) -> int:
    return len(re.findall(rf"^{name}: engine ready", driver.log.read_text(), re.MULTILINE))
