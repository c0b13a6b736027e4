"""An HTTP client that is safe against SSRF: http and https from public addresses, with limits on bytes and time.

img2dataset downloads through `urllib.request.urlopen`, which uses the process-wide opener. `guarded_urlopen` replaces
that opener. The client reads the whole body itself, so a server that sends a byte now and then cannot hold a thread.
It connects to the address that it has checked, so a name cannot change its address in between. It uses no proxy.
"""

import base64
import email.utils
import hashlib
import http.client
import io
import ipaddress
import random
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from functools import cache
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.host_limiter import HostLimiter

MAX_REDIRECTS = 10
BACKOFF_SECONDS = 0.5
"""Pause before the first retry. It doubles with each retry and varies at random by ±50%."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

SAFE_CHARACTERS = "/%:=&?~#+!$,;'@()*[]|"
"""Characters that are not percent-encoded in a path, a query or the target of a redirect."""


Hashes = Mapping[str, str]
"""Hash algorithm → lower-case hexadecimal digest."""


@contextmanager
def guarded_urlopen(settings: DownloadSettings, expected: Mapping[str, Hashes] | None = None) -> Iterator[None]:
    """While the block runs, every `urllib.request.urlopen` of this process uses a `GuardedOpener`.

    Args:
        settings: Limits and allowed hosts.
        expected: URL → hashes that the body must have.
    """
    previous = urllib.request._opener  # type: ignore[attr-defined]  # there is no public way to read it
    urllib.request.install_opener(GuardedOpener(settings, expected))  # type: ignore[arg-type]  # it has what urlopen uses
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


@dataclass(frozen=True)
class Request:
    """A checked URL: whom to connect to, and what to send."""

    tls: bool
    host: str
    """In ASCII, without the brackets of an IPv6 address."""
    port: int
    target: str
    """Path and query, percent-encoded for the request line."""
    headers: dict[str, str]
    """Headers that follow from the URL."""
    credentials: str | None = field(repr=False)
    """The user and password of the URL, as an `Authorization` header."""

    @property
    def server(self) -> str:
        """Host and port: the unit of the host limits."""
        return f"{self.host}:{self.port}"


class GuardedOpener:
    """An opener for `urllib.request.install_opener`. Threads share it. It keeps state per host only."""

    def __init__(self, settings: DownloadSettings, expected: Mapping[str, Hashes] | None = None) -> None:
        self._settings = settings
        self._expected = expected or {}
        self._allowed = frozenset(host.lower() for host in settings.allow_hosts)
        self._hosts = HostLimiter(settings.per_host, settings.host_failures)

    def open(self, url: urllib.request.Request | str, data: None = None, timeout: float | None = None) -> Response:
        """Fetch `url`, with retries where they can help. `timeout` is ignored: the settings have their own.

        Raises:
            FetchError: The last attempt failed, or a retry cannot help.
        """
        request = urllib.request.Request(url) if isinstance(url, str) else url
        for attempt in range(self._settings.retries + 1):
            try:
                fetched = self._follow(request)
                self._check(request.full_url, fetched.body)
                return fetched
            except FetchError as error:
                if attempt == self._settings.retries or not _is_worth_a_retry(error.reason):
                    raise
                if error.retry_after is None:
                    time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5))
                elif error.retry_after > self._settings.total_timeout:  # the host limiter applies shorter pauses
                    raise
        raise AssertionError("unreachable")

    def _check(self, url: str, body: bytes) -> None:
        """Raise FetchError if the body does not have the hashes that the list expects."""
        for name, digits in self._expected.get(url, {}).items():
            if hashlib.new(name, body, usedforsecurity=False).hexdigest() != digits:
                raise FetchError(failures.WRONG_HASH, name)

    def _follow(self, request: urllib.request.Request) -> Response:
        """One attempt: the request and its redirects, within `total_timeout` seconds.

        The time spent waiting for request slots does not count. It is limited to another `total_timeout` seconds.
        """
        remaining = max_wait = self._settings.total_timeout
        url, headers = request.full_url, dict(request.header_items())
        for hop in range(MAX_REDIRECTS + 1):
            target = parse_url(url)
            if hop == 0 and target.credentials is not None:
                headers["Authorization"] = target.credentials
            elif hop == 1:
                headers.pop("Authorization", None)  # only for the host in the list
            queued = time.monotonic()
            with self._hosts.slot(target.server, max_wait):
                started = time.monotonic()
                answer = self._exchange_and_record(target, headers, started + remaining)
            max_wait -= started - queued
            remaining -= time.monotonic() - started
            if isinstance(answer, Response):
                return answer
            url = urljoin(url, answer)
        raise FetchError(failures.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS}")

    def _exchange_and_record(self, target: Request, headers: dict[str, str], deadline: float) -> Response | str:
        """As `_exchange`, and record in the host limiter how the host behaves."""
        try:
            answer = self._exchange(target, headers, deadline)
        except FetchError as error:
            self._hosts.record_failure(target.server, error, self._settings.total_timeout)
            raise
        self._hosts.record_answer(target.server)
        return answer

    def _exchange(self, target: Request, headers: dict[str, str], deadline: float) -> Response | str:
        """One request and its answer: a response, or the target of a redirect."""
        try:
            with closing(self._connect(target, deadline)) as sock:
                timed = _TimedSocket(sock, self._settings.timeout, deadline)
                connection = http.client.HTTPConnection(target.host, target.port)
                connection.sock = timed  # has what http.client uses of a socket
                connection.request("GET", target.target, headers=headers | target.headers)
                return self._answer(connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _network_error(error) from error

    def _answer(self, response: http.client.HTTPResponse) -> Response | str:
        if response.status in _REDIRECTS:
            if not (location := response.headers.get("Location")):
                raise FetchError(failures.BAD_REDIRECT, f"status {response.status}")
            return quote(
                location.strip(), safe=SAFE_CHARACTERS, encoding="iso-8859-1"
            )  # raw bytes, whatever their encoding
        if not 200 <= response.status < 300:
            raise FetchError(failures.http_reason(response.status), retry_after=_retry_after(response))
        body = self._body(response)
        if not body:
            raise FetchError(failures.EMPTY)
        return Response(response.headers, body)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        limit, content_length = self._settings.max_bytes, response.length
        if content_length is not None and content_length > limit:
            raise FetchError(failures.TOO_LARGE, f"{content_length} bytes, more than {limit}")
        pieces, size = list[bytes](), 0
        while piece := response.read(content_length or _CHUNK_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise FetchError(failures.TOO_LARGE, f"more than {limit} bytes")
        if content_length is not None and size < content_length:
            raise FetchError(failures.TRUNCATED, f"received {size} of {content_length} bytes")
        return b"".join(pieces)

    def _connect(self, target: Request, deadline: float) -> socket.socket:
        """Connect to the first allowed address of the host that answers."""
        last_error: OSError | None = None
        for family, address in self._addresses(target.host, target.port):
            seconds = _remaining(self._settings.timeout, deadline)
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(seconds)
                sock.connect(address)
                if target.tls:
                    return _tls().wrap_socket(sock, server_hostname=target.host)
                return sock
            except OSError as error:
                sock.close()
                last_error = error
        assert last_error is not None
        raise last_error

    def _addresses(self, host: str, port: int) -> list[tuple[int, Any]]:
        """The allowed socket addresses of `host`: at least one."""
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise FetchError(failures.NOT_RESOLVED, error.strerror or "") from error
        except UnicodeError:  # for example, a label of more than 63 characters
            raise FetchError(failures.BAD_URL, "host name") from None
        allowed: list[tuple[int, Any]] = [
            (family, address)
            for family, _, _, _, address in resolved
            if host.lower() in self._allowed or is_public(str(address[0]))
        ]
        if not allowed:
            raise FetchError(
                failures.NOT_ALLOWED, "not a public address; add hosts of your intranet to `download.allow_hosts`"
            )
        return allowed


@cache
def _tls() -> ssl.SSLContext:
    """One context per process: reading the certificates takes as long as downloading and storing four images."""
    return ssl.create_default_context()


def is_public(text: str) -> bool:
    """Whether an IP address is on the public internet. Checks the IPv4 address inside an IPv6 address as well."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            address = embedded
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class _TimedSocket:
    """A socket whose every call ends by the deadline of the whole fetch. The owner of `sock` closes it."""

    def __init__(self, sock: socket.socket, timeout: float, deadline: float) -> None:
        self._sock, self._timeout, self._deadline = sock, timeout, deadline

    def sendall(self, data: bytes) -> None:
        self._armed().sendall(data)

    def recv_into(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        return self._armed().recv_into(buffer)

    def _armed(self) -> socket.socket:
        """The socket, with the remaining time as its timeout. Setting it is a system call, so only a change sets it."""
        timeout = _remaining(self._timeout, self._deadline)
        if timeout != self._sock.gettimeout():
            self._sock.settimeout(timeout)
        return self._sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Do nothing: http.client calls this before it reads the body."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: _TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        return self._sock.recv_into(buffer)


def _remaining(timeout: float, deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise FetchError(failures.TIMEOUT, "of the whole fetch")
    return min(timeout, seconds)


def _is_worth_a_retry(reason: str) -> bool:
    """Whether an immediate retry can help. It hardly ever helps a name that does not resolve, and costs seconds."""
    excluded = (failures.NOT_RESOLVED, failures.HOST_DOWN, failures.HOST_BUSY, failures.NOT_ALLOWED)
    return reason == failures.TRUNCATED or (failures.is_transient(reason) and reason not in excluded)


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """Seconds that an overloaded server asks clients to wait; None if it does not say."""
    text = (response.headers.get("Retry-After") or "").strip()
    if response.status not in (429, 503) or not text:
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


def parse_url(url: str) -> Request:
    """Check a URL and take it apart.

    Raises:
        FetchError: The URL is malformed, or its scheme is not http or https.
    """
    try:
        parts = urlsplit(url)
        port, hostname = parts.port, parts.hostname
    except ValueError:
        raise FetchError(failures.BAD_URL) from None
    if parts.scheme not in ("http", "https"):
        raise FetchError(failures.BAD_SCHEME, parts.scheme[:20])
    if not hostname:
        raise FetchError(failures.BAD_URL, "no host")
    host, tls = _ascii(hostname), parts.scheme == "https"
    host_header = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return Request(
        tls=tls,
        host=host,
        port=port or (443 if tls else 80),
        target=quote(parts.path or "/", safe=SAFE_CHARACTERS)
        + (f"?{quote(parts.query, safe=SAFE_CHARACTERS)}" if parts.query else ""),
        headers={"Host": host_header, "Connection": "close"},
        credentials=None if parts.username is None else _basic(parts),
    )


def _ascii(name: str) -> str:
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        raise FetchError(failures.BAD_URL, "host name") from None


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
