"""The recaption stage: every fetched image gets one caption, or one reason, from every chosen captioner."""

import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger
from lotlip_data.pipeline.caption_commit import UnitResult, complete
from lotlip_data.pipeline.choice import Chosen
from lotlip_data.pipeline.cluster import cluster
from lotlip_data.pipeline.ledger import fetched_shards, work_of


class RecaptionError(UserError):
    """The stage cannot start; the message says where, why and what to do."""


@dataclass
class RecaptionSummary:
    """What one call did, by captioner: shards that were `skipped` as committed, and `units` done now."""

    skipped: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    """Units that were given up, each with its reason."""

    @property
    def nothing_to_do(self) -> bool:
        return not self.units and not self.failed

    def figures(self) -> dict[str, Any]:
        """By captioner, for scripts."""
        return {
            name: {
                "shards_skipped": self.skipped[name],
                "shards_done": self.units[name],
                "captioned": self.captions[name],
                "rejected": self.rejected[name],
            }
            for name in self.skipped
        }


def recaption(run: Run, chosen: Sequence[Chosen], say: Callable[[str], None] = print) -> RecaptionSummary:
    """Run each captioner over the fetched shards that lack its captions.

    Raises RecaptionError where nothing is fetched, or where a captioner's folder holds captions made with other
    settings.
    """
    if not fetched_shards(run):
        raise RecaptionError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    summary = RecaptionSummary()
    left: dict[str, deque[int]] = {}
    for name, captioner in ((one.config.name, one.config) for one in chosen):
        claim(run, captioner)
        work = work_of(run, name)
        complete(run, name, work.done)
        summary.skipped[name] = len(work.done)
        left[name] = deque(work.left)
    busy = [one for one in chosen if left[one.config.name]]
    if busy:
        with cluster():
            _work_off(run, busy, left, say, summary)
    return summary


def _work_off(
    run: Run,
    busy: Sequence[Chosen],
    left: dict[str, deque[int]],
    say: Callable[[str], None],
    summary: RecaptionSummary,
) -> None:
    from lotlip_data.pipeline.pools import FailedUnit, Pool, work_off

    total = {name: len(units) for name, units in left.items()}

    def done(name: str, result: UnitResult) -> None:
        summary.units[name] += 1
        summary.captions[name] += result.captioned
        summary.rejected[name] += result.rejected
        lost = "" if result.won else ", another driver had committed it"
        say(f"{name}: shard {result.shard} of {result.rows} images ({summary.units[name]} of {total[name]}){lost}")

    def failed(unit: FailedUnit) -> None:
        what = unit.captioner if unit.shard is None else f"{unit.captioner}: shard {unit.shard} given up"
        summary.failed.append(f"{what}: {unit.reason}")
        say(summary.failed[-1])

    pools = [Pool(run, one.config, one.pool, left[one.config.name], say) for one in busy]
    work_off(pools, done, failed, say)


def claim(run: Run, captioner: CaptionerConfig) -> None:
    """Settle what the captioner's folder holds, once: captions of different settings never mix.

    Raises RecaptionError, naming the settings that differ, where it was settled otherwise.
    """
    path = run.captioner_settings(captioner.name)
    settings = captioner.to_dict()
    content = json.dumps({"id": captioner.id, **settings}, indent=1).encode()
    if not storage.exists(path) and storage.create(path, content):
        return  # looked at first: with nothing to do, nothing has to be writable
    held = ledger.captioner_settings(run, captioner.name)
    if held["id"] != captioner.id:
        changed = sorted(name for name, value in settings.items() if held.get(name) != value)
        raise RecaptionError(
            f"{run.captioner(captioner.name)} holds captions of {held['id']}, but the settings now make "
            f"{captioner.id} (changed: {', '.join(changed)}). Give the captioner another name, or use the settings "
            f"in {path}."
        )
