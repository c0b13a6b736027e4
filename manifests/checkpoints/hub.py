"""Finds out whether a model is available, before anything slow starts, and says in one sentence why not.

This module imports neither torch nor transformers, so a driver can afford it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lotlip_data.manifests.checkpoints.fetched import commit_of, fetched_folder, is_commit
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError

TIMEOUT_SECONDS = 10.0
"""Time for one answer of the hub."""
CONFIG = "config.json"
BAD_TOKEN = "the token for the hub has characters that no token has"
_CHECK_NETWORK = "check the network, the proxy and HF_ENDPOINT"
_OFFLINE = "HF_HUB_OFFLINE forbids asking the hub"
_GO_ONLINE = "unset HF_HUB_OFFLINE to download with `lotlip-data fetch-models`"


class ModelUnavailable(UserError):
    """A model is not available.

    Args:
        problem: The model's name and the reason.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)  # both, for pickling
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class NoFolder(ModelUnavailable):
    """There is no such folder on this machine; another one may have it."""


class HubUnreachable(ModelUnavailable):
    """The hub does not answer, or asks to wait; a later try, or one on another machine, can succeed."""


def find_model(model: str, revision: str | None = None) -> Path | None:
    """Find a model on this machine, and ask the hub for it if it is not here, with a single request.

    Args:
        model: A local folder, the short name of a checkpoint that comes with the project, or a hub id.
        revision: Revision on the hub.

    Returns:
        The local folder. None for a model that the hub has.

    Raises:
        ModelUnavailable: There is no such folder, or the hub has no such model for this user.
        HubUnreachable: The hub does not answer, and the model is not in its cache.
    """
    try:
        source = resolve(model)
    except ValueError as error:
        raise ModelUnavailable(str(error), "correct the name") from None
    if Path(source).is_dir():
        return Path(source)
    if "://" in source:
        raise ModelUnavailable(
            f"{model}: is a URL, and an engine reads a model from the hub or from a folder",
            "copy it to a folder that every node has, and give that folder",
        )
    if _is_path(source):
        if Path(source).is_file():
            raise ModelUnavailable(f"{model}: is a file, and a model is a folder", f"give the folder that has {CONFIG}")
        raise NoFolder(f"{model}: there is no such folder", "correct the path, or give the id of a model")
    if folder := fetched_folder(source, revision):
        return folder
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(source, revision=revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:
        explained = explain(error, model, revision) or HubUnreachable(
            f"{model}: asking the hub ({endpoint()}) failed ({type(error).__name__}: {_reason(error)})",
            _CHECK_NETWORK,
        )
        if isinstance(explained, HubUnreachable) and (cached := _cached_folder(source, revision)):
            return cached
        raise explained from error
    return None


def find_commit(model: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a hub's model is now, or was when it was downloaded.

    Args:
        model: As in `find_model`.
        revision: Revision on the hub.

    Returns:
        None for a model in a folder, and where neither this machine nor the hub says it.
    """
    if not is_on_hub(model):
        return None
    if is_commit(revision):
        return revision
    if folder := fetched_folder(model, revision):
        return commit_of(folder)
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(model, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except Exception as error:
        if not explain(error, model, revision):
            raise
    cached = _cached_folder(model, revision)
    return commit_of(cached) if cached else None


def check_reachable() -> None:
    """Raise HubUnreachable if the hub does not answer, or if the environment forbids asking it (HF_HUB_OFFLINE)."""
    from huggingface_hub import errors
    from huggingface_hub.utils import get_session

    try:
        status = get_session().get(f"{endpoint()}/api/models?limit=1", timeout=TIMEOUT_SECONDS).status_code
    except errors.OfflineModeIsEnabled as error:
        raise HubUnreachable(_OFFLINE, f"{_GO_ONLINE}, or use models that are on this machine") from error
    except errors.HTTPError as error:
        problem = f"the hub ({endpoint()}) cannot be reached ({_reason(error)})"
        raise HubUnreachable(problem, f"{_CHECK_NETWORK}, or use models that are on this machine") from error
    if status == 429 or status >= 500:
        raise HubUnreachable(f"the hub ({endpoint()}) answers with HTTP {status}", "try again later, or set HF_TOKEN")


def read_config(model: str, revision: str | None = None) -> dict[str, Any]:
    """The content of a model's config.json.

    Args:
        model: As in `find_model`.
        revision: Revision on the hub.

    Raises:
        ModelUnavailable: As `find_model` does; also if the model has no config.json, or one that is damaged.
    """
    folder = find_model(model, revision)
    file = folder / CONFIG if folder else _download_config(model, revision)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelUnavailable(
            f"{model}: has no {CONFIG}, so it is not a model", "give the folder that has it"
        ) from None
    except ValueError as error:
        raise ModelUnavailable(f"{model}: {CONFIG} is not JSON ({error})", "download it again") from None
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{model}: {CONFIG} is not a JSON object", "download it again")
    return config


def explain(error: BaseException, model: str, revision: str | None = None) -> ModelUnavailable | None:
    """What an error means that a library raised while it looked for a model or downloaded it.

    Args:
        error: The error. Its causes are searched too, because transformers raises errors of its own.
        model: The model's name, for the message.
        revision: Revision on the hub.

    Returns:
        The error to raise in its place; None if it does not come from the hub.
    """
    for cause in _chain(error):
        if isinstance(cause, ModelUnavailable):
            return cause
        if explained := _explain_cause(cause, model, revision):
            return explained
    return None


def _explain_cause(error: BaseException, model: str, revision: str | None) -> ModelUnavailable | None:
    from huggingface_hub import errors

    if is_about_token(error):
        return ModelUnavailable(f"{model}: {BAD_TOKEN}", "set HF_TOKEN to a valid one, or unset it")
    if isinstance(error, errors.HFValidationError):
        return ModelUnavailable(
            f"{model}: is neither a folder here nor the id of a model on the hub", "correct the name"
        )
    if isinstance(error, errors.GatedRepoError):
        return ModelUnavailable(
            f"{model}: its owner grants access on request only",
            f"accept the terms at {endpoint()}/{model} and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelUnavailable(f"{model}: the hub has no revision {revision!r} of it", "correct `revision`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelUnavailable(
            f"{model}: the hub has no such model, or it is private",
            "correct the name, or set HF_TOKEN to a token that may read it",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnreachable(
            f"{model}: is not on this machine, and {_OFFLINE}", f"{_GO_ONLINE}, or give the folder of a downloaded copy"
        )
    no_answer = isinstance(error, errors.HTTPError) and not isinstance(error, errors.HfHubHTTPError)
    if no_answer or isinstance(error, errors.LocalEntryNotFoundError):
        return HubUnreachable(
            f"{model}: is not on this machine, and the hub ({endpoint()}) cannot be reached ({_reason(error)})",
            f"{_CHECK_NETWORK}, or give the folder of a downloaded copy",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ModelUnavailable(f"{model}: the hub's copy lacks a file ({_reason(error)})", "use another model")
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, model)
    return None


def is_about_token(error: BaseException) -> bool:
    """Whether an error says that the token cannot be sent, such as a word of some guide that was copied."""
    from huggingface_hub import get_token

    return isinstance(error, UnicodeEncodeError) and (get_token() or "\0") in error.object


def _explain_status(error: Any, model: str) -> ModelUnavailable:
    """What an error answer of the hub means by its HTTP status."""
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return ModelUnavailable(
            f"{model}: the hub rejects the token (HTTP 401)", "set HF_TOKEN to a valid one, or unset it"
        )
    if status == 403:
        return ModelUnavailable(
            f"{model}: the hub denies access (HTTP 403)", "set HF_TOKEN to a token that may read this model"
        )
    if status == 429:
        return HubUnreachable(f"{model}: the hub limits the number of requests (HTTP 429)", "wait, or set HF_TOKEN")
    if status is not None and status < 500:
        return ModelUnavailable(f"{model}: the hub ({endpoint()}) answers with HTTP {status}", "check HF_ENDPOINT")
    return HubUnreachable(f"{model}: the hub ({endpoint()}) fails (HTTP {status})", "try again later")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the innermost answers of the hub before the errors of other libraries around them."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    """The last error in the chain that says something, such as the refused connection below a missing file."""
    texts = [" ".join(str(cause).split()) for cause in _chain(error)]
    return next((text for text in reversed(texts) if text), type(error).__name__)[:200]


def is_on_hub(model: str) -> bool:
    """Whether the name of a model is a hub id, and neither a folder nor the short name of a shipped checkpoint."""
    try:
        source = resolve(model)
    except ValueError:
        return False
    return not Path(source).is_dir() and not _is_path(source)


def _is_path(name: str) -> bool:
    return name.startswith(("/", "~", ".")) or name.count("/") > 1


def endpoint() -> str:
    """The URL of the hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cached_folder(model: str, revision: str | None) -> Path | None:
    """The folder of a model in the hub's cache; None if its config.json is not there."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(model, CONFIG, revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def _download_config(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, CONFIG, revision=revision, etag_timeout=TIMEOUT_SECONDS))
    except Exception as error:
        if explained := explain(error, model, revision):
            raise explained from error
        raise
