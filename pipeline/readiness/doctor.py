"""All checks that take seconds: of this machine, the nodes of a cluster, and what a manifest and a run need."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests.checkpoints.hub import is_on_hub
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.checks import check_hub, check_ray, check_storage
from lotlip_data.pipeline.core.findings import Check, Level
from lotlip_data.pipeline.core.gpus import InstalledGpus, ask_torch, check_gpu_driver
from lotlip_data.pipeline.core.machine import (
    MODEL_GIB,
    check_engine,
    check_machine,
    check_same_versions,
    installed_version,
    versions,
)
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_cluster import cluster, cluster_gpus
from lotlip_data.pipeline.core.ray_tasks import run_on_every_node
from lotlip_data.pipeline.readiness.manifest_checks import (
    captioner_jobs,
    check_lists,
    check_models,
    check_node,
)
from lotlip_data.pipeline.recaptioning.config import CaptionerJob

NODE_SECONDS = 180.0
"""Time for all nodes of a cluster to be checked."""
HERE = "here"
"""Name of the machine where the command runs."""
SHOWN_NODES = 3


@dataclass(frozen=True)
class NodeCheck:
    """What a node is checked for."""

    jobs: Sequence[CaptionerJob]
    run: str | None
    driver: Mapping[str, str]
    """The versions where the command runs."""
    cluster_gpus: float

    def __call__(self, resources: Mapping[str, float]) -> list[Check]:
        """Check the node that this is called on.

        Args:
            resources: The node's resources as Ray counts them.
        """
        gpus = resources.get("GPU", 0.0)
        with _gpus_visible():
            checks = [*check_same_versions(self.driver), *_check_host(self.jobs), *_check_rays_gpus(gpus)]
        checks += check_node(self.jobs, gpus, self.cluster_gpus)
        return [*checks, check_storage("run", self.run)] if self.run else checks


@dataclass
class Diagnosis:
    """The checks by machine."""

    checks: dict[str, list[Check]] = field(default_factory=dict)
    """Name of the machine → its checks."""

    def to_dict(self) -> dict[str, Any]:
        """The counts by level, and every check."""
        every = [(machine, check) for machine, checks in self.checks.items() for check in checks]
        return {
            "counts": {level.value: sum(check.level is level for _, check in every) for level in Level},
            "checks": [
                {
                    "machine": machine,
                    "subject": check.subject,
                    "level": check.level.value,
                    "finding": check.finding,
                    "fix": check.fix,
                }
                for machine, check in every
            ],
        }

    def lines(self) -> list[str]:
        """One line per check. Nodes with the same finding share a line, as do all nodes on which a check is well."""
        groups: dict[tuple[str, ...], list[tuple[str, Check]]] = {}
        for machine, checks in self.checks.items():
            for check in checks:
                place = HERE if machine == HERE else "nodes"
                same = "" if check.level is Level.OK and machine != HERE else f"{check.finding} {check.fix}"
                groups.setdefault((place, check.subject, check.level.value, same), []).append((machine, check))
        return [_line(members) for members in groups.values()]

    @property
    def problems(self) -> list[str]:
        """The errors."""
        return [
            str(check) if machine == HERE else f"{machine}: {check}"
            for machine, checks in self.checks.items()
            for check in checks
            if check.level is Level.ERROR
        ]


def diagnose(manifest: Manifest | None, run: Run | None, ray: bool) -> Diagnosis:
    """Check this machine, and with `ray` every node of the cluster.

    Args:
        manifest: Also check what this manifest needs.
        run: Also check the storage of this run; its finished captioners and trainings are left out.
        ray: Connect to the cluster in RAY_ADDRESS, or start Ray on this machine, and check every node.
    """
    jobs = captioner_jobs(manifest) if manifest else []
    checks = dict.fromkeys([*_check_host(jobs), *_check_needs(manifest, run)])  # captioners share the check of GPUs
    diagnosis = Diagnosis({HERE: list(checks)})
    if ray:
        _check_nodes(diagnosis, jobs, run)
    return diagnosis


def _check_host(jobs: Sequence[CaptionerJob]) -> Iterator[Check]:
    """The machine itself, with room for the models of these captioners."""
    hub_models = {job.config.model for job in jobs if get_kind(job.config.kind).loads_model}
    count = sum(map(is_on_hub, hub_models)) if jobs else 1
    caches = {job.pool.engine_options.cache_dir: f"the cache of {job.config.name}" for job in jobs}
    yield from check_machine(MODEL_GIB * count, caches)
    yield check_gpu_driver()
    yield check_engine(InstalledGpus.detect().devices > 0)


def _check_needs(manifest: Manifest | None, run: Run | None) -> Iterator[Check]:
    """What a manifest and a run need where the command runs."""
    yield check_ray()
    storage = None if run is None else check_storage("run", run.url)
    readable = None if storage is None or storage.level is Level.ERROR else run
    if manifest is None:
        yield check_hub()
    else:
        yield from check_lists(manifest)
        yield from check_models(manifest, readable)
    if storage is not None:
        yield storage


@contextlib.contextmanager
def _gpus_visible() -> Iterator[None]:
    """Undo that Ray hides all GPUs from a task that has reserved none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if hidden:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    try:
        yield
    finally:
        if hidden:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _check_rays_gpus(gpus: float) -> Iterator[Check]:
    """Whether Ray counts the GPUs of this node that torch sees."""
    installed = InstalledGpus.detect()
    usable = len(ask_torch().gpus) if installed.devices else 0
    if gpus > usable:
        fix = "start the node with the right --num-gpus, and see the line about its GPUs"
        yield Check("Ray's GPUs", Level.ERROR, f"Ray counts {gpus:g}, and torch sees {usable}", fix)
    elif gpus < usable:
        fix = "look at --num-gpus and CUDA_VISIBLE_DEVICES of `ray start`"
        yield Check("Ray's GPUs", Level.WARNING, f"Ray counts {gpus:g}, and torch sees {usable}", fix)
    else:
        yield Check("Ray's GPUs", Level.OK, f"Ray counts {gpus:g}, as torch does")


def _check_nodes(diagnosis: Diagnosis, jobs: Sequence[CaptionerJob], run: Run | None) -> None:
    """Add the checks of every node of the cluster."""
    here = diagnosis.checks[HERE]
    if not installed_version("ray"):
        here.append(Check("Ray", Level.ERROR, "is not installed", "pip install 'lotlip-data[full]'"))
    if any(check.subject == "Ray" and check.level is Level.ERROR for check in here):
        return
    try:
        with cluster():
            check = NodeCheck(jobs, run.url if run else None, versions(), cluster_gpus())
            results = run_on_every_node(check, NODE_SECONDS)
    except UserError as error:
        here.append(Check("Ray", Level.ERROR, str(error)))
        return
    for address, result in results.items():
        if isinstance(result, Exception):
            fix = "see the node's logs in /tmp/ray/session_latest/logs"
            result = [Check("node", Level.ERROR, f"cannot be checked: {one_line(result)}", fix)]
        diagnosis.checks[address] = result


def _line(members: Sequence[tuple[str, Check]]) -> str:
    """One line for the same check on one machine or on several."""
    machines = [machine for machine, _ in members]
    check = members[0][1]
    if machines == [HERE]:
        place = ""
    elif len(machines) <= SHOWN_NODES:
        place = f"{', '.join(machines)}: "
    else:
        place = f"{len(machines)} nodes ({', '.join(machines[:SHOWN_NODES])}, …): "
    return f"{check.level.value:8} {place}{check}"
