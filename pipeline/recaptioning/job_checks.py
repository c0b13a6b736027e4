"""Whether a captioner can run: its prompts, its GPUs, its model and the options of its engine. Nothing is loaded."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.models.base import missing_packages, packages_to_install, require_engine
from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.prompt_syntax import FIELDS, unknown_fields
from lotlip_data.pipeline.core.checks import check_captioner, check_gpus
from lotlip_data.pipeline.core.findings import Check, Level
from lotlip_data.pipeline.core.gpus import check_gpu_driver
from lotlip_data.pipeline.core.ledger import captioned_shards
from lotlip_data.pipeline.core.ray_cluster import cluster_address
from lotlip_data.pipeline.recaptioning.config import CaptionerJob, gpus_per_actor


def check_jobs(jobs: Iterable[CaptionerJob], on_node: bool = False) -> Iterator[Check]:
    """Check captioners before their engines start.

    Args:
        jobs: The captioners.
        on_node: Whether their engines would run in this place. Otherwise what is missing here is only a warning if
            RAY_ADDRESS names a cluster, whose nodes may have it.
    """
    jobs = list(jobs)
    if not on_node:
        for job in jobs:
            if job.pool.num_gpus:
                yield check_gpus(f"captioner {job.config.name!r}", job.pool.num_gpus)
        if not cluster_address() and any(job.pool.num_gpus is None and _takes_gpu(job) for job in jobs):
            yield check_gpu_driver()
    for job in jobs:
        yield check_captioner(job.config, on_node)
        yield from _check_options(job, on_node)


def check_prompts(texts: Iterable[CaptionerConfig]) -> Iterator[Check]:
    """Whether each `{name}` in a prompt is a column of a sample.

    Captioners of earlier releases, whose prompts have no fields, may have others: leave out those that have captions.

    Args:
        texts: The captioners, each with one prompt.
    """
    known = ", ".join(f"{{{name}}}" for name in FIELDS)
    for config in texts:
        unknown = dict.fromkeys(name for prompt in config.instructions for name in unknown_fields(prompt))
        for name in unknown:
            finding = f"prompt: {{{name}}} is no column of a sample; the columns are {known}"
            fix = f"for the text {{{name}}} itself, write {{{{{name}}}}}"
            yield Check(f"captioner {config.name!r}", Level.ERROR, finding, fix)


def check_planned(job: CaptionerJob, cluster_gpus: float) -> Iterator[Check]:
    """Whether a captioner could run on a cluster that is not at hand: its settings fit its engine.

    Packages that are missing here are a warning: the machines of the engines may have them.

    Args:
        job: The captioner.
        cluster_gpus: GPUs of the cluster.
    """
    config, engine, kind = job.config, job.pool.engine, get_kind(job.config.kind)
    subject = f"captioner {config.name!r}"
    if engine == "auto" and "transformers" in kind.engines:
        engine = "vllm" if gpus_per_actor(config, job.pool, cluster_gpus) else "transformers"
    try:
        require_engine(config, engine)
    except ValueError as error:
        yield Check(subject, Level.ERROR, str(error).removeprefix(f"{subject}: "))
    if missing := missing_packages(kind.packages(config, engine)):
        finding = f"{config.model} needs {packages_to_install(missing)} on every machine that captions"
        yield Check(subject, Level.WARNING, finding)


def new_texts(jobs: Iterable[CaptionerJob], run: Run | None) -> Iterator[CaptionerConfig]:
    """The texts of the jobs of which the run, if there is one, has no captions yet."""
    return (text for job in jobs for text in job.texts if run is None or not captioned_shards(run, text.name))


def new_jobs(jobs: Iterable[CaptionerJob], run: Run | None) -> list[CaptionerJob]:
    """The jobs with those of their texts of which the run, if there is one, has no captions yet."""
    left = [(job, [text.name for text in new_texts([job], run)]) for job in jobs]
    return [replace(job, config=job.config.only(names)) for job, names in left if names]


def _check_options(job: CaptionerJob, on_node: bool) -> Iterator[Check]:
    """Whether the engine is installed, and has the address and the key of its endpoint."""
    try:
        get_kind(job.config.kind).check_options(job.config, job.pool.engine, job.pool.engine_options)
    except ValueError as error:
        level = Level.WARNING if cluster_address() and not on_node else Level.ERROR
        subject = f"captioner {job.config.name!r}"
        yield Check(subject, level, str(error).removeprefix(f"{subject}: "))


def _takes_gpu(job: CaptionerJob) -> bool:
    return get_kind(job.config.kind).needs_gpu
