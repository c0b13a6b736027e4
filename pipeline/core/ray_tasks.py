"""Ray tasks: over many items, a bounded number at a time, and one on every node."""

import math
import os
import pickle
import platform
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import Snapshot, forward_progress
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core.gpus import require_assigned
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_cluster import check_cluster, cluster
from lotlip_data.pipeline.core.stage_threads import pause, raise_if_stopped
from lotlip_data.pipeline.core.upstream import NOT_YET, NotYet

ATTEMPTS = 3
"""Number of attempts per item if its task dies or raises. A UserError is final: another attempt cannot succeed."""

MAX_CALLS_ON_GPU = 64
"""Tasks on a GPU after which their process ends, and with it what it holds of the GPU's memory."""

EXIT_SECONDS = 1.0
"""Time for the answer of a task to leave its process before it ends."""

POLL_SECONDS = 1.0
"""Interval at which new items are asked for, and the progress of running tasks is read where a caller asks for it."""
MAX_POLLED = 64
"""Largest number of tasks whose progress is read at a time: one request to Ray's control service for each."""
_NAMESPACE = b"lotlip_data_progress"

Item = TypeVar("Item")
Result = TypeVar("Result")

OnProgress = Callable[[Sequence[tuple[Item, Snapshot]]], None]
"""Called with the running items whose tasks have a progress bar, each with its state."""


def run_ray_tasks(
    task: Callable[[Item], Result],
    items: Iterable[Item | NotYet],
    num_gpus: float = 0,
    on_progress: OnProgress[Item] | None = None,
    num_cpus: int = 1,
    name: str = "",
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `task(item)` on the cluster for every item. Yields each item with its result or its last exception.

    A DiskError is raised at once, and the other tasks are cancelled: each of them would end with it too.

    Twice as many tasks as the cluster can run are submitted at a time: enough to keep it busy and to let it grow.
    Retries are counted here, since Ray's own retries do not separate an item that kills its worker from a lost node.
    Ray is started only if there is an item.

    Args:
        task: Called in a worker process.
        items: The items, which are read as tasks are submitted. NOT_YET stands for an item that may come later.
        num_gpus: GPUs that Ray reserves per task. A task finds its device with `assigned_device`.
        on_progress: Called about once per POLL_SECONDS while tasks run. A task reports what it has done by a
            `progress_bar` of its own.
        num_cpus: CPUs that Ray reserves per task.
        name: What Ray's dashboard calls the tasks.
    """
    options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": 0}
    if name:
        options["name"] = name
    left = iter(items)
    if first := list(islice(left, 1)):
        with cluster():
            yield from _run(task, chain(first, left), options, on_progress)


@dataclass(frozen=True)
class _Attempt(Generic[Item]):
    """One call of a task."""

    item: Item
    number: int
    board: str | None
    """Where the worker puts the state of its progress bar; None where nobody reads it."""


def _run(
    task: Callable[[Item], Result],
    items: Iterator[Item | NotYet],
    options: dict[str, Any],
    on_progress: OnProgress[Item] | None,
) -> Iterator[tuple[Item, Result | Exception]]:
    import ray

    def call(item: Item, board: str | None) -> Result:  # Ray takes functions, and `task` may be any callable
        with forward_progress(partial(_post, board)) if board else nullcontext():
            return task(item)

    if options["num_gpus"]:  # by default, Ray starts a process for each task on a GPU, and each would load its model
        options = options | {"max_calls": MAX_CALLS_ON_GPU}
    remote: Any = ray.remote(**options)(call)
    running: dict[Any, _Attempt[Item]] = {}

    def submit(item: Item, number: int = 1) -> None:
        board = uuid.uuid4().hex if on_progress else None
        running[remote.remote(item, board)] = _Attempt(item, number, board)

    try:
        while True:
            raise_if_stopped()
            limit, more = 2 * _slots(options), False
            for item in islice(items, max(0, limit - len(running))):
                more = True
                if item is NOT_YET:
                    break
                submit(item)
            if not running:
                if not more:
                    return
                pause(POLL_SECONDS)
                continue
            ended, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            if on_progress:
                on_progress(_read_boards(running.values()))
            if not ended:
                continue
            attempt = running.pop(ended[0])
            _clear(attempt.board)
            result = _result(ended[0])
            is_final = not isinstance(result, Exception) or isinstance(result, UserError)
            if is_final or attempt.number == ATTEMPTS:
                yield attempt.item, result
            else:
                submit(attempt.item, attempt.number + 1)
    finally:
        for reference, attempt in running.items():
            ray.cancel(reference, force=True)
            _clear(attempt.board)


def _slots(options: Mapping[str, Any]) -> int:
    """Tasks that the cluster can run at a time, at least 1."""
    import ray

    resources = ray.cluster_resources()
    gpu_slots = resources.get("GPU", 0) / options["num_gpus"] if options["num_gpus"] else math.inf
    return max(1, int(min(resources.get("CPU", 1) / options["num_cpus"], gpu_slots)))


def _result(reference: Any) -> Any | Exception:
    """The result of a task that has ended, or its exception. Raises what concerns all tasks."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.LocalRayletDiedError:
        raise  # the cluster has died, not the task
    except ray.exceptions.RayError as error:
        if not isinstance(error, ray.exceptions.RayTaskError):
            check_cluster()
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, DiskError):
            raise cause from None
        return cause if isinstance(cause, Exception) else error


