"""Why an image could not be had: a closed vocabulary, with free text beside it."""

import re
from collections.abc import Iterable

HTTP = "http"
"""Stands before the status: `http 404`."""

TIMEOUT = "timeout"
REFUSED = "connection refused"
LOST = "connection lost"
UNREACHABLE = "host unreachable"
NOT_RESOLVED = "name not resolved"
TLS = "tls error"
NOT_ALLOWED = "address not allowed"
BAD_SCHEME = "scheme not allowed"
BAD_URL = "malformed url"
BAD_RESPONSE = "malformed response"
BAD_REDIRECT = "redirect without a target"
TOO_MANY_REDIRECTS = "too many redirects"
TOO_LARGE = "too large"
EMPTY = "empty body"
ROBOTS = "refused by x-robots-tag"
TRUNCATED = "truncated"
NOT_AN_IMAGE = "not an image"
TOO_MANY_PIXELS = "too many pixels"
UNDECODABLE = "cannot be decoded"
WRONG_HASH = "hash mismatch"
HOST_DOWN = "host is down"
HOST_BUSY = "host is busy"
OTHER = "other"

VOCABULARY = frozenset(
    {
        *(TIMEOUT, REFUSED, LOST, UNREACHABLE, NOT_RESOLVED, TLS, NOT_ALLOWED, BAD_SCHEME, BAD_URL, BAD_RESPONSE),
        *(BAD_REDIRECT, TOO_MANY_REDIRECTS, TOO_LARGE, EMPTY, ROBOTS, TRUNCATED, NOT_AN_IMAGE, TOO_MANY_PIXELS),
        *(UNDECODABLE, WRONG_HASH, HOST_DOWN, HOST_BUSY, OTHER),
    }
)
"""All reasons but `http NNN`."""

_OF_THE_HOST = frozenset({TIMEOUT, REFUSED, LOST, UNREACHABLE, NOT_RESOLVED, "http 429", "http 503"})
_CAN_PASS = frozenset({TIMEOUT, REFUSED, LOST, UNREACHABLE, NOT_RESOLVED, HOST_DOWN, HOST_BUSY, NOT_ALLOWED})
_PASSING_STATUS = frozenset({408, 425, 429})
_STATUS = re.compile(r"http (\d{3})")
_ROBOTS_MESSAGE = "Use of image disallowed by X-Robots-Tag directive"  # img2dataset's


class Refusal(Exception):
    """An image that cannot be had; its text is `reason: detail`, the form that `split` reads.

    `wait`: the seconds after which the server says that it may be asked again.
    """

    def __init__(self, reason: str, detail: str = "", wait: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.wait = reason, wait


def http(status: int) -> str:
    return f"{HTTP} {status}"


def can_pass(reason: str) -> bool:
    """Whether another attempt at another time may well succeed: of itself, or once the settings are mended."""
    if status := _STATUS.fullmatch(reason):
        return int(status[1]) >= 500 or int(status[1]) in _PASSING_STATUS
    return reason in _CAN_PASS


def until(failures: Iterable[str]) -> str:
    """What has to be before another attempt at what failed for these reasons is worth it; some of them can pass."""
    passing = {reason for reason in failures if can_pass(reason)}
    servers = ["the servers can be reached"] if passing - {NOT_ALLOWED} else []
    hosts = ["`download.allow_hosts` in the manifest names their private hosts"] if NOT_ALLOWED in passing else []
    return " and ".join(servers + hosts)


def of_the_host(reason: str) -> bool:
    """Whether a failure says more of the host than of the image: others there will most likely fail, too."""
    return reason in _OF_THE_HOST


def split(message: str) -> tuple[str, str]:
    """An error message of a fetched shard as (reason of the vocabulary, detail)."""
    if message == _ROBOTS_MESSAGE:
        return ROBOTS, ""
    reason, _, detail = message.partition(": ")
    if reason in VOCABULARY or _STATUS.fullmatch(reason):
        return reason, detail
    if "decod" in message.lower():
        return UNDECODABLE, message
    return OTHER, message
