"""The settings and the model behind a captioner's folder, recorded once, so that captions of two origins never mix."""

import contextlib
import json
import logging
from collections.abc import Sequence

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.model_files import changed_files, combined_digest, model_files
from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.fetched import is_commit
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.results import RecaptionError

logger = logging.getLogger(__name__)

MAX_NAMED_FILES = 5

TEXT_ARGUMENTS = frozenset(
    (
        "dtype",
        "hf_overrides",
        "kv_cache_dtype",
        "load_format",
        "logits_processors",
        "max_model_len",
        "mm_processor_kwargs",
        "model",
        "quantization",
        "revision",
        "speculative_config",
        "structured_outputs_config",
        "tensor_parallel_size",
        "tokenizer",
    )
)
"""Arguments of vLLM (`engine_args`) that can change a text. A captioner's id covers no engine option."""


def claim_settings(run: Run, captioner: CaptionerConfig) -> None:
    """Record the captioner's settings in its folder, so that captions of different settings never mix.

    As long as no shard is committed, other settings replace the recorded ones.

    Raises:
        RecaptionError: The folder holds captions made with other settings. The message names them.
    """
    path = run.captioner_settings(captioner.name)
    settings = captioner.to_dict()
    content = artifacts.encode_json({"id": captioner.id, **settings}, indent=1)
    if not storage.exists(path) and storage.create(path, content):
        return  # checked first, so that a run with nothing to do needs no write access
    recorded = ledger.captioner_settings(run, captioner.name)
    if recorded["id"] == captioner.id:
        return
    if not ledger.captioned_shards(run, captioner.name):
        logger.warning(
            f"{captioner.name}: the settings have changed before any shard was committed; its captions of unfinished "
            "shards are generated again"
        )
        storage.replace(path, content)
        storage.remove(run.model_files(captioner.name))
        storage.remove(run.model_revision(captioner.name))
        storage.remove(run.parts(captioner.name))
        return
    changed = sorted(name for name, value in settings.items() if recorded.get(name) != value)
    raise RecaptionError(
        f"{run.captioner(captioner.name)} holds captions of {recorded['id']}, but the settings now make "
        f"{captioner.id} (changed: {', '.join(changed)}). Give the captioner another name, or use the settings "
        f"in {path}."
    )


def check_claims(run: Run, captioner: CaptionerConfig, model_digest: str) -> None:
    """Check before a commit that the folder is still claimed for these settings and this model.

    Args:
        run: The run.
        captioner: The captioner.
        model_digest: From `combined_digest`.

    Raises:
        RecaptionError: Another driver has claimed it for others, before this captioner committed anything.
    """
    with contextlib.suppress(FileNotFoundError):  # a record that a user has removed
        recorded = ledger.captioner_settings(run, captioner.name)["id"]
        if recorded != captioner.id:
            raise RecaptionError(
                f"{run.captioner(captioner.name)} now belongs to {recorded}, which another command has started. Give "
                f"{captioner.id} another name."
            )
        if model_digest and combined_digest(_recorded_origin(run, captioner)) != model_digest:
            raise RecaptionError(
                f"{run.captioner(captioner.name)} now belongs to another model in {captioner.model}, with which "
                "another command has started. Give one of them another name."
            )


def claim_revision(run: Run, captioner: CaptionerConfig, others: Sequence[str] = ()) -> None:
    """Record, once, which commit of its model on the hub the captioner uses in this run: a branch can move meanwhile.

    Nothing is recorded if the settings name a commit or a folder, or where neither the hub nor its cache is at hand.

    Args:
        run: The run.
        captioner: The captioner.
        others: Captioners that the same engine makes. If one of them has a commit, it is taken.
    """
    path = run.model_revision(captioner.name)
    if is_commit(captioner.revision) or not get_kind(captioner.kind).loads_model or not hub.is_on_hub(captioner.model):
        return
    if storage.exists(path):
        return
    known = filter(None, (_recorded_commit(run, name, captioner.model) for name in others))
    commit = next(known, None) or hub.find_commit(captioner.model, captioner.revision)
    if commit and storage.create(path, artifacts.encode_json({"model": captioner.model, "revision": commit}, indent=1)):
        logger.info(f"{captioner.name}: this run uses commit {commit} of {captioner.model}, as {path} records")