def assigned_device(user: str) -> str:
    """`cuda` if Ray reserved a GPU for the task that calls this, else `cpu`. Both the name of torch.

    torch sees the GPUs of its machine also where Ray reserved none, and all such tasks would compute on the first one.

    Args:
        user: What the GPU is for, for error messages.

    Raises:
        UserError: Ray reserved a GPU, and torch does not see it.
    """
    gpus = _assigned("GPU")
    require_assigned(gpus, user)
    return "cuda" if gpus else "cpu"


def assigned_cpus() -> int:
    """CPUs that Ray reserved for the task that calls this, at least 1."""
    return max(1, int(_assigned("CPU")))


@contextmanager
def device_failures(user: str) -> Iterator[None]:
    """End this process of Ray's soon after an error of its GPU, from which no call of the process recovers.

    Otherwise the tasks that follow in the process would fail too, and quickly, so that it would take all that are left.

    Args:
        user: What computes on the GPU, for error messages.

    Raises:
        RuntimeError: The GPU has failed.
    """
    import torch

    try:
        yield
    except torch.AcceleratorError as error:
        end_process(EXIT_SECONDS)
        raise RuntimeError(f"{user}: a GPU of {platform.node()} has failed ({one_line(error)})") from None


def end_process(seconds: float) -> None:
    """End this process after some time, in which it answers."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _assigned(resource: str) -> float:
    import ray

    return float(ray.get_runtime_context().get_assigned_resources().get(resource, 0))


def run_on_every_node(task: Callable[[Mapping[str, float]], Result], seconds: float) -> dict[str, Result | Exception]:
    """Run `task(resources)` once on every node of the cluster, also on those whose CPUs and GPUs are in use.

    Args:
        task: Called in a worker process on each node, with the node's resources as Ray counts them.
        seconds: Time for all nodes together.

    Returns:
        Address of the node → its result or exception; a TimeoutError for a node that has not answered.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def call(resources: Mapping[str, float]) -> Result:  # Ray takes functions, and `task` may be any callable
        return task(resources)

    with cluster():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        addresses = [node["NodeManagerAddress"] for node in nodes]
        running: dict[Any, str] = {}
        for node, address in zip(nodes, addresses, strict=True):
            is_shared = addresses.count(address) > 1  # several nodes on one machine, in tests
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": place}
            remote: Any = ray.remote(**options)(call)
            running[remote.remote(node["Resources"])] = f"{address} ({node['NodeID'][:8]})" if is_shared else address
        ended, late = ray.wait(list(running), num_returns=len(running), timeout=seconds)
        results: dict[str, Result | Exception] = {}
        for reference in ended:
            try:
                results[running[reference]] = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                results[running[reference]] = cause if isinstance(cause, Exception) else error
        for reference in late:
            ray.cancel(reference, force=True)
            results[running[reference]] = TimeoutError(f"no answer within {seconds:g} seconds")
        return {address: results[address] for address in running.values()}


def _post(board: str, snapshot: Snapshot) -> None:
    """Put the state of a worker's bar where the driver reads it: Ray's key-value store, which needs no process."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(board.encode(), pickle.dumps(snapshot), namespace=_NAMESPACE)


def _read_boards(attempts: Iterable[_Attempt[Item]]) -> list[tuple[Item, Snapshot]]:
    """The states that running tasks have sent."""
    from ray.experimental.internal_kv import _internal_kv_get

    states = []
    for attempt in islice(attempts, MAX_POLLED):
        if attempt.board and (content := _internal_kv_get(attempt.board.encode(), namespace=_NAMESPACE)):
            states.append((attempt.item, pickle.loads(content)))
    return states


def _clear(board: str | None) -> None:
    from ray.experimental.internal_kv import _internal_kv_del

    if board:
        _internal_kv_del(board.encode(), namespace=_NAMESPACE)
