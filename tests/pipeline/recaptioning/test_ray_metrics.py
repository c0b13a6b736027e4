"""Ray's metrics have the same figures as the ledger."""

import urllib.request
from pathlib import Path

import pytest

from lotlip_data.pipeline.reporting.status import get_status
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.recaptioning.cluster_run import nodes, wait_for
from tests.support.ports import free_ports

NAME = "tiny-instructblip"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_metrics_of_a_node_have_the_counts_of_status(tmp_path: Path) -> None:
    pytest.importorskip("opencensus", reason="Ray exports metrics only with ray[default]")
    run = fake_run.make(tmp_path / "run", 2, 24, writers=(), pixels=96).run
    (port,) = free_ports(1)
    with nodes(tmp_path, 0) as cluster:
        cluster.add(num_cpus=1, metrics_export_port=port)
        entry = {"preset": NAME, "pool": {"engine": "transformers", "max_actors": 1}}
        assert cluster.driver(run, [entry]).end()["code"] == 0
        progress = get_status(run)["captioners"][NAME]

        def exported() -> dict[str, float]:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
            except OSError:
                return {}
            lines = [line for line in page.splitlines() if line.startswith("ray_lotlip_") and f'"{NAME}"' in line]
            return {line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

        def complete() -> dict[str, float]:
            """The exported metrics once they count all images, before that nothing."""
            values = exported()
            is_complete = values.get("ray_lotlip_captions_total") == 48 and "ray_lotlip_caption_tokens_total" in values
            return values if is_complete else {}

        metrics = wait_for(complete, "metric of 48 captions", seconds=300)
    assert progress["done"] == 48
    assert metrics["ray_lotlip_caption_tokens_total"] == progress["tokens"]
