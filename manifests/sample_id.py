"""What a sample is called: by its URL, never by its position in a list.

`uid` stays the same however a list was cut, filtered or joined with others; `key` (shard and row) does not.
"""

import hashlib
import re
from urllib.parse import urlsplit, urlunsplit

UID_LENGTH = 32
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# Nine of ten URLs of a list are normal already, and seeing that takes a tenth of the time of taking them apart: ASCII
# without blanks or a fragment, scheme and host in lower case, no port, a path, and no question mark before nothing.
_NORMAL = re.compile(r"https?://[a-z0-9._-]+/[!\"$->@-~]*(?:\?[!\"$-~]+)?")


def normalise_url(url: str) -> str:
    """`url` without surrounding blanks and fragment, its scheme and host in lower case, without a default port.

    The path and the query stay as they are: servers may tell `%7E` from `~`, or `A` from `a`.
    Raises ValueError where it is no http or https URL with a host.
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
