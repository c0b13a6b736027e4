"""What a storage refuses once in a while is asked again; what only a person can mend is told plainly.

The clients of object stores ask again themselves; this is what lies beyond.
"""

import errno
import functools
import http.client
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tenacity

from lotlip_data.manifests.errors import UserError


class StorageError(UserError):
    """The storage refused something; the message says where and what to do."""


_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, _FINAL) and error.errno not in _FINAL_CODES


_retrying = tenacity.retry(
    retry=tenacity.retry_if_exception(_may_pass),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5),
    reraise=True,
)

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def with_retries(ask: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """`ask`, and again where its error may pass. What clients of a storage raise beside OSErrors becomes one."""

    @functools.wraps(ask)
    def told(*given: Given.args, **options: Given.kwargs) -> Answer:
        try:
            return ask(*given, **options)
        except OSError:
            raise
        except _client_errors() as error:
            if "Credentials" in type(error).__name__:
                raise StorageError(
                    f"{given[0]}: no credentials for this storage. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
                    "AWS_PROFILE, or give the machine a role; AWS_ENDPOINT_URL names a storage that is not Amazon's."
                ) from error
            raise ConnectionError(f"{given[0]}: {error}") from error

    return _retrying(told)


def _client_errors() -> tuple[type[Exception], ...]:
    """Errors of the clients that are in use; none is imported for it."""
    names = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"))
    found = (getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    return (http.client.HTTPException, *found)
