"""Takes a URL apart as browsers do: whom to connect to, and what to send."""

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit

from lotlip_data.manifests.sources.hosts import ascii_host
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError

SAFE_CHARACTERS = "/%:=&?~#+!$,;'@()*[]|"
"""Characters that are not percent-encoded in a path, a query or the target of a redirect."""

_BEFORE_QUERY = re.compile(r"[^?#]*")


@dataclass(frozen=True)
class Request:
    """A checked URL: whom to connect to, and what to send."""

    url: str = field(repr=False)
    """The URL with its host in ASCII and without user, password and fragment."""
    tls: bool
    host: str
    """In ASCII, without the brackets of an IPv6 address."""
    port: int
    target: str
    """Path and query, percent-encoded for the request line."""
    credentials: str | None = field(repr=False)
    """The user and password of the URL, as an `Authorization` header."""

    @property
    def server(self) -> str:
        """Host and port: the unit of the host limits."""
        return f"{self.host}:{self.port}"

    @property
    def host_header(self) -> str:
        """The value of the `Host` header."""
        return self.url.split("/", 3)[2]


def parse_url(url: str) -> Request:
    """Check a URL and take it apart.

    Raises:
        FetchError: The URL is malformed, or its scheme is not http or https.
    """
    try:
        parts = urlsplit(slashes(url))
        port, hostname = parts.port, _hostname(parts)
    except ValueError:
        raise FetchError(failures.BAD_URL) from None
    if parts.scheme not in ("http", "https"):
        raise FetchError(failures.BAD_SCHEME, parts.scheme[:20])
    if not hostname:
        raise FetchError(failures.BAD_URL, "no host")
    try:
        host, tls = ascii_host(hostname), parts.scheme == "https"
    except ValueError:
        raise FetchError(failures.BAD_URL, "host name") from None
    target = quote(parts.path or "/", safe=SAFE_CHARACTERS)
    target += f"?{quote(parts.query, safe=SAFE_CHARACTERS)}" if parts.query else ""
    server = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return Request(
        url=f"{parts.scheme}://{server}{target}",
        tls=tls,
        host=host,
        port=port or (443 if tls else 80),
        target=target,
        credentials=None if parts.username is None else _basic(parts),
    )


def slashes(url: str) -> str:
    r"""The URL with `/` in place of every `\` before its query, as browsers read it."""
    return _BEFORE_QUERY.sub(lambda match: match[0].replace("\\", "/"), url, count=1)


def _hostname(parts: SplitResult) -> str:
    """The host as it is written: `SplitResult.hostname` changes letters that UTS 46 maps in another way."""
    server = parts.netloc.rpartition("@")[2]
    if server.startswith("["):
        return server[1:].partition("]")[0]
    return server.partition(":")[0]


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode()
