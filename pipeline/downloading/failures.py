"""Download failures: a closed vocabulary of reasons, and counts by reason and by host in bounded memory.

Each shard counts its own failures when it is committed (`count_failures`). `Failures` adds these counts up.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lotlip_data.manifests import wording

if TYPE_CHECKING:
    import pyarrow as pa

HTTP = "http"
"""The prefix of an HTTP status, as in `http 404`."""

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
NOT_SUPPORTED = "format not supported"
TOO_MANY_PIXELS = "too many pixels"
TOO_LONG = "side too long"
TOO_MUCH_MEMORY = "too much memory"
UNDECODABLE = "cannot be decoded"
WRONG_HASH = "hash mismatch"
REPEATED = "same image twice"
NO_IMAGE = "no image"
UNUSABLE_ROW = "unusable row"
UNUSABLE_CONTAINER = "unusable container"
HOST_DOWN = "host is down"
HOST_BUSY = "host is busy"
OTHER = "other"

VOCABULARY = frozenset(
    {
        *(TIMEOUT, REFUSED, LOST, UNREACHABLE, NOT_RESOLVED, TLS, NOT_ALLOWED, BAD_SCHEME, BAD_URL, BAD_RESPONSE),
        *(BAD_REDIRECT, TOO_MANY_REDIRECTS, TOO_LARGE, EMPTY, ROBOTS, TRUNCATED, NOT_AN_IMAGE, TOO_MANY_PIXELS),
        *(NOT_SUPPORTED, TOO_LONG, TOO_MUCH_MEMORY, UNDECODABLE, WRONG_HASH, HOST_DOWN, HOST_BUSY, OTHER),
        *(
            REPEATED,
            NO_IMAGE,
            UNUSABLE_ROW,
            UNUSABLE_CONTAINER,
            "several images",
            "duplicate key",
            "not a plain file",
            "no such file",
        ),
        *("a link out of the folder", "unsafe name", "text too long", "text not in UTF-8", "no key", "no file name"),
        *("not readable", "a column stands twice", "not a JSON object"),
    }
)
"""All reasons except `http NNN`. The last ones are those of containers (`existing_images.rows`)."""

_HOST_FAILURES = frozenset({TIMEOUT, REFUSED, LOST, UNREACHABLE, NOT_RESOLVED, "http 429", "http 503"})
_TRANSIENT = frozenset({TIMEOUT, REFUSED, LOST, UNREACHABLE, NOT_RESOLVED, HOST_DOWN, HOST_BUSY, NOT_ALLOWED})
_TRANSIENT_STATUS = frozenset({408, 425, 429})
_STATUS = re.compile(r"http (\d{3})")


class FetchError(Exception):
    """An image that cannot be downloaded. Its text is `reason: detail`, which `split_message` reads back.

    Args:
        reason: A member of `VOCABULARY`, or `http NNN`.
        detail: Free text for people. It never quotes the URL, which may hold secrets.
        retry_after: Seconds that the server asks clients to wait before they try again.

    Attributes:
        is_hopeless: Whether another attempt at once cannot help, whatever the reason.
        is_free: Whether another attempt does not count as one: the client itself has asked the host for too much.
    """

    is_hopeless = False
    is_free = False

    def __init__(self, reason: str, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.retry_after = reason, retry_after


def http_reason(status: int) -> str:
    """The reason for an HTTP status."""
    return f"{HTTP} {status}"


def is_transient(reason: str) -> bool:
    """Whether a later attempt can succeed, by itself or after a change of the settings."""
    if status := _STATUS.fullmatch(reason):
        return int(status[1]) >= 500 or int(status[1]) in _TRANSIENT_STATUS
    return reason in _TRANSIENT


def retry_condition(failures: Iterable[str]) -> str:
    """What must hold before a retry makes sense. At least one of `failures` must be transient."""
    transient = {reason for reason in failures if is_transient(reason)}
    servers = ["the servers are reachable"] if transient - {NOT_ALLOWED} else []
    hosts = ["`download.allow_hosts` in the manifest lists their private hosts"] if NOT_ALLOWED in transient else []
    return " and ".join(servers + hosts)


def is_host_failure(reason: str) -> bool:
    """Whether a failure concerns the host rather than the image, so that its other images will probably fail too."""
    return reason in _HOST_FAILURES


def split_message(message: str) -> tuple[str, str]:
    """Split an error message of a downloaded shard into (reason of the vocabulary, detail)."""
    reason, _, detail = message.partition(": ")
    if reason in VOCABULARY or _STATUS.fullmatch(reason):
        return reason, detail
    if "decod" in message.lower():
        return UNDECODABLE, message
    return OTHER, message


MAX_HOSTS_PER_SHARD = 100
MAX_HOSTS_SHOWN = 20
_MAX_HOSTS_KEPT = 1_000


def count_failures(table: "pa.Table") -> dict[str, Any]:
    """Count the failures of one shard, for its marker.

    Args:
        table: The rows of the shard, with the columns `schema.IMAGES`.

    Returns:
        `status_dict`: rows per reason, `success` included. `failed_hosts`: failures per host and reason, for the
        `MAX_HOSTS_PER_SHARD` hosts with the most failures.
    """
    import pyarrow.compute as pc  # here, because the process that converts images does without pyarrow

    from lotlip_data.manifests.formats.schema import SUCCESS

    failed = table.filter(pc.not_equal(table["status"], SUCCESS))
    messages = Counter(zip(failed["url"].to_pylist(), failed["error_message"].to_pylist(), strict=True))
    return count_rows(table.num_rows - failed.num_rows, messages)


def count_rows(images: int, failed: Mapping[tuple[str | None, str], int]) -> dict[str, Any]:
    """As `count_failures`.

    Args:
        images: The number of rows with an image.
        failed: The number of other rows by URL, or None, and error message.
    """
    from lotlip_data.manifests.formats.schema import SUCCESS  # imports pyarrow

    reasons: Counter[str] = Counter()
    hosts: dict[str, Counter[str]] = {}
    for (url, message), rows in failed.items():
        reason, _ = split_message(message)
        reasons[reason] += rows
        if url is not None:
            hosts.setdefault(listed_host(url), Counter())[reason] += rows
    worst = sorted(hosts, key=lambda host: (-hosts[host].total(), host))[:MAX_HOSTS_PER_SHARD]
    return {
        "status_dict": {SUCCESS: images} | dict(reasons.most_common()),
        "failed_hosts": {host: dict(hosts[host].most_common()) for host in worst},
    }


@dataclass
class Failures:
    """Failures of many shards. The count of a host is a lower bound, since only the worst hosts are kept."""

    reasons: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, marker: Mapping[str, Any], retried: Collection[str] = ()) -> None:
        """Add the failures of one shard, without the reasons in `retried`: another shard retries those rows."""
        from lotlip_data.manifests.formats.schema import SUCCESS  # imports pyarrow

        self.reasons.update(_without(marker["status_dict"], {*retried, SUCCESS}))
        for host, counts in marker.get("failed_hosts", {}).items():
            if remaining := _without(counts, retried):
                self.hosts.setdefault(host, Counter()).update(remaining)
        if len(self.hosts) > 2 * _MAX_HOSTS_KEPT:
            self.hosts = {host: self.hosts[host] for host in self._worst_hosts(_MAX_HOSTS_KEPT)}

    def _worst_hosts(self, count: int) -> list[str]:
        return sorted(self.hosts, key=lambda host: (-self.hosts[host].total(), host))[:count]

    def to_dict(self) -> dict[str, Any]:
        """`reasons`: count per reason, most frequent first. `hosts`: the worst hosts, with counts per reason."""
        return {
            "reasons": _ranked(self.reasons),
            "hosts": {host: _ranked(self.hosts[host]) for host in self._worst_hosts(MAX_HOSTS_SHOWN)},
        }


def format_text(figures: Mapping[str, Any]) -> list[str]:
    """Format `Failures.to_dict()` as lines of text. Returns no line if nothing failed."""
    if not figures["reasons"]:
        return []
    what = "failed to download" if figures["hosts"] else "cannot be used"
    lines = [f"{wording.count(sum(figures['reasons'].values()), 'image')} {what}:"]
    for reason, count in figures["reasons"].items():
        lines.append(f"  {count:>11,}  {reason}{_hint(reason)}")
    if figures["hosts"]:
        lines.append("hosts with the most failures:")
    for host, counts in list(figures["hosts"].items())[:10]:
        details = ", ".join(f"{count:,} × {reason}" for reason, count in counts.items())
        lines.append(f"  {sum(counts.values()):>11,}  {host or 'URLs without a host'} ({details})")
    return lines


def _hint(reason: str) -> str:
    if reason == NOT_ALLOWED:
        return " (private address; if the host is yours, add it to `download.allow_hosts` and use --retry-failed)"
    return " (transient: use --retry-failed)" if is_transient(reason) else ""


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """The largest count first; equal counts by name, so that two calls say the same."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _without(counts: Mapping[str, int], excluded: Collection[str]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if reason not in excluded}


def listed_host(url: str) -> str:
    """The host of a URL, with its port if the URL names one; an empty string if the URL has no host."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return ""
