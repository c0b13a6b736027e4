"""The manifest's `download` section: how images are downloaded and stored."""

import ipaddress
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from lotlip_data.manifests.settings.base import Settings
from lotlip_data.manifests.sources.hosts import ascii_host

_PER_HOST = 8


def _check_host(text: str) -> str:
    """Accept a host only as the host of a URL is compared with it. Raises ValueError with the spelling to use."""
    bare = text.strip().strip("[]")
    try:
        host: str | None = str(ipaddress.ip_address(bare))  # first, because an IPv6 address contains colons
    except ValueError:
        host = _host_of(text.strip())
    if host is None:
        raise ValueError(f"{text!r} is not a host; write the name or the address of each host, such as 'images.intra'")
    if host.lower() != text.lower():
        raise ValueError(f"{text!r} is more than a host, or another spelling of one; write {host!r}")
    return text


def _host_of(text: str) -> str | None:
    """The host in a URL with or without its scheme, in ASCII as in a request; None if there is no host."""
    if re.fullmatch(r"[\da-fA-F.:]+/\d+", text):
        return None  # a network
    try:
        host = ascii_host((urlsplit(text if "://" in text else f"//{text}").hostname or "").rstrip("."))
    except ValueError:
        return None
    return host if re.fullmatch(r"[\w.:%-]+", host) else None


def _check_user_agent(text: str) -> str:
    """Accept what an HTTP header can hold. Raises ValueError otherwise."""
    if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", text):
        raise ValueError("a User-Agent header has printable ASCII characters only, and no blank at either end")
    return text


class DownloadSettings(Settings):
    """The stored form of downloaded images, and the limits and retries of downloads."""

    image_size: Annotated[int, Field(ge=16)] = 512
    """Maximum length of the shorter side of a stored image, in pixels. The aspect ratio stays; no image is enlarged."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of stored images."""
    full_decode: bool = False
    """Whether JPEGs whose sides shrink by two or more are decoded in full, as img2dataset does. By default libjpeg
    reduces them while it decodes, which halves the time; the stored image of a photograph has a PSNR of at least 37 dB
    to that of the full decode. Pictures with too much fine detail for this are decoded in full in any case."""
    threads: Annotated[int, Field(ge=1)] = 64
    """Number of concurrent downloads per shard."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    """Time limit of one socket operation in seconds."""
    total_timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Time limit of one download in seconds, including redirects and the body."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Number of further attempts after a transient failure. The pause before each grows, or is the one that the server
    asks for."""
    per_host: Annotated[int, Field(ge=1)] = _PER_HOST
    """Number of concurrent downloads from one host per shard at the start. It grows while the host answers. It shrinks,
    at most to one, when the host refuses requests (429, 503), leaves them unanswered or closes connections."""
    max_per_host: Annotated[int, Field(ge=1)] = 64
    """Largest number of concurrent downloads from one host per shard. In a manifest that sets `per_host` alone, to
    another number than its default, that number is the largest too."""
    host_failures: Annotated[int, Field(ge=1)] = 16
    """Number of consecutive failures of a host after which its other images in the shard are skipped."""
    shard_tries: Annotated[int, Field(ge=1)] = 3
    """Number of `download` runs that try a shard before it is complete without any image."""
    max_bytes: Annotated[int, Field(ge=1)] = 50_000_000
    """Largest size of a downloaded file in bytes."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Largest number of pixels of a downloaded image."""
    max_decoded_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    """Memory that the decoding of one image may take, in bytes. A worker decodes one image at a time."""
    allow_hosts: tuple[Annotated[str, AfterValidator(_check_host)], ...] = ()
    """Hosts, on any port, that are allowed although their address is private or loopback, for intranets and tests."""
    user_agent: Annotated[str, AfterValidator(_check_user_agent)] | None = "lotlip-data"
    """The User-Agent header. A text with a slash or a blank, such as `MyCrawler/1.0 (+https://example.org/bot)`, is the
    whole header. A single word is the client's name within a header like that of a browser. null: that of a browser,
    without a name."""
    respect_robots_tag: bool = True
    """Reject images whose X-Robots-Tag headers forbid their use: noai, noimageai, noml, noindex, noimageindex, none, or
    a date in the past after `unavailable_after`."""

    @model_validator(mode="before")
    @classmethod
    def _keep_limit(cls, settings: Any) -> Any:
        """In a manifest of before `max_per_host`, `per_host` is the largest number.

        Its default says nothing: the manifests in runs have all defaults.
        """
        if not isinstance(settings, dict) or "max_per_host" in settings:
            return settings
        per_host = settings.get("per_host", _PER_HOST)
        return settings if per_host == _PER_HOST else settings | {"max_per_host": per_host}
