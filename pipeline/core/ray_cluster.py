"""The Ray cluster that a stage runs on: the one that RAY_ADDRESS names, or one that is started on this machine."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import waiting_for

LOCAL_OBJECT_STORE_BYTES = 256 << 20  # only small results pass through it, never an image

STARTS = 3
"""Number of attempts to start Ray on this machine. Ray gives up an attempt after half a minute."""


def cluster_address() -> str:
    """The cluster that the environment names; empty if Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def available_gpus() -> float | None:
    """The most GPUs of a machine of the cluster; None if they are not known, or if the cluster may get others."""
    if cluster_address():
        return None
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        return max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    import torch

    return torch.cuda.device_count()


_session: ContextVar[ExitStack | None] = ContextVar("session", default=None)
"""Ends the connection to Ray of the current `ray_session`."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray at most once while this is entered: the first `cluster` connects, and the end disconnects.

    A start of Ray and of its workers takes seconds. A session inside another one is part of it.
    """
    if _session.get() is not None:
        yield
        return
    with ExitStack() as session:
        token = _session.set(session)
        try:
            yield
        finally:
            _session.reset(token)


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to Ray while this is entered, or to the end of the `ray_session` around it.

    Inside `ray job submit`, or if RAY_ADDRESS is set, the cluster is the one named there. Otherwise Ray is started on
    this machine, and stopped at the end. An existing connection is used and left open.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address := cluster_address():
        with waiting_for(f"connecting to Ray at {address}"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        with waiting_for("starting Ray on this machine"):
            start_local(object_store_memory=LOCAL_OBJECT_STORE_BYTES)
    if session := _session.get():
        session.callback(ray.shutdown)
        yield
        return
    try:
        yield
    finally:
        ray.shutdown()


def start_local(**options: Any) -> None:
    """Start Ray on this machine, with `options` of `ray.init`. Raises UserError if it does not start in time."""
    import ray

    for _ in range(STARTS):
        try:
            ray.init(
                address="local",  # otherwise ray.init connects to a cluster that another user runs on this machine
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except Exception as error:  # Ray has no exception type for a timeout at start
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
        else:
            return
    raise UserError(
        f"Ray did not start on this machine in {STARTS} attempts: the machine is too busy, or short of memory. "
        "/tmp/ray/session_latest/logs has the reason. Set RAY_ADDRESS to use a cluster instead."
    )
