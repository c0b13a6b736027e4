"""An HTTP client that is safe against SSRF: http and https from public addresses, with limits on bytes and time.

img2dataset downloads through `urllib.request.urlopen`, which uses the process-wide opener. `guarded_urlopen` replaces
that opener. The client reads the whole body itself, so a server that sends a byte now and then cannot hold a thread.
It connects to the address that it has checked, so a name cannot change its address in between. It uses no proxy.
"""

import email.utils
import hashlib
import http.client
import io
import itertools
import random
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from types import TracebackType
from urllib.parse import quote, urljoin

from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.connection import Connector, TimedSocket
from lotlip_data.pipeline.downloading.consent import agent_names, forbids, user_agent_header
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.host_limiter import HostLimiter, Slot
from lotlip_data.pipeline.downloading.http_response import read_body, read_head
from lotlip_data.pipeline.downloading.redirect_cookies import RedirectCookies
from lotlip_data.pipeline.downloading.resolver import Resolver
from lotlip_data.pipeline.downloading.url_parsing import SAFE_CHARACTERS, Request, parse_url, slashes

MAX_REDIRECTS = 20
"""As many as browsers follow."""

BACKOFF_SECONDS = 0.5
"""Pause before the first retry. It doubles with each retry and varies at random by ±50%."""

MAX_FREE_RETRIES = 4
"""Further attempts, beside `retries`, at an image that a host refuses because it gets more requests than at first."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITHOUT_BODY = frozenset({204, 205})

Hashes = Mapping[str, str]
"""Hash algorithm → lower-case hexadecimal digest."""


@contextmanager
def guarded_urlopen(
    settings: DownloadSettings,
    expected: Mapping[str, Hashes] | None = None,
    received: Callable[[bytes], None] = lambda body: None,
) -> Iterator[None]:
    """While the block runs, every `urllib.request.urlopen` of this process uses a `GuardedOpener`.

    Args:
        settings: Limits and allowed hosts.
        expected: URL → hashes that the body must have.
        received: Called with each body, by the thread that fetched it.
    """
    previous = urllib.request._opener  # type: ignore[attr-defined]  # there is no public way to read it
    opener = GuardedOpener(settings, expected, received)
    urllib.request.install_opener(opener)  # type: ignore[arg-type]  # it has what urlopen uses
    try:
        yield
    finally:
        urllib.request.install_opener(previous)


@dataclass
class Response:
    """Body and headers: the part of an HTTP response that img2dataset uses."""

    headers: Message
    body: bytes

    def read(self) -> bytes:
        return self.body

    def __enter__(self) -> "Response":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to close: the body is in memory."""


@dataclass
class Redirect:
    """A response that names another URL, which may be relative."""

    headers: Message
    location: str


