"""The identity of a sample, which depends on its URL and not on its position in a list.

The `uid` does not change when lists are filtered, merged or sharded differently; the `key` (shard and row) does.
"""

import hashlib
import re
from urllib.parse import urlsplit, urlunsplit

UID_LENGTH = 32
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# Nine of ten URLs of a list are normalised already, and this check takes a tenth of the time of parsing: ASCII without
# blanks or a fragment, scheme and host in lower case, no port, a path, and no empty query.
_NORMAL = re.compile(r"https?://[a-z0-9._-]+/[!\"$->@-~]*(?:\?[!\"$-~]+)?")


def normalise_url(url: str) -> str:
    """Normalise a URL: no surrounding blanks, no fragment, scheme and host in lower case, no default port.

    Path and query do not change, because a server can distinguish `%7E` from `~`, or `A` from `a`.

    Raises:
        ValueError: If it is not an http or https URL with a host.
    """
    if _NORMAL.fullmatch(url):
        return url
    parts = urlsplit(url.partition("#")[0].strip())
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("not an http or https URL")
    userinfo, at, host = parts.netloc.rpartition("@")
    host = host.lower().removesuffix(":" + _DEFAULT_PORTS[scheme]).removesuffix(":")
    if not host or host.startswith(":"):
        raise ValueError("the URL names no host")
    return urlunsplit((scheme, userinfo + at + host, parts.path or "/", parts.query, ""))


def uid_from_url(url: str) -> str:
    """The first 32 hexadecimal digits of the sha256 of the normalised URL. Raises ValueError as `normalise_url`."""
    return hashlib.sha256(normalise_url(url).encode("utf-8", "surrogatepass")).hexdigest()[:UID_LENGTH]
