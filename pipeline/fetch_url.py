"""A URL of a list as a request: its parts, checked once, and what of it goes over the wire."""

import base64
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit

from lotlip_data.pipeline import fetch_reasons as reasons
from lotlip_data.pipeline.fetch_reasons import Refusal

SAFE = "/%:=&?~#+!$,;'@()*[]|"
"""What stays as it is in a path, a query or a redirect's target."""


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


def parse(url: str) -> Request:
    """Raises Refusal where the URL is none, or not one of http or https."""
    try:
        parts = urlsplit(url)
        port, hostname = parts.port, parts.hostname
    except ValueError:
        raise Refusal(reasons.BAD_URL) from None
    if parts.scheme not in ("http", "https"):
        raise Refusal(reasons.BAD_SCHEME, parts.scheme[:20])
    if not hostname:
        raise Refusal(reasons.BAD_URL, "no host")
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
        raise Refusal(reasons.BAD_URL, "host name") from None


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def listed_host(url: str) -> str:
    """The host of a URL for a table of failures, with a port that is not the usual one; "" where there is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return ""
