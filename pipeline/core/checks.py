"""Cheap checks of what a stage needs: models, the hub, GPUs and Ray. A stage runs them before anything slow starts.

Each check is one function. It returns what it found with a level and, where something is wrong, the fix, so that a
command can list them all. `require` raises the errors among them.
"""

import enum
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.ray_cluster import CONNECT_SECONDS, available_gpus, cluster_address, split_address

logger = logging.getLogger(__name__)


class Level(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It may fail, or is not known here."""
    ERROR = "error"
    """It would fail."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    subject: str
    """What was checked, such as `captioner 'llava'`."""
    level: Level
    finding: str
    fix: str = ""
    """What to do about it; empty if all is well."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.finding}{'; ' if self.fix else ''}{self.fix}"


def require(checks: Iterable[Check]) -> None:
    """Log the warnings. Raises UserError, with one line for each error, if there is one."""
    errors = []
    for check in checks:
        if check.level is Level.ERROR:
            errors.append(str(check))
        elif check.level is Level.WARNING:
            logger.warning(str(check))
    if errors:
        raise UserError("\n".join(errors))


def check_captioner(config: CaptionerConfig) -> Check:
    """Whether the captioner's model can be had and has the layout of its kind. It reads config.json only."""
    subject = f"captioner {config.name!r}"
    try:
        get_kind(config.kind).check_model(config)
    except hub.ModelUnavailable as error:
        return _unavailable(subject, error)
    except ValueError as error:
        return Check(subject, Level.ERROR, str(error))
    return Check(subject, Level.OK, config.model)


def check_model(subject: str, model: str, revision: str | None = None) -> Check:
    """Whether a model, such as a tower, can be had.

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
        return Check(subject, Level.OK, f"{gpus:g} GPUs")
    return Check(
        subject,
        Level.ERROR,
        f"asks for {gpus:g} GPUs, and this machine has {available:g}",
        "ask for at most these, or set RAY_ADDRESS to a cluster that has more; if the machine has more GPUs, see "
        "whether torch.cuda.is_available() and CUDA_VISIBLE_DEVICES show them",
    )


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
    return Check("Ray", Level.OK, address or "started on this machine")


def _unavailable(subject: str, error: hub.ModelUnavailable) -> Check:
    """On a cluster, the machines of the engines may have a folder or a network that this machine does not have."""
    elsewhere = bool(cluster_address()) and isinstance(error, hub.HubUnreachable | hub.NoFolder)
    level = Level.WARNING if elsewhere else Level.ERROR
    finding = f"on this machine, {error.problem}" if elsewhere else error.problem
    return Check(subject, level, finding, error.remedy)
