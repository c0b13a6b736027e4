"""Retries of storage operations after transient errors, and plain messages for errors that a user must fix.

A write that a full or read-only disk refuses is a `DiskError`. It ends a stage at once: every further shard would meet
the same disk, after its images were downloaded or captioned in vain.

The clients of object stores retry by themselves; these retries come on top.
"""

import errno
import functools
import http.client
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tenacity

from lotlip_data.manifests.errors import UserError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class StorageError(UserError):
    """The storage rejected an operation; the message says where and how to fix it."""


class DiskError(OSError):
    """A folder cannot be written to until a person acts. The message names the folder and the remedy."""

    def __str__(self) -> str:
        return str(self.strerror)


_REFUSALS = {
    errno.ENOSPC: "the disk is full. Free space on it",
    errno.EDQUOT: "the quota of the disk is used up. Free space, or have the quota raised",
    errno.EROFS: "the file system is read-only. Make it writable or use another folder",
}
_DENIALS = {
    errno.EACCES: "this user may not write there. Make it writable or use another folder",
    errno.EPERM: "this user may not write there. Make it writable or use another folder",
}


def disk_error(error: OSError, folder: str, denials: bool = True) -> DiskError | None:
    """The error of a write as a DiskError; None if the disk is not its cause.

    Args:
        error: The error.
        folder: The folder that was written to.
        denials: Whether missing permissions count too.
    """
    if isinstance(error, DiskError):
        return error
    code = error.errno or (errno.EACCES if isinstance(error, PermissionError) else 0)
    reason = (_REFUSALS | _DENIALS if denials else _REFUSALS).get(code)
    if reason is None:
        return None
    return DiskError(code, f"{folder}: {reason}, then run the same command again: committed work is kept.")


def writes(operation: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator: raise a DiskError if the disk refuses to write. The first argument of `operation` is the URL."""

    @functools.wraps(operation)
    def with_folder(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return operation(*arguments, **options)
        except OSError as error:
            if refused := disk_error(error, str(arguments[0]).rpartition("/")[0]):
                raise refused from error
            raise

    return with_folder


_FINAL = (DiskError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)


def is_transient(error: BaseException) -> bool:
    """Whether the operation that raised an error may succeed if it is tried again."""
    return isinstance(error, OSError) and not isinstance(error, _FINAL) and error.errno not in _FINAL_CODES


_retrying = tenacity.retry(
    retry=tenacity.retry_if_exception(is_transient),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5),
    reraise=True,
)


def with_retries(operation: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator: repeat `operation` after transient errors. Its first argument is the URL, for messages.

    Errors of storage clients that are not OSErrors become ConnectionErrors, which are transient, and missing
    credentials a StorageError.
    """

    @functools.wraps(operation)
    def with_clear_errors(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return operation(*arguments, **options)
        except OSError:
            raise
        except client_errors() as error:
            if "Credentials" in type(error).__name__:
                raise StorageError(
                    f"{arguments[0]}: no credentials for this storage. Set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the machine a role. For a storage other than "
                    "Amazon's, set AWS_ENDPOINT_URL to its URL."
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionError(f"{arguments[0]}: {reason}") from error

    return _retrying(with_clear_errors)


def client_errors() -> tuple[type[Exception], ...]:
    """Error classes of the storage clients that are imported already."""
    names = (
        *(("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")),
        *(("httpx", "HTTPError"), ("httpx2", "HTTPError")),  # of huggingface_hub, for hf:// URLs
    )
    imported = (getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    return (http.client.HTTPException, *imported)
