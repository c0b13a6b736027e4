"""The Ray cluster that a stage runs on: the one that the environment names, or one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL_OBJECT_STORE_BYTES = 256 << 20  # only small results pass through it, never an image


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
        ray.init(
            address="local",  # else a Ray that somebody else runs on this machine is taken
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        )
    try:
        yield
    finally:
        ray.shutdown()