def with_claimed_revision(run: Run, captioner: CaptionerConfig, texts: Sequence[str] = ()) -> CaptionerConfig:
    """The configuration to load the engine with: with the recorded commit in place of a branch.

    Its id differs; captions are made in the name of the captioner as it is.

    Args:
        run: The run.
        captioner: The captioner.
        texts: Names of the texts that the engine makes, if it makes several.

    Raises:
        RecaptionError: Texts that the same engine is to make have different commits.
    """
    if is_commit(captioner.revision):
        return captioner
    names = texts or [captioner.name]
    commits = {name: commit for name in names if (commit := _recorded_commit(run, name, captioner.model))}
    if len(set(commits.values())) > 1:
        shown = ", ".join(f"{commit} in {run.model_revision(name)}" for name, commit in commits.items())
        raise RecaptionError(
            f"captioner {captioner.name!r}: its texts were made with different commits of {captioner.model} ({shown}), "
            "and one engine has one of them. Select texts of one commit with --captioner, or write a captioner for each"
        )
    return captioner.replace(revision=next(iter(commits.values()))) if commits else captioner


def _recorded_commit(run: Run, name: str, model: str) -> str | None:
    """The commit of a model that a captioner's folder records; None if it records none, or one of another model."""
    path = run.model_revision(name)
    try:
        recorded = artifacts.read_json(path, "Remove it; the newest commit is then recorded.", dict[str, str])
    except FileNotFoundError:
        return None
    return recorded.get("revision") if recorded.get("model") == model else None


def origin(captioner: CaptionerConfig, options: EngineOptions) -> dict[str, str]:
    """What makes the texts beside the settings: digests of the model's files, and arguments of vLLM that change texts.

    The files are missing where this machine does not have the model's folder.
    """
    arguments = {
        f"engine_args.{name}": json.dumps(value, sort_keys=True, default=str)
        for name, value in options.engine_args.items()
        if name in TEXT_ARGUMENTS
    }
    if not get_kind(captioner.kind).loads_model:
        return arguments
    with contextlib.suppress(ValueError):  # a shipped checkpoint that does not exist: the engine's start says so
        adapter = model_files(captioner.lora) if captioner.lora else {}
        return model_files(captioner.model) | {f"lora/{name}": digest for name, digest in adapter.items()} | arguments
    return arguments


def claim_model(run: Run, captioner: CaptionerConfig, current: dict[str, str]) -> None:
    """Record what makes the texts, once a captioner works.

    Args:
        run: The run.
        captioner: The captioner.
        current: From `origin`.

    Raises:
        RecaptionError: Another model is recorded.
    """
    if storage.create(run.model_files(captioner.name), artifacts.encode_json(current, indent=1)):
        return
    check_model(run, captioner, current)


def check_model(run: Run, captioner: CaptionerConfig, current: dict[str, str], *, forget: bool = False) -> None:
    """Compare what makes the texts with what is recorded.

    Args:
        run: The run.
        captioner: The captioner.
        current: From `origin`.
        forget: Drop another record if no shard is committed. Only for the driver, before any actor starts.

    Raises:
        RecaptionError: They differ. The message names the files.
    """
    path = run.model_files(captioner.name)
    try:
        recorded = _recorded_origin(run, captioner)
    except FileNotFoundError:
        return
    changed = changed_files(recorded, current)
    if not any(_is_file(name) for name in current):  # this machine does not have the folder
        changed = [name for name in changed if not _is_file(name)]
    if not changed:
        return
    if forget and not ledger.captioned_shards(run, captioner.name):
        storage.remove(path)
        return
    names = ", ".join(changed[:MAX_NAMED_FILES]) + (", …" if len(changed) > MAX_NAMED_FILES else "")
    raise RecaptionError(
        f"captioner {captioner.name!r}: {captioner.model} has changed since it made the captions in "
        f"{run.captioner(captioner.name)} (changed: {names}). Give the captioner of the changed model another name, or "
        f"put back what was there. If the change cannot alter a text, remove {path}."
    )


def _recorded_origin(run: Run, captioner: CaptionerConfig) -> dict[str, str]:
    path, remedy = run.model_files(captioner.name), f"Remove it; the files of {captioner.model} are then recorded anew."
    return artifacts.read_json(path, remedy, dict[str, str])


def _is_file(name: str) -> bool:
    return not name.startswith("engine_args.")
