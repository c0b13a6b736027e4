"""A Ray cluster that the tests of the pipeline share."""

from collections.abc import Iterator

import pytest

from lotlip_data.pipeline.core.ray_cluster import start_local


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of two CPUs."""
    import ray

    start_local(num_cpus=2)
    yield
    ray.shutdown()
