"""Ray's metrics say what the ledger says."""

import socket
import urllib.request
from pathlib import Path

import pytest

from lotlip_data.pipeline.status import status
from tests.pipeline import fake_run
from tests.pipeline.cluster_run import nodes, wait_for

NAME = "tiny-instructblip"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_metrics_of_a_node_carry_the_counters_of_status(tmp_path: Path) -> None:
    pytest.importorskip("opencensus", reason="Ray exports metrics only with ray[default]")
    run = fake_run.make(tmp_path / "run", 2, 24, writers=(), pixels=96).run
    port = free_port()
    with nodes(tmp_path, 0) as cluster:
        cluster.add(num_cpus=1, metrics_export_port=port)
        entry = {"preset": NAME, "pool": {"engine": "transformers", "max_actors": 1}}
        assert cluster.driver(run, [entry]).end()["code"] == 0
        counted = status(run)["captioners"][NAME]

        def exported() -> dict[str, float]:
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            lines = [line for line in page.splitlines() if line.startswith("ray_lotlip_") and f'"{NAME}"' in line]
            return {line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

        found = wait_for(exported, "metric", seconds=60)
    assert found["ray_lotlip_captions_total"] == counted["done"] == 48
    assert found["ray_lotlip_caption_tokens_total"] == counted["tokens"]
