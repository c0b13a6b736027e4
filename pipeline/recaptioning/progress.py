"""Progress bars of the recaption stage, one per captioner: images, or captions if it makes several texts for each.

Saved captions of unfinished shards count.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import reduce

from lotlip_data.manifests import wording
from lotlip_data.manifests.progress import Progress, bars_visible, progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord

REFRESH_SECONDS = 5.0
"""Interval at which the saved parts of unfinished shards are counted: one listing per captioner."""
REFRESH_SECONDS_WITHOUT_BARS = 60.0
"""The same where only lines are printed."""


class CaptionProgress:
    """Shows one bar per captioner while this is entered.

    Args:
        run: The run.
        shards: By captioner and by text, the shards to caption.
        to_come: Number of images that are still to come, as `extend` then counts them.
    """

    def __init__(self, run: Run, shards: Mapping[str, Mapping[str, Sequence[int]]], to_come: int = 0) -> None:
        self._run = run
        self._bars = {name: _CaptionerBar(run, name, texts, to_come) for name, texts in shards.items()}
        self._bar_of = {text: self._bars[name] for name, texts in shards.items() for text in texts}
        self._interval = REFRESH_SECONDS if bars_visible() else REFRESH_SECONDS_WITHOUT_BARS
        self._refreshed_at = time.monotonic()

    def __enter__(self) -> "CaptionProgress":
        with ExitStack() as bars:
            for bar in self._bars.values():
                bars.enter_context(bar.open())
            self._exit = bars.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def extend(self, captioner: str, texts: Mapping[int, Sequence[str]], to_come: int) -> None:
        """Add shards that have come, each with the texts that it lacks, and set the number of images to come."""
        self._bars[captioner].extend(texts, to_come)

    def complete(self, text: str, shard: int, record: WorkRecord) -> None:
        """Count a text of a shard that is committed."""
        self._bar_of[text].complete(text, shard, record)

    def fail(self, text: str, shard: int | None) -> None:
        """Count a text of a shard that failed, or without `shard` of all shards that a stopped captioner leaves."""
        self._bar_of[text].fail(text, shard)

    def refresh(self) -> None:
        """Count the images of unfinished shards, at most once per interval. The clocks of the bars always move."""
        due = time.monotonic() >= self._refreshed_at + self._interval
        if due:
            self._refreshed_at = time.monotonic()
        for bar in self._bars.values():
            if due:
                bar.refresh()
            bar.progress.tick()


class _CaptionerBar:
    """The bar of one captioner.

    A listing of the parts of all shards in progress takes seconds on an object storage, so only `refresh` makes one. A
    shard that ends meanwhile takes its parts out of the last listing.

    Args:
        run: The run.
        name: The captioner.
        shards: By text, the shards to caption.
        to_come: Number of images that are still to come.
    """

    def __init__(self, run: Run, name: str, shards: Mapping[str, Sequence[int]], to_come: int = 0) -> None:
        self._run, self._name = run, name
        self._unit = "image" if len(shards) == 1 else "caption"
        self._captions = sum(ledger.fetched_images(run, numbers) for numbers in shards.values())
        """Captions of the shards that have come."""
        self._to_come = to_come * len(shards)
        """Captions of the others."""
        self._unfinished = {text: set(numbers) for text, numbers in shards.items()}
        self._total = _NOTHING
        """The work on committed shards and on the parts in `_parts`."""
        self._parts: dict[tuple[str, int], WorkRecord] = {}
        """By text and unfinished shard, the work on its parts at the last listing."""
        self._failed = set[int]()

    def open(self) -> Progress:
        self._list_parts()
        self._earlier_tokens, self._started = self._total.tokens, time.monotonic()
        total = self._captions + self._to_come
        self.progress = progress_bar(self._name, total, self._unit, initial=min(total, self._total.rows))
        self.progress.note("the engine is starting")
        return self.progress

    def extend(self, texts: Mapping[int, Sequence[str]], to_come: int) -> None:
        for text, unfinished in self._unfinished.items():
            new = [shard for shard, names in texts.items() if text in names]
            unfinished.update(new)
            self._captions += ledger.fetched_images(self._run, new) if new else 0
        self._to_come = to_come * len(self._unfinished)
        self.progress.set_total(self._captions + self._to_come)

    def complete(self, text: str, shard: int, record: WorkRecord) -> None:
        self._unfinished[text].discard(shard)
        self._total = _add(_subtract(self._total, self._parts.pop((text, shard), _NOTHING)), record)
        self._show()

    def fail(self, text: str, shard: int | None) -> None:
        self._failed |= self._unfinished[text] if shard is None else {shard}
        self._show()

    def refresh(self) -> None:
        self._list_parts()
        self._show()

    def _show(self) -> None:
        total = self._total
        if total.rows or self._failed:
            tokens = (total.tokens - self._earlier_tokens) / max(1.0, time.monotonic() - self._started)
            self.progress.note(
                f"{total.rows - total.failed:,} captioned" if total.failed else "",
                f"{total.failed:,} failed" if total.failed else "",
                f"{wording.count(len(self._failed), 'shard')} failed" if self._failed else "",
                f"{tokens:,.0f} tokens/s" if tokens >= 1 else "",
            )
        self.progress.advance_to(total.rows)

    def _list_parts(self) -> None:
        for part in self._parts.values():
            self._total = _subtract(self._total, part)
        self._parts = {}
        for text, shards in self._unfinished.items():
            listed = ledger.parts_under_way(self._run, text) if shards else {}
            self._parts |= {(text, shard): reduce(_add, listed[shard]) for shard in listed.keys() & shards}
        for part in self._parts.values():
            self._total = _add(self._total, part)


_NOTHING = WorkRecord(0, 0, 0, 0, 0)


def _add(first: WorkRecord, second: WorkRecord) -> WorkRecord:
    return WorkRecord(first.rows + second.rows, first.failed + second.failed, first.tokens + second.tokens, 0, 0)


def _subtract(first: WorkRecord, second: WorkRecord) -> WorkRecord:
    return WorkRecord(first.rows - second.rows, first.failed - second.failed, first.tokens - second.tokens, 0, 0)
