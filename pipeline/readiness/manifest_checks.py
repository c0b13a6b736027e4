"""Checks of what a manifest needs: the files of its lists, models, GPUs and engines, and what its prompts may hold.

`lotlip-data run` calls `check_models` before the download, and `lotlip-data doctor` all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.storage_retry import StorageError
from lotlip_data.pipeline.core.checks import check_model
from lotlip_data.pipeline.core.findings import Check, Level
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.existing_images.containers import containers_of
from lotlip_data.pipeline.model_stages.train import check_towers
from lotlip_data.pipeline.recaptioning.config import CaptionerJob, gpus_per_actor, resolve_captioners
from lotlip_data.pipeline.recaptioning.job_checks import check_jobs, check_prompts, new_jobs, new_texts
from lotlip_data.pipeline.url_lists.files import files_of
from lotlip_data.pipeline.url_lists.headers import check_captions


def check_models(manifest: Manifest, run: Run | None = None) -> Iterator[Check]:
    """Whether prompts are valid, models available, and as many GPUs as each captioner asks for.

    It reads config.json of captioners and asks the hub for the towers of trainings; it loads no model.

    Args:
        manifest: The manifest.
        run: Its run, whose finished captioners and trainings are left out.
    """
    jobs = captioner_jobs(manifest)
    yield from check_prompts(new_texts(jobs, run))
    yield from check_jobs(new_jobs(jobs, run))
    entries = [entry for entry in manifest.train if run is None or not storage.exists(run.training_done(entry.folder))]
    for check in check_towers(entries):
        advice = "to train no model, set `train: []` in the manifest"
        yield replace(check, fix=f"{check.fix}; {advice}") if check.fix else check
    yield from (check_model(subject, model) for subject, model in scorer_models(manifest))


def scorer_models(manifest: Manifest) -> list[tuple[str, str]]:
    """What needs a model, and the folder or hub id, of each scorer; those that open_clip finds itself are left out."""
    named = [(f"scorer {entry.label!r}", entry.model.removeprefix("clip:")) for entry in manifest.scores if entry.model]
    return [(subject, model) for subject, model in named if ":" not in model]


def check_lists(manifest: Manifest) -> Iterator[Check]:
    """Whether the files of each source can be found."""
    for source in manifest.sources:
        subject = f"source {source.name!r}"
        try:
            if source.is_images:
                containers = containers_of(source, manifest.samples_per_shard, manifest.seed)
                files = sorted({container.url for container in containers})
            else:
                files = files_of(source)
                check_captions(source)
        except (UserError, OSError) as error:
            fix = "" if isinstance(error, StorageError) else "correct `files` or the columns of this source"
            yield Check(subject, Level.ERROR, one_line(error), fix)
            continue
        yield Check(subject, Level.OK, wording.count(len(files), "file"))


def check_node(jobs: Sequence[CaptionerJob], node_gpus: float, cluster_gpus: float) -> Iterator[Check]:
    """Whether the captioners whose engines would run on this node can run here.

    Args:
        jobs: The captioners.
        node_gpus: GPUs of this node.
        cluster_gpus: GPUs of the cluster: where it has GPUs, engines run on nodes that have enough of them.
    """
    here = [job for job in jobs if gpus_per_actor(job.config, job.pool, cluster_gpus) <= node_gpus]
    yield from check_jobs(here, on_node=True)


def captioner_jobs(manifest: Manifest) -> list[CaptionerJob]:
    """The captioners of a manifest; none where all captions are imported."""
    return resolve_captioners(manifest.captioners) if manifest.captioners else []
