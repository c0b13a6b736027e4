"""What may be fetched at all: http and https from public addresses, within limits of bytes, redirects and time.

img2dataset fetches through `urllib.request.urlopen`, which asks the installed opener: `installed` puts a guarded one
in its place. It reads the whole body itself, so that a server that drips bytes cannot hold a thread, and it connects
to the very address that it has checked, so that a name cannot change its address in between. Proxies are not used.

A URL of a list as a request: its parts, checked once, and what of it goes over the wire.
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
from lotlip_data.pipeline.downloading import failures as reasons
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.host_limiter import Hosts

MAX_REDIRECTS = 10
BACKOFF = 0.5
"""Seconds before the first further attempt, twice as long before each other one, ± half of it at random."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


Hashes = Mapping[str, str]
"""By name of the algorithm, hexadecimal digits in small letters."""


@contextmanager
def installed(settings: DownloadSettings, expected: Mapping[str, Hashes] | None = None) -> Iterator[None]:
    """Every `urllib.request.urlopen` of this process goes through the guard, as long as the block lasts.

    `expected`: by URL, the hashes that its body must have.
    """
    before = urllib.request._opener  # type: ignore[attr-defined]  # there is no public way to read it
    urllib.request.install_opener(GuardedOpener(settings, expected))  # type: ignore[arg-type]  # it has all that urlopen uses
    try:
        yield
    finally:
        urllib.request.install_opener(before)


@dataclass
class Fetched:
    """A body and its headers, as much of a response as img2dataset uses."""

    headers: Message
    body: bytes

    def read(self) -> bytes:
        return self.body

    def __enter__(self) -> "Fetched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is open any more."""


@dataclass(frozen=True)
class Request:
    """What a URL asks of whom."""

    tls: bool
    host: str
    """As the network knows it: without brackets, in ASCII."""
    port: int
    target: str
    """Path and query, with everything percent-encoded that a request line may not hold."""
    headers: dict[str, str]
    """Those that follow from the URL."""
    credentials: str | None = field(repr=False)
    """Those in the URL, as an `Authorization` header."""

    @property
    def server(self) -> str:
        """Host and port: what is up or down, and has places."""
        return f"{self.host}:{self.port}"


