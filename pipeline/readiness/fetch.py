"""Downloads, converts and exports the models of a manifest, so that later commands need no hub."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests import wording
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.fetched import commit_of, fetched_folder, is_commit, mark_fetched
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import waiting_for
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_on_every_node
from lotlip_data.pipeline.model_stages.train import towers
from lotlip_data.pipeline.readiness.manifest_checks import captioner_jobs, scorer_models
from lotlip_data.pipeline.recaptioning.config import CaptionerJob

logger = logging.getLogger(__name__)

NODE_SECONDS = 6 * 3600.0
"""Time for all nodes of a cluster to download, convert and export."""
_OTHER_FORMATS = ("onnx", "openvino", "coreml", "original")
_SMALL_FILES = (".jinja", ".json", ".model", ".tiktoken", ".txt")


@dataclass(frozen=True)
class Need:
    """A model that a manifest names."""

    subject: str
    """What needs it, such as `captioner 'llava'`."""
    model: str
    revision: str | None = None
    job: CaptionerJob | None = None
    commit: str | None = None
    """The commit to download. Default: the one that the revision is now."""
    is_adapter: bool = False
    """Whether it is a LoRA adapter of a model."""


@dataclass(frozen=True)
class Fetched:
    """A model that is on this machine."""

    subject: str
    model: str
    folder: str
    commit: str | None
    """Its commit on the hub; None for a folder."""
    downloaded: bool
    """Whether this call downloaded it."""
    notes: tuple[str, ...] = ()
    """What was converted or exported, and what to set in the manifest."""

    def line(self) -> str:
        """All of it in one line."""
        where = f"{self.model} at commit {self.commit}" if self.commit else self.model
        state = f"{'downloaded' if self.downloaded else 'is here'}: {self.folder}"
        return "; ".join([f"{self.subject}: {where} {state}", *self.notes])


def needs_of(manifest: Manifest) -> list[Need]:
    """The models of captioners, their adapters, the towers of trainings, and the models of scorers."""
    jobs = [job for job in captioner_jobs(manifest) if get_kind(job.config.kind).loads_model]
    needs = [Need(f"captioner {job.config.name!r}", job.config.model, job.config.revision, job) for job in jobs]
    needs += [
        Need(f"adapter of captioner {config.name!r}", config.lora, config.lora_revision, is_adapter=True)
        for config in (job.config for job in jobs)
        if config.lora
    ]
    return needs + [Need(subject, model) for subject, model in [*towers(manifest.train), *scorer_models(manifest)]]


@dataclass
class Fetcher:
    """Gets models onto the machine that it is called on."""

    needs: list[Need]

    def __call__(self, resources: Mapping[str, float] | None = None) -> list[Fetched | str]:
        """Get every model. A string in place of a model is the reason why it could not be had."""
        results: list[Fetched | str] = []
        for need in self.needs:
            try:
                results.append(fetch(need))
            except (UserError, OSError, ValueError) as error:
                results.append(f"{need.subject}: {one_line(error)}".replace(f"{need.subject}: {need.subject}: ", ""))
        return results


def fetch(need: Need) -> Fetched:
    """Download a model unless it is here, and convert or export what its engine reads instead.

    Raises:
        ModelUnavailable: The model does not exist, or the hub does not answer.
        UserError: It cannot be converted or exported.
    """
    if not hub.is_on_hub(need.model):
        folder, downloaded = hub.find_model(need.model), False
        if not need.is_adapter:
            hub.read_config(need.model)  # or it is no model, and the name may have a typo
    else:
        folder = fetched_folder(need.model, need.commit or need.revision)
        downloaded = folder is None
        needs_code = bool(need.job and need.job.config.trust_remote_code)
        folder = folder or download(need.model, need.revision, need.commit, with_code=needs_code)
    assert folder is not None  # a model that is not on the hub is in a folder, or an error
    notes = _prepare(need, folder)
    commit = commit_of(folder)
    if commit and not is_commit(need.revision) and need.job:
        notes = [*notes, f"to use this commit in every run, set `revision: {commit}`"]
    return Fetched(need.subject, need.model, str(folder), commit, downloaded, tuple(notes))


def download(model: str, revision: str | None, commit: str | None = None, *, with_code: bool = False) -> Path:
    """Download the files of a model that transformers and vLLM read into the hub's cache, with progress bars.

    An interrupted download resumes.

    Args:
        model: A hub id.
        revision: The revision that it is downloaded as. Later commands find it by that revision.
        commit: The commit to download. Default: the one that the revision is now.
        with_code: Whether the model's own Python code belongs to it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    try:
        commit = commit or HfApi().model_info(model, revision=revision, timeout=hub.TIMEOUT_SECONDS).sha
        tree = HfApi().list_repo_tree(model, recursive=True, revision=commit)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        names = files_to_download(sizes, with_code=with_code)
        size = wording.size(sum(sizes[name] for name in names))
        logger.info(f"{model}: {wording.count(len(names), 'file')}, {size}, to the hub's cache")
        folder = Path(snapshot_download(model, revision=commit, allow_patterns=names))
    except Exception as error:
        if explained := hub.explain(error, model, revision):
            raise explained from error
        raise
    mark_fetched(model, revision, folder.name)
    return folder


def files_to_download(names: Iterable[str], *, with_code: bool = False) -> list[str]:
    """Configuration, tokenizer and weights, in safetensors if the model has them; no other formats.

    Python code of the model's repository only if `with_code`.
    """
    names = [name for name in names if PurePosixPath(name).parts[0] not in _OTHER_FORMATS]
    weights = next(
        (found for ending in (".safetensors", ".bin") if (found := [name for name in names if name.endswith(ending)])),
        [],
    )
    endings = (*_SMALL_FILES, ".py") if with_code else _SMALL_FILES
    return sorted([*weights, *(name for name in names if name.endswith(endings))])


def _prepare(need: Need, folder: Path) -> list[str]:
    """Convert or export what the captioner's engine reads instead of the published files."""
    if need.job is None:
        return []
    config, pool = need.job.config, need.job.pool
    return get_kind(config.kind).prepare_files(config, folder, pool.engine, pool.engine_options)


def fetch_everywhere(needs: list[Need]) -> dict[str, list[Fetched | str]]:
    """Get the models onto every node of the cluster. Address of the node → its models, or why one is missing."""
    with waiting_for("downloading on every node"):
        results = run_on_every_node(Fetcher(needs), NODE_SECONDS)
    return {
        address: [f"cannot be reached: {one_line(result)}"] if isinstance(result, Exception) else result
        for address, result in results.items()
    }


def pinned(needs: Iterable[Need]) -> list[Need]:
    """The needs with the commits that the hub has now, so that every node gets the same ones."""
    return [replace(need, commit=hub.find_commit(need.model, need.revision)) for need in needs]