class GuardedOpener:
    """An opener for `urllib.request.install_opener`. Threads share it. It keeps state per host only."""

    def __init__(
        self,
        settings: DownloadSettings,
        expected: Mapping[str, Hashes] | None = None,
        received: Callable[[bytes], None] = lambda body: None,
    ) -> None:
        self._settings = settings
        self._expected = expected or {}
        self._received = received
        self._headers = {"User-Agent": user_agent_header(settings.user_agent), "Accept-Encoding": "identity"}
        self._names = agent_names(settings.user_agent)
        self._connector = Connector(settings.allow_hosts, settings.timeout, Resolver())
        self._hosts = HostLimiter(settings.per_host, settings.max_per_host, settings.host_failures)

    def open(self, url: urllib.request.Request | str, data: None = None, timeout: float | None = None) -> Response:
        """Fetch `url`, with retries where they can help. `timeout` is ignored: the settings have their own.

        Raises:
            FetchError: The last attempt failed, or a retry cannot help.
        """
        request = urllib.request.Request(url) if isinstance(url, str) else url
        retries, free_retries = self._settings.retries, MAX_FREE_RETRIES
        for attempt in itertools.count():
            try:
                fetched = self._follow(request.full_url)
                self._check(request.full_url, fetched.body)
                break
            except FetchError as error:
                if error.is_free and free_retries:
                    free_retries -= 1
                elif retries and _is_worth_a_retry(error):
                    retries -= 1
                else:
                    raise
                if error.retry_after is None:
                    time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5))
                elif error.retry_after > self._settings.total_timeout:  # the host limiter applies shorter pauses
                    raise
        self._received(fetched.body)
        return fetched

    def _check(self, url: str, body: bytes) -> None:
        """Raise FetchError if the body does not have the hashes that the list expects."""
        for name, digits in self._expected.get(url, {}).items():
            if hashlib.new(name, body, usedforsecurity=False).hexdigest() != digits:
                raise FetchError(failures.WRONG_HASH, name)

    def _follow(self, url: str) -> Response:
        """One attempt: the request and its redirects, within `total_timeout` seconds, with the cookies they set.

        The time spent waiting for request slots does not count. It is limited to another `total_timeout` seconds.
        """
        remaining = max_wait = self._settings.total_timeout
        cookies = RedirectCookies()
        for hop in range(MAX_REDIRECTS + 1):
            target = parse_url(url)
            headers = {"Host": target.host_header, "Connection": "close", **self._headers, **cookies.header(target.url)}
            if hop == 0 and target.credentials is not None:  # only for the host in the list
                headers["Authorization"] = target.credentials
            queued = time.monotonic()
            with self._hosts.slot(target.server, max_wait) as slot:
                started = time.monotonic()
                answer = self._exchange_and_record(slot, target, headers, started + remaining)
            max_wait -= started - queued
            remaining -= time.monotonic() - started
            if isinstance(answer, Response):
                return answer
            cookies.store(target.url, answer.headers)
            url = _join(url, answer.location)
        raise FetchError(failures.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS}")

    def _exchange_and_record(
        self, slot: Slot, target: Request, headers: dict[str, str], deadline: float
    ) -> "Response | Redirect":
        """As `_exchange`, and record in the host limiter how the host behaves."""
        try:
            answer = self._exchange(target, headers, deadline)
        except FetchError as error:
            self._hosts.record_failure(slot, error, self._settings.total_timeout)
            error.is_hopeless, error.is_free = slot.is_hopeless(error), slot.is_refused(error)
            raise
        self._hosts.record_answer(slot)
        return answer

    def _exchange(self, target: Request, headers: dict[str, str], deadline: float) -> "Response | Redirect":
        """One request and its answer."""
        lines = [f"GET {target.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]
        try:
            with closing(self._connector.connect(target, deadline)) as sock:
                timed = TimedSocket(sock, self._settings.timeout, deadline)
                timed.sendall("\r\n".join(lines).encode("latin-1"))
                return self._answer(timed.reader())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _network_error(error) from error

    def _answer(self, stream: io.BufferedReader) -> "Response | Redirect":
        status, headers = read_head(stream)
        if status in _REDIRECTS:
            location = quote(  # raw bytes, whatever their encoding
                slashes((headers.get("Location") or "").strip()), safe=SAFE_CHARACTERS, encoding="iso-8859-1"
            )
            if not location:
                raise FetchError(failures.BAD_REDIRECT, f"status {status}")
            return Redirect(headers, location)
        if not 200 <= status < 300:
            raise FetchError(failures.http_reason(status), retry_after=_retry_after(status, headers))
        if status in _WITHOUT_BODY:
            raise FetchError(failures.EMPTY)
        if self._settings.respect_robots_tag and forbids(headers.get_all("X-Robots-Tag", []), self._names):
            raise FetchError(failures.ROBOTS)
        return Response(headers, read_body(stream, headers, self._settings.max_bytes))


def _is_worth_a_retry(error: FetchError) -> bool:
    """Whether an immediate retry can help. It hardly ever helps a name that does not resolve, and costs seconds."""
    excluded = (failures.NOT_RESOLVED, failures.HOST_DOWN, failures.HOST_BUSY, failures.NOT_ALLOWED)
    if error.is_hopeless or error.reason in excluded:
        return False
    return error.reason == failures.TRUNCATED or failures.is_transient(error.reason)


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchError(failures.BAD_URL, "target of a redirect") from None


def _retry_after(status: int, headers: Message) -> float | None:
    """Seconds that an overloaded server asks clients to wait; None if it does not say."""
    text = (headers.get("Retry-After") or "").strip()
    if status not in (429, 503) or not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _network_error(error: Exception) -> FetchError:
    """The FetchError for a network error. Its detail never quotes the URL, which may hold secrets."""
    if isinstance(error, TimeoutError):
        return FetchError(failures.TIMEOUT)
    if isinstance(error, ssl.SSLError):
        return FetchError(failures.TLS, error.reason or "")
    if isinstance(error, ConnectionRefusedError):
        return FetchError(failures.REFUSED)
    if isinstance(error, http.client.IncompleteRead):
        return FetchError(failures.TRUNCATED, "the body ended early")
    if isinstance(error, ConnectionError):
        return FetchError(failures.LOST)
    if isinstance(error, OSError):
        return FetchError(failures.UNREACHABLE, error.strerror or type(error).__name__)
    return FetchError(failures.BAD_RESPONSE, type(error).__name__)