class GuardedOpener:
    """An opener for `urllib.request.install_opener`. Threads share it; it knows of hosts, of no fetch."""

    def __init__(self, settings: DownloadSettings, expected: Mapping[str, Hashes] | None = None) -> None:
        self._settings = settings
        self._expected = expected or {}
        self._allowed = frozenset(host.lower() for host in settings.allow_hosts)
        self._hosts = Hosts(settings.per_host, settings.host_failures)

    def open(self, url: urllib.request.Request | str, data: None = None, timeout: float | None = None) -> Fetched:
        """Fetch `url`, again where that may help. Raises Refusal; the settings' own `timeout` counts, not this one."""
        request = urllib.request.Request(url) if isinstance(url, str) else url
        for attempt in range(self._settings.retries + 1):
            try:
                fetched = self._follow(request)
                self._check(request.full_url, fetched.body)
                return fetched
            except FetchError as refusal:
                if attempt == self._settings.retries or not _worth_another(refusal.reason):
                    raise
                if refusal.wait is None:
                    time.sleep(BACKOFF * 2**attempt * random.uniform(0.5, 1.5))
                elif refusal.wait > self._settings.total_timeout:  # a shorter one is the host's pause by now
                    raise
        raise AssertionError("unreachable")

    def _check(self, url: str, body: bytes) -> None:
        """Raises Refusal where the body is not the one that the list expects."""
        for name, digits in self._expected.get(url, {}).items():
            if hashlib.new(name, body, usedforsecurity=False).hexdigest() != digits:
                raise FetchError(reasons.WRONG_HASH, name)

    def _follow(self, request: urllib.request.Request) -> Fetched:
        """One attempt: the request and the redirects after it, within the whole time of one fetch.

        Waiting for places is not part of that time, and takes at most as long again.
        """
        left = patience = self._settings.total_timeout
        url, headers = request.full_url, dict(request.header_items())
        for hop in range(MAX_REDIRECTS + 1):
            asking = parse(url)
            if hop == 0 and asking.credentials is not None:
                headers["Authorization"] = asking.credentials
            elif hop == 1:
                headers.pop("Authorization", None)  # is for the host that the list names, and for no other
            asked = time.monotonic()
            with self._hosts.place(asking.server, patience):
                begun = time.monotonic()
                answer = self._noted(asking, headers, begun + left)
            patience -= begun - asked
            left -= time.monotonic() - begun
            if isinstance(answer, Fetched):
                return answer
            url = urljoin(url, answer)
        raise FetchError(reasons.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS}")

    def _noted(self, asking: Request, headers: dict[str, str], deadline: float) -> Fetched | str:
        """As `_exchange`; what it says of the host is noted."""
        try:
            answer = self._exchange(asking, headers, deadline)
        except FetchError as refusal:
            self._hosts.failed(asking.server, refusal, self._settings.total_timeout)
            raise
        self._hosts.answered(asking.server)
        return answer

    def _exchange(self, asking: Request, headers: dict[str, str], deadline: float) -> Fetched | str:
        """One request and its answer: a body, or where it is said to be."""
        try:
            with closing(self._connect(asking, deadline)) as sock:
                timed = _TimedSocket(sock, self._settings.timeout, deadline)
                connection = http.client.HTTPConnection(asking.host, asking.port)
                connection.sock = timed  # offers what http.client uses of a socket
                connection.request("GET", asking.target, headers=headers | asking.headers)
                return self._answer(connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refusal(error) from error

    def _answer(self, response: http.client.HTTPResponse) -> Fetched | str:
        if response.status in _REDIRECTS:
            if not (location := response.headers.get("Location")):
                raise FetchError(reasons.BAD_REDIRECT, f"status {response.status}")
            return quote(location.strip(), safe=SAFE, encoding="iso-8859-1")  # as bytes, whatever they encode
        if not 200 <= response.status < 300:
            raise FetchError(reasons.http(response.status), wait=_retry_after(response))
        body = self._body(response)
        if not body:
            raise FetchError(reasons.EMPTY)
        return Fetched(response.headers, body)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        limit, promised = self._settings.max_bytes, response.length
        if promised is not None and promised > limit:
            raise FetchError(reasons.TOO_LARGE, f"{promised} bytes, more than {limit}")
        pieces, size = list[bytes](), 0
        while piece := response.read(promised or _CHUNK):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise FetchError(reasons.TOO_LARGE, f"more than {limit} bytes")
        if promised is not None and size < promised:
            raise FetchError(reasons.TRUNCATED, f"{size} of {promised} bytes came")
        return b"".join(pieces)

    def _connect(self, asking: Request, deadline: float) -> socket.socket:
        """A connection to the first address of the host that is allowed and answers."""
        refusal: OSError | None = None
        for family, address in self._addresses(asking.host, asking.port):
            seconds = _left(self._settings.timeout, deadline)
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(seconds)
                sock.connect(address)
                if asking.tls:
                    return _tls().wrap_socket(sock, server_hostname=asking.host)
                return sock
            except OSError as error:
                sock.close()
                refusal = error
        assert refusal is not None
        raise refusal

    def _addresses(self, host: str, port: int) -> list[tuple[int, Any]]:
        """The socket addresses of `host` that may be connected to, at least one."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise FetchError(reasons.NOT_RESOLVED, error.strerror or "") from error
        except UnicodeError:  # a label of more than 63 characters, say
            raise FetchError(reasons.BAD_URL, "host name") from None
        allowed: list[tuple[int, Any]] = [
            (family, address)
            for family, _, _, _, address in found
            if host.lower() in self._allowed or is_public(str(address[0]))
        ]
        if not allowed:
            raise FetchError(reasons.NOT_ALLOWED, "not a public one; `allow_hosts` opens hosts of an intranet")
        return allowed


@cache
def _tls() -> ssl.SSLContext:
    """Of the process: to read the certificates takes as long as to fetch and store four images."""
    return ssl.create_default_context()


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet, the IPv4 address within an IPv6 one looked at as well."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        within = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if within is not None:
            address = within
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class _TimedSocket:
    """A socket each of whose receives ends by the deadline of the whole fetch. The owner of `sock` closes it."""

    def __init__(self, sock: socket.socket, timeout: float, deadline: float) -> None:
        self._sock, self._timeout, self._deadline = sock, timeout, deadline

    def sendall(self, data: bytes) -> None:
        self._armed().sendall(data)

    def recv_into(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        return self._armed().recv_into(buffer)

    def _armed(self) -> socket.socket:
        """The socket with the time that is left. To set it is a system call, so it is set where it changes."""
        left = _left(self._timeout, self._deadline)
        if left != self._sock.gettimeout():
            self._sock.settimeout(left)
        return self._sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """http.client calls this while the body is still to be read."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: _TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        return self._sock.recv_into(buffer)


def _left(timeout: float, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError(reasons.TIMEOUT, "of the whole fetch")
    return min(timeout, left)


def _worth_another(reason: str) -> bool:
    """A name that does not resolve is left: it costs a look-up of seconds, and hardly ever comes back at once."""
    left = (reasons.NOT_RESOLVED, reasons.HOST_DOWN, reasons.HOST_BUSY, reasons.NOT_ALLOWED)
    return reason == reasons.TRUNCATED or (reasons.is_transient(reason) and reason not in left)


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """The seconds after which a server that has too much to do may be asked again; None where it does not say."""
    text = (response.headers.get("Retry-After") or "").strip()
    if response.status not in (429, 503) or not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _refusal(error: Exception) -> FetchError:
    """The reason for an error of the network. Its detail never quotes the URL, which may hold secrets."""
    if isinstance(error, TimeoutError):
        return FetchError(reasons.TIMEOUT)
    if isinstance(error, ssl.SSLError):
        return FetchError(reasons.TLS, error.reason or "")
    if isinstance(error, ConnectionRefusedError):
        return FetchError(reasons.REFUSED)
    if isinstance(error, http.client.IncompleteRead):
        return FetchError(reasons.TRUNCATED, "the body ended early")
    if isinstance(error, ConnectionError):
        return FetchError(reasons.LOST)
    if isinstance(error, OSError):
        return FetchError(reasons.UNREACHABLE, error.strerror or type(error).__name__)
    return FetchError(reasons.BAD_RESPONSE, type(error).__name__)


SAFE = "/%:=&?~#+!$,;'@()*[]|"
"""What stays as it is in a path, a query or a redirect's target."""


def parse(url: str) -> Request:
    """Raises Refusal where the URL is none, or not one of http or https."""
    try:
        parts = urlsplit(url)
        port, hostname = parts.port, parts.hostname
    except ValueError:
        raise FetchError(reasons.BAD_URL) from None
    if parts.scheme not in ("http", "https"):
        raise FetchError(reasons.BAD_SCHEME, parts.scheme[:20])
    if not hostname:
        raise FetchError(reasons.BAD_URL, "no host")
    host, tls = _ascii(hostname), parts.scheme == "https"
    named = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return Request(
        tls=tls,
        host=host,
        port=port or (443 if tls else 80),
        target=quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else ""),
        headers={"Host": named, "Connection": "close"},
        credentials=None if parts.username is None else _basic(parts),
    )


def _ascii(name: str) -> str:
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        raise FetchError(reasons.BAD_URL, "host name") from None


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
