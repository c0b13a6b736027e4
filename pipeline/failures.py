"""Which images could not be fetched, by reason and by host, in bounded memory whatever the web is like.

A shard counts its own failures when it is committed; here these counts are added up.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.schema import SUCCESS
from lotlip_data.pipeline import fetch_reasons as reasons
from lotlip_data.pipeline.fetch_url import listed_host

HOSTS_OF_A_SHARD = 100
HOSTS_SHOWN = 20
_HOSTS_KEPT = 1_000


def of_shard(table: pa.Table) -> dict[str, Any]:
    """What a shard's marker says of its rows (columns `schema.IMAGES`).

    `status_dict`: rows by reason, `success` among them. `failed_hosts`: failures by host and reason, of those hosts
    that fail most.
    """
    failed = table.filter(pc.not_equal(table["status"], SUCCESS))
    why = [reasons.split(message)[0] for message in failed["error_message"].to_pylist()]
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

    def figures(self) -> dict[str, Any]:
        """`reasons`, the most frequent first; `hosts`: the HOSTS_SHOWN that fail most, each with its reasons."""
        return {
            "reasons": dict(self.reasons.most_common()),
            "hosts": {host: dict(self.hosts[host].most_common()) for host in self._most(HOSTS_SHOWN)},
        }


def as_lines(figures: Mapping[str, Any]) -> list[str]:
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
    if reason == reasons.NOT_ALLOWED:
        return " (private; where the host is yours, name it in `download.allow_hosts`, then --retry-failed)"
    return " (may pass: --retry-failed)" if reasons.can_pass(reason) else ""


def _left(counts: Mapping[str, int], without: Collection[str]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if reason not in without}
