"""A URL of a list as a request: its parts, checked, and what of it goes over the wire."""

import base64
from urllib.parse import SplitResult, quote, unquote, urlsplit

from lotlip_data.pipeline import fetch_reasons as reasons
from lotlip_data.pipeline.fetch_reasons import Refusal

SAFE = "/%:=&?~#+!$,;'@()*[]|"
"""What stays as it is in a path, a query or a redirect's target."""


def split(url: str) -> SplitResult:
    """The parts of a URL. Raises Refusal where it is none, or not one of http or https."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise Refusal(reasons.BAD_URL) from None
    if parts.scheme not in ("http", "https"):
        raise Refusal(reasons.BAD_SCHEME, parts.scheme[:20])
    if not parts.hostname:
        raise Refusal(reasons.BAD_URL, "no host")
    return parts


def host(parts: SplitResult) -> str:
    """The host's name as the network knows it: without brackets, in ASCII."""
    name = parts.hostname or ""
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        raise Refusal(reasons.BAD_URL, "host name") from None


def port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def server(parts: SplitResult) -> str:
    """Host and port: what is up or down, and has places."""
    return f"{host(parts)}:{port(parts)}"


def listed_host(url: str) -> str:
    """The host of a URL for a table of failures, with a port that is not the usual one; "" where there is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return ""


def own_headers(parts: SplitResult) -> dict[str, str]:
    name = f"[{host(parts)}]" if ":" in host(parts) else host(parts)
    return {"Host": name + (f":{parts.port}" if parts.port else ""), "Connection": "close"}


def target(parts: SplitResult) -> str:
    """Path and query, with everything percent-encoded that a request line may not hold."""
    return quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")


def basic(parts: SplitResult) -> str:
    """The credentials in a URL as a header."""
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
