"""The Ray cluster that a stage runs on: the one that RAY_ADDRESS names, or one that is started on this machine."""

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import waiting_for
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_watch import ClusterLost, ClusterProbe, ClusterWatch, end_local_processes, local_loss

LOCAL_OBJECT_STORE_BYTES = 256 << 20  # only small results pass through it, never an image

CONNECT_SECONDS = 10.0
"""Time to reach the head node of a cluster."""
PROBE_SECONDS = 45.0
"""Time for the control service of a cluster to answer."""
SHUTDOWN_SECONDS = 5.0
"""Time for Ray to let go of a cluster that has died."""

STARTS = 3
"""Number of attempts to start Ray on this machine. Ray gives up an attempt after half a minute."""


logger = logging.getLogger(__name__)


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
    if not find_spec("torch"):
        return None
    import torch

    return torch.cuda.device_count()


def cluster_gpus() -> float:
    """The GPUs of the connected cluster, as Ray counts them."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def cpus_per_gpu() -> float | None:
    """CPUs for each GPU of the machine of the connected cluster that has the fewest; None if no machine has GPUs."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min((each.get("CPU", 0) / each["GPU"] for each in resources if each.get("GPU")), default=None)


def lacking(needed: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """What no machine of the connected cluster has; empty if one of them has it all.

    Args:
        needed: Amount by the name of a resource, as Ray spells it.
        labels: Label → value. Conditions, such as `!spot` or `in(a, b)`, are left to Ray.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    plain = {name: value for name, value in labels.items() if not value.startswith(("!", "in("))}

    def suits(node: dict[str, Any]) -> bool:
        has_resources = all(node["Resources"].get(name, 0) >= amount for name, amount in needed.items())
        return has_resources and plain.items() <= node.get("Labels", {}).items()

    if any(map(suits, nodes)):
        return ""
    amounts = [f"{amount:g} {name}" for name, amount in needed.items() if amount]
    return ", ".join([*amounts, *(f"the label {name}={value}" for name, value in plain.items())])


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

    Raises:
        UserError: The cluster cannot be reached, or Ray does not start.
        ClusterLost: The cluster has died meanwhile.
    """
    import ray

    if not ray.is_initialized():
        if session := _session.get():
            session.enter_context(_connection())
        else:
            with _connection() as watch, watch.in_use():
                yield
            return
    with _watches[-1].in_use() if _watches else nullcontext():
        yield


_watches: list[ClusterWatch] = []
"""The watch of the connection that this module has made, if there is one."""


@contextmanager
def _connection() -> Iterator[ClusterWatch]:
    """Connect to Ray, or start it, and watch it. Raises as `cluster` does."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _log_ray_messages()
    with _own_signal_handlers():
        if address := cluster_address():
            with waiting_for(f"connecting to Ray at {address}"):
                _connect(address)
        else:
            with waiting_for("starting Ray on this machine"):
                start_local(object_store_memory=LOCAL_OBJECT_STORE_BYTES)
    watch = ClusterWatch(_cluster_probe(address) if address else local_loss)
    _watches.append(watch)
    try:
        with watch:
            yield watch
    except KeyboardInterrupt:
        if not watch.loss:
            raise
        raise ClusterLost(watch.loss) from None
    except ray.exceptions.LocalRayletDiedError:
        watch.loss = watch.loss or local_loss() or "the Ray cluster's process on this machine, raylet, has died"
        raise ClusterLost(watch.loss) from None
    finally:
        _watches.remove(watch)
        if watch.loss:
            _abandon()
        else:
            ray.shutdown()


def _log_ray_messages() -> None:
    """Log what Ray's processes report, such as the state of one that has died, instead of printing it."""
    import ray._private.worker as worker

    def log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        logger.debug("Ray: " + "\n".join(map(str, data["lines"])))

    worker.print_to_stdstream = log


def _connect(address: str) -> None:
    """Connect to a cluster. Raises UserError, within a minute, if it cannot be reached."""
    import ray

    remedy = "start the cluster, correct RAY_ADDRESS, or unset it to use this machine alone"
    if host_and_port := split_address(address):
        try:
            with socket.create_connection(host_and_port, CONNECT_SECONDS):
                pass
        except OSError as error:
            raise UserError(f"RAY_ADDRESS={address}: no cluster answers there ({error}); {remedy}") from None
        if "://" not in address and not _is_control_service(address):
            raise UserError(f"RAY_ADDRESS={address}: what answers there is not Ray's control service; {remedy}")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types
        ray.shutdown()
        raise UserError(f"RAY_ADDRESS={address}: Ray cannot connect ({one_line(error)}); {remedy}") from error


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster's address; None for the address `auto`. Raises UserError if it has neither."""
    if address == "auto":
        return None
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError(f"RAY_ADDRESS={address}: is not HOST:PORT; correct it, or unset it to use this machine alone")
    return host, port


_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import RpcError
try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    sys.exit(type(error) is RpcError)
"""
"""Ends with 1 if nobody answers as Ray's control service does. Any other error, such as a missing token, is an answer,
which `ray.init` explains."""


def _is_control_service(address: str) -> bool:
    """Whether Ray's control service answers at HOST:PORT. Another process asks: Ray's own calls have no limit."""
    command = [sys.executable, "-c", _PROBE, address]
    try:
        return subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _cluster_probe(address: str) -> Callable[[], str]:
    """Finds out whether the cluster that this process is connected to lives."""
    import ray

    context = ray.get_runtime_context()
    head = split_address(address) or split_address(context.gcs_address)
    if head is None or "://" in address:  # a client is connected to a server on the head node only
        return ClusterProbe(head) if head else lambda: ""
    own = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    return ClusterProbe(head, (own[0]["NodeManagerAddress"], own[0]["NodeManagerPort"]) if own else None)


def check_cluster() -> None:
    """Raise ClusterLost if the cluster has died: then an error of a task or an actor has no other cause."""
    if _watches:
        _watches[-1].check()


def _abandon() -> None:
    """Leave a dead cluster. Ray's own shutdown may wait for it, so it gets a few seconds."""
    import ray

    end_local_processes()
    shutdown = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    shutdown.start()
    shutdown.join(SHUTDOWN_SECONDS)
    if shutdown.is_alive():
        atexit.unregister(ray.shutdown)  # it would wait again


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep this process's handlers of SIGTERM and SIGINT: Ray replaces them by ones that print a native stack."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


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
