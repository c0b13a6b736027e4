"""What differs on `http://` and `https://` URLs: time limits, absence, and servers that send only whole files.

fsspec says that a file is missing whatever a web server answers, and if it does not answer. Here only 404 and 410 mean
that there is no such file.
"""

import functools
from typing import IO, Any

from lotlip_data.manifests.storage_retry import StorageError

CONNECT_SECONDS, READ_SECONDS = 15.0, 30.0
"""Time limits of a connection, and of each wait for data."""

_ABSENT = (404, 410)
_TRANSIENT = (408, 425, 429)


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


@functools.cache
def file_system_options() -> dict[str, Any]:
    """Options of fsspec's file system. Its own limit is five minutes for a whole body, and none for a connection."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def raise_unless_absent(error: FileNotFoundError, url: str) -> None:
    """Raise what the cause of fsspec's error is, unless the server says that there is no such file.

    Args:
        error: The error of an operation of any storage.
        url: The URL; nothing is raised for one of another scheme.

    Raises:
        StorageError: The server refuses, or does not answer in time.
        ConnectionError: It cannot be reached, or has an error of its own. Worth a retry.
    """
    cause = error.__cause__
    if not is_http(url) or cause is None or isinstance(cause, FileNotFoundError):
        return
    if isinstance(cause, TimeoutError):
        raise StorageError(f"{url}: the server does not answer within {READ_SECONDS:g} seconds") from cause
    import aiohttp
    from aiohttp.http_exceptions import HttpProcessingError

    if isinstance(cause, aiohttp.TooManyRedirects):
        raise StorageError(
            f"{url}: the server redirects too often. Check the URL, and whether it needs a login."
        ) from cause
    if isinstance(cause, aiohttp.NonHttpUrlRedirectClientError):
        raise StorageError(f"{url}: the server redirects to a URL that is not http or https: {cause}") from cause
    if isinstance(cause.__cause__, HttpProcessingError):
        raise StorageError(
            f"{url}: the answer of the server is not valid HTTP: {_one_line(cause.__cause__)}"
        ) from cause
    status = getattr(cause, "status", None)
    if status in _ABSENT:
        return
    if status:
        answer = f"{url}: the server answers {status} {getattr(cause, 'message', '')}".rstrip()
        if status >= 500 or status in _TRANSIENT:
            raise ConnectionError(answer) from cause
        raise StorageError(f"{answer}. Check the URL, and whether it needs a login.") from cause
    if isinstance(cause, ValueError):
        raise StorageError(f"{url}: is not a valid URL") from cause
    raise ConnectionError(f"{url}: the server cannot be reached: {_one_line(cause)}") from cause


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def open_read(fs: Any, url: str) -> IO[bytes]:
    """Open a URL. If the server sends no parts of a file, the stream cannot go back."""
    stream: IO[bytes] = fs.open(url, "rb")
    size = getattr(stream, "size", None)
    if size is None or size <= fs.block_size:
        return stream
    try:
        stream.seek(size - 1)
        stream.read(1)
        stream.seek(0)
    except ValueError:
        stream.close()
        stream = fs.open(url, "rb", block_size=0)
    return stream
