"""What an error of huggingface_hub means for a publication: one line with the remedy, without the token."""

import json
import re
from collections.abc import Iterator
from typing import Any

from lotlip_data.manifests.checkpoints.hub import BAD_TOKEN, endpoint, is_about_token
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.wording import duration

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request can succeed."""
_TOKEN_REMEDY = "Set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)"
_QUERY = re.compile(r"\?[^\s'\"]+")
_TOKEN = re.compile(r"\b(hf|api)_(org_|oauth_)?[A-Za-z0-9]{16,}")
_REASON_CHARACTERS = 300


class Unavailable(ConnectionError):
    """The Hub does not answer, or asks to wait.

    Args:
        message: What happened, and the remedy.
        wait: Seconds after which the Hub allows the next request; None where it does not say.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class BranchMoved(UserError):
    """The branch has another commit than the one that the changes were compared with."""


def no_token() -> UserError:
    return UserError(f"there is no token for the Hub ({endpoint()}). Run `hf auth login`, or: {_TOKEN_REMEDY}.")


def read_only_token() -> UserError:
    return UserError(f"the token may only read from the Hub ({endpoint()}). {_TOKEN_REMEDY}.")


def explain(error: BaseException, repository: str) -> Exception | None:
    """What an error means that huggingface_hub raised.

    Args:
        error: The error. The errors that caused it are searched too.
        repository: The repository as ORG/NAME, for the message.

    Returns:
        The error to raise in its place; None if it does not come from the Hub.
    """
    from huggingface_hub import errors

    if type(error) is ValueError:  # an answer of the Hub that the library reports so, such as a faulty card
        return UserError(f"{repository}: the Hub refuses the files ({readable(str(error))})")
    for cause in _chain(error):
        if is_about_token(cause):
            return UserError(f"{repository}: {BAD_TOKEN}. {_TOKEN_REMEDY}.")
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return UserError(f"{repository}: HF_HUB_OFFLINE forbids to ask the Hub. Unset it.")
        if isinstance(cause, errors.HFValidationError):
            return UserError(f"{repository}: is no name of a repository. Give ORG/NAME, such as my-org/my-captions.")
        if isinstance(cause, errors.HfHubHTTPError):
            return _explain_answer(cause, repository)
        if isinstance(cause, json.JSONDecodeError):
            return UserError(
                f"{repository}: {endpoint()} does not answer as a Hub does. Check HF_ENDPOINT and the proxy."
            )
        if isinstance(cause, errors.HTTPError | errors.LocalEntryNotFoundError):
            reason = readable(str(cause)) or type(cause).__name__
            return Unavailable(
                f"{repository}: the Hub ({endpoint()}) cannot be reached ({reason}); check the network, the proxy and "
                "HF_ENDPOINT"
            )
    if type(error).__module__.partition(".")[0] == "hf_xet" or isinstance(error, RuntimeError):
        return Unavailable(f"{repository}: the upload failed ({readable(str(error))})")
    return None


def _explain_answer(error: Any, repository: str) -> Exception:
    """What an error answer of the Hub means by its HTTP status."""
    from huggingface_hub import errors

    status = error.response.status_code
    message = readable(getattr(error, "server_message", None) or "")
    answer = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repository}: the Hub has no such branch ({answer}). Correct --branch.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{repository}: the Hub has no dataset repository of this name that this token may see ({answer}). If the "
            "name is that of a model or a Space, choose another one; otherwise use a token that may read it."
        )
    if status in TRANSIENT:
        return _unavailable(error, repository, answer)
    texts = {
        401: f"the Hub rejects the token ({answer}). {_TOKEN_REMEDY}.",
        402: f"the Hub asks for a payment ({answer}). Free storage of the account, or raise its limit.",
        403: f"the token has no right to write there ({answer}). Use a token with write access to this repository, or "
        "a repository of your own.",
        409: f"the name is taken ({answer}). If it is that of another kind of repository, choose another name.",
        412: f"the branch has changed meanwhile ({answer}). Run the same command again.",
    }
    text = texts.get(
        status, f"the Hub refuses the request ({answer}). Correct what it names and run the command again."
    )
    return (BranchMoved if status == 412 else UserError)(f"{repository}: {text}")


def _unavailable(error: Any, repository: str, answer: str) -> Unavailable:
    wait = _seconds_to_wait(error.response.headers)
    if error.response.status_code != 429:
        return Unavailable(f"{repository}: the Hub ({endpoint()}) fails ({answer})", wait)
    when = "later" if wait is None else f"in {duration(wait)}"
    return Unavailable(f"{repository}: the Hub limits the number of requests ({answer}); try again {when}", wait)


def _seconds_to_wait(headers: Any) -> float | None:
    """The seconds of `Retry-After`, or of the `RateLimit` header: `"api";r=0;t=55`."""
    if str(headers.get("Retry-After", "")).isdigit():
        return float(headers["Retry-After"])
    match = re.search(r"\br=0\b.*\bt=(\d+)", str(headers.get("RateLimit", "")))
    return float(match[1]) if match else None


def readable(text: str) -> str:
    """A message of a library in one line, without the queries of URLs, which can be signed, and without a token."""
    line = _TOKEN.sub("(token)", _QUERY.sub("", " ".join(text.split())))
    return line if len(line) <= _REASON_CHARACTERS else line[:_REASON_CHARACTERS] + "…"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
