"""Why an image could not be had: a closed vocabulary, with free text beside it.

Which images could not be fetched, by reason and by host, in bounded memory whatever the web is like.

A shard counts its own failures when it is committed; here these counts are added up.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.schema import SUCCESS

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


class FetchError(Exception):
    """An image that cannot be had; its text is `reason: detail`, the form that `split` reads.

    `wait`: the seconds after which the server says that it may be asked again.
    """

    def __init__(self, reason: str, detail: str = "", wait: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.wait = reason, wait


def http(status: int) -> str:
    return f"{HTTP} {status}"


def is_transient(reason: str) -> bool:
    """Whether another attempt at another time may well succeed: of itself, or once the settings are mended."""
    if status := _STATUS.fullmatch(reason):
        return int(status[1]) >= 500 or int(status[1]) in _PASSING_STATUS
    return reason in _CAN_PASS


def retry_condition(failures: Iterable[str]) -> str:
    """What has to be before another attempt at what failed for these reasons is worth it; some of them can pass."""
    passing = {reason for reason in failures if is_transient(reason)}
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


HOSTS_OF_A_SHARD = 100
HOSTS_SHOWN = 20
_HOSTS_KEPT = 1_000


def of_shard(table: pa.Table) -> dict[str, Any]:
    """What a shard's marker says of its rows (columns `schema.IMAGES`).

    `status_dict`: rows by reason, `success` among them. `failed_hosts`: failures by host and reason, of those hosts
    that fail most.
    """
    failed = table.filter(pc.not_equal(table["status"], SUCCESS))
    why = [split(message)[0] for message in failed["error_message"].to_pylist()]
    hosts: dict[str, Counter[str]] = {}
    for url, reason in zip(failed["url"].to_pylist(), why, strict=True):
        hosts.setdefault(listed_host(url), Counter())[reason] += 1
    most = sorted(hosts, key=lambda host: (-hosts[host].total(), host))[:HOSTS_OF_A_SHARD]
    return {
        "status_dict": {SUCCESS: table.num_rows - len(why)} | dict(Counter(why).most_common()),
        "failed_hosts": {host: dict(hosts[host].most_common()) for host in most},
    }


@dataclass
class Failures:
    """Failures of many shards. Those of a host are at least as many as are counted here."""

    reasons: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, marker: Mapping[str, Any], retried: Collection[str] = ()) -> None:
        """The failures of a shard, but for those that belong to another shard, since they are `retried` there."""
        self.reasons.update(_left(marker["status_dict"], {*retried, SUCCESS}))
        for host, counts in marker.get("failed_hosts", {}).items():
            if left := _left(counts, retried):
                self.hosts.setdefault(host, Counter()).update(left)
        if len(self.hosts) > 2 * _HOSTS_KEPT:
            self.hosts = {host: self.hosts[host] for host in self._most(_HOSTS_KEPT)}

    def _most(self, count: int) -> list[str]:
        return sorted(self.hosts, key=lambda host: (-self.hosts[host].total(), host))[:count]

    def to_dict(self) -> dict[str, Any]:
        """`reasons`, the most frequent first; `hosts`: the HOSTS_SHOWN that fail most, each with its reasons."""
        return {
            "reasons": dict(self.reasons.most_common()),
            "hosts": {host: dict(self.hosts[host].most_common()) for host in self._most(HOSTS_SHOWN)},
        }


def format_text(figures: Mapping[str, Any]) -> list[str]:
    """`Failures.figures` for people; nothing where nothing failed."""
    if not figures["reasons"]:
        return []
    lines = [f"{sum(figures['reasons'].values()):,} images could not be fetched:"]
    for reason, count in figures["reasons"].items():
        lines.append(f"  {count:>11,}  {reason}{_hint(reason)}")
    lines.append("by host, those that fail most:")
    for host, counts in list(figures["hosts"].items())[:10]:
        why = ", ".join(f"{count:,} × {reason}" for reason, count in counts.items())
        lines.append(f"  {sum(counts.values()):>11,}  {host or 'URLs without a host'} ({why})")
    return lines


def _hint(reason: str) -> str:
    if reason == NOT_ALLOWED:
        return " (private; where the host is yours, name it in `download.allow_hosts`, then --retry-failed)"
    return " (may pass: --retry-failed)" if is_transient(reason) else ""


def _left(counts: Mapping[str, int], without: Collection[str]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if reason not in without}


def listed_host(url: str) -> str:
    """The host of a URL for a table of failures, with a port that is not the usual one; "" where there is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return ""
