"""The settings and the model behind a captioner's folder, recorded once, so that captions of two origins never mix."""

import contextlib
import logging

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.model_files import changed_files, model_files
from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.results import RecaptionError

logger = logging.getLogger(__name__)

MAX_NAMED_FILES = 5


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
        storage.remove(run.parts(captioner.name))
        return
    changed = sorted(name for name, value in settings.items() if recorded.get(name) != value)
    raise RecaptionError(
        f"{run.captioner(captioner.name)} holds captions of {recorded['id']}, but the settings now make "
        f"{captioner.id} (changed: {', '.join(changed)}). Give the captioner another name, or use the settings "
        f"in {path}."
    )


def check_settings(run: Run, captioner: CaptionerConfig) -> None:
    """Check before a commit that the folder is still claimed for these settings.

    Raises:
        RecaptionError: Another driver has claimed it for other settings, before this captioner committed anything.
    """
    try:
        recorded = ledger.captioner_settings(run, captioner.name)["id"]
    except FileNotFoundError:
        return  # the user has removed it
    if recorded != captioner.id:
        raise RecaptionError(
            f"{run.captioner(captioner.name)} now belongs to {recorded}, which another command has started. Give "
            f"{captioner.id} another name."
        )


def local_files(captioner: CaptionerConfig) -> dict[str, str]:
    """The digests of the captioner's model folder; empty where this machine has no such folder."""
    if not get_kind(captioner.kind).loads_model:
        return {}
    with contextlib.suppress(ValueError):  # a shipped checkpoint that does not exist: the engine's start says so
        return model_files(captioner.model)
    return {}


def claim_model(run: Run, captioner: CaptionerConfig, files: dict[str, str]) -> None:
    """Record the model's files, once a captioner works.

    Args:
        run: The run.
        captioner: The captioner.
        files: From `local_files`.

    Raises:
        RecaptionError: Another model is recorded.
    """
    if not files or storage.create(run.model_files(captioner.name), artifacts.encode_json(files, indent=1)):
        return
    check_model(run, captioner, files)


def check_model(run: Run, captioner: CaptionerConfig, files: dict[str, str], *, forget: bool = False) -> None:
    """Compare the model's files with the recorded ones, if there are both.

    Args:
        run: The run.
        captioner: The captioner.
        files: From `local_files`.
        forget: Drop the record of other files if no shard is committed. Only for the driver, before any actor starts.

    Raises:
        RecaptionError: They differ. The message names the files.
    """
    path = run.model_files(captioner.name)
    if not files or not storage.exists(path):
        return
    recorded = artifacts.read_json(
        path, f"Remove it; the files of {captioner.model} are then recorded anew.", dict[str, str]
    )
    if not (changed := changed_files(recorded, files)):
        return
    if forget and not ledger.captioned_shards(run, captioner.name):
        storage.remove(path)
        return
    names = ", ".join(changed[:MAX_NAMED_FILES]) + (", …" if len(changed) > MAX_NAMED_FILES else "")
    raise RecaptionError(
        f"captioner {captioner.name!r}: {captioner.model} has changed since it made the captions in "
        f"{run.captioner(captioner.name)} (changed: {names}). Give the captioner of the changed model another name, or "
        f"put the old files back. If the change cannot alter a text, remove {path}."
    )
