"""Cheap checks of what a stage needs: models, the hub, GPUs and Ray. A stage runs them before anything slow starts.

Each check is one function. It returns what it found with a level and, where something is wrong, the fix, so that a
command can list them all. `findings.require` raises the errors among them.
"""

import socket
import uuid
from pathlib import Path

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.findings import Check, Level
from lotlip_data.pipeline.core.gpus import check_gpu_driver
from lotlip_data.pipeline.core.machine import existing_path
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_cluster import CONNECT_SECONDS, available_gpus, cluster_address, split_address


def check_captioner(config: CaptionerConfig, on_node: bool = False) -> Check:
    """Whether the captioner's model is available and has the layout of its kind. It reads config.json only.

    Args:
        config: The captioner.
        on_node: Whether its engine would run in this place, so that what is missing here is an error on a cluster too.
    """
    subject = f"captioner {config.name!r}"
    try:
        get_kind(config.kind).check_model(config)
    except hub.ModelUnavailable as error:
        return _unavailable(subject, error, on_node)
    except ValueError as error:
        return Check(subject, Level.ERROR, str(error))
    return Check(subject, Level.OK, config.model)


def check_model(subject: str, model: str, revision: str | None = None) -> Check:
    """Whether a model, such as a tower, is available.

    Args:
        subject: What needs it, such as `image tower`.
        model: A folder, the short name of a checkpoint of the project, or a hub id.
        revision: Revision on the hub.
    """
    try:
        hub.find_model(model, revision)
    except hub.ModelUnavailable as error:
        return _unavailable(subject, error)
    return Check(subject, Level.OK, model)


def check_gpus(subject: str, gpus: float) -> Check:
    """Whether a task or an actor that asks for `gpus` GPUs can run.

    On a cluster that is not connected yet, or may get further nodes, this is not known.
    """
    available = available_gpus() if gpus else None
    if available is None or gpus <= available:
        return Check(subject, Level.OK, _gpu_count(gpus))
    driver = check_gpu_driver()
    if driver.level is not Level.OK:  # why there are fewer
        return Check(subject, Level.ERROR, f"asks for {_gpu_count(gpus)}; {driver.finding}", driver.fix)
    return Check(
        subject,
        Level.ERROR,
        f"asks for {_gpu_count(gpus)}, and this machine has {available:g}",
        "ask for no more than that, or set RAY_ADDRESS to a cluster that has more; if the machine has more GPUs, see "
        "whether torch.cuda.is_available() and CUDA_VISIBLE_DEVICES show them",
    )


def _gpu_count(gpus: float) -> str:
    return f"{gpus:g} {'GPU' if gpus == 1 else 'GPUs'}"


def check_ray() -> Check:
    """Whether the head node of the cluster in RAY_ADDRESS accepts connections."""
    address = cluster_address()
    try:
        host_and_port = split_address(address) if address else None
        if host_and_port:
            with socket.create_connection(host_and_port, CONNECT_SECONDS):
                pass
    except UserError as error:
        return Check("Ray", Level.ERROR, str(error))
    except OSError as error:
        fix = "start the cluster, correct RAY_ADDRESS, or unset it to use this machine alone"
        return Check("Ray", Level.ERROR, f"no cluster answers at RAY_ADDRESS={address} ({error})", fix)
    return Check("Ray", Level.OK, address or "no RAY_ADDRESS, so stages start Ray on this machine")


def check_hub() -> Check:
    """Whether the hub answers. Without it, models must be in its cache or in folders."""
    try:
        hub.check_reachable()
    except hub.HubUnreachable as error:
        return Check("hub", Level.WARNING, error.problem, error.remedy)
    return Check("hub", Level.OK, f"{hub.endpoint()} answers")


def check_storage(subject: str, folder: str) -> Check:
    """Whether this process may write to a folder, and whether its storage creates an object only once.

    Both are tried with an object that is removed again. A local folder that does not exist yet is not created.

    Args:
        subject: What the folder is, such as `run`.
        folder: A path or URL.
    """
    probe = folder
    try:
        if storage.is_local(folder):
            folder = str(existing_path(Path(storage.normalise(folder))))
        probe = storage.join(folder, f".tmp-{uuid.uuid4().hex}")
        try:
            overwritten = storage.create(probe, b"1") and storage.create(probe, b"2")
        finally:
            storage.remove(probe)
    except (UserError, OSError) as error:
        finding = one_line(error).replace(probe, folder)
        return Check(subject, Level.ERROR, finding, "" if isinstance(error, UserError) else _STORAGE_FIX)
    if overwritten:
        return Check(
            subject,
            Level.ERROR,
            f"the storage of {folder} ignores If-None-Match, so two commands could overwrite each other's results",
            "use a storage with conditional writes, such as Amazon S3, MinIO from 2024 on, or a disk",
        )
    return Check(subject, Level.OK, f"{folder} can be written to, and objects are created only once")


_STORAGE_FIX = "check the bucket, the credentials and AWS_ENDPOINT_URL"


def _unavailable(subject: str, error: hub.ModelUnavailable, on_node: bool = False) -> Check:
    """On a cluster, the machines of the engines may have a folder or a network that this machine does not have."""
    elsewhere = bool(cluster_address()) and not on_node and isinstance(error, hub.HubUnreachable | hub.NoFolder)
    level = Level.WARNING if elsewhere else Level.ERROR
    finding = f"on this machine, {error.problem}" if elsewhere else error.problem
    return Check(subject, level, finding, error.remedy)
