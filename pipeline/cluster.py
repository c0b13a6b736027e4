"""The Ray cluster that a stage runs on: the one that the environment names, or one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lotlip_data.manifests.errors import UserError

LOCAL_OBJECT_STORE_BYTES = 256 << 20  # only small results pass through it, never an image

STARTS = 3
"""How often Ray is started on this machine where it is not up within the half minute that it gives itself."""


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to Ray for the length of a stage.

    Inside `ray job submit`, or where RAY_ADDRESS is set, that is the cluster named there; otherwise Ray is started
    on this machine and stopped at the end. A connection that exists already is used and left open.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        start_local(object_store_memory=LOCAL_OBJECT_STORE_BYTES)
    try:
        yield
    finally:
        ray.shutdown()


def start_local(**options: Any) -> None:
    """Start Ray on this machine. Raises UserError where it does not come up, as on one that is far too busy."""
    import ray

    for _ in range(STARTS):
        try:
            ray.init(
                address="local",  # else a Ray that somebody else runs on this machine is taken
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except Exception as error:  # Ray has no type of its own for it
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
        else:
            return
    raise UserError(
        f"Ray did not come up on this machine, {STARTS} times over: it is too busy, or short of memory. "
        "/tmp/ray/session_latest/logs has why; set RAY_ADDRESS to use a cluster instead."
    )
