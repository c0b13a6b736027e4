"""Progress bars of the recaption stage: images per captioner, those of unfinished shards included."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lotlip_data.manifests.progress import bars_visible, progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger

REFRESH_SECONDS = 5.0
"""Interval at which the saved parts of unfinished shards are counted: one listing per captioner."""


class CaptionProgress:
    """One bar per captioner while this is entered. Costs nothing where bars are not visible.

    Args:
        run: The run.
        shards: By captioner, the shards that this call is to caption.
    """

    def __init__(self, run: Run, shards: Mapping[str, Sequence[int]]) -> None:
        self._run, self._visible = run, bars_visible()
        self._unfinished = {name: set(numbers) for name, numbers in shards.items()}
        self._completed = dict.fromkeys(shards, 0)
        self._bars: dict[str, Any] = {}
        self._refreshed = time.monotonic()

    def __enter__(self) -> "CaptionProgress":
        with ExitStack() as bars:
            for name, shards in self._unfinished.items() if self._visible else ():
                images = ledger.fetched_images(self._run, shards)
                self._bars[name] = bars.enter_context(
                    progress_bar(name, images, "image", initial=min(images, self._saved(name)))
                )
            self._exit = bars.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def complete(self, name: str, shard: int, images: int) -> None:
        """Count a shard that is committed."""
        self._unfinished[name].discard(shard)
        self._completed[name] += images
        self._advance(name, self._completed[name])

    def refresh(self) -> None:
        """Count the images of unfinished shards, at most once per REFRESH_SECONDS."""
        if not self._bars or time.monotonic() < self._refreshed + REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        for name in self._bars:
            self._advance(name, self._completed[name] + self._saved(name))

    def _saved(self, name: str) -> int:
        parts = ledger.parts_under_way(self._run, name)
        return sum(part.rows for shard in self._unfinished[name] for part in parts.get(shard, ()))

    def _advance(self, name: str, images: int) -> None:
        """Move the bar on to this many images. It never moves back, as when parts are being committed."""
        if bar := self._bars.get(name):
            bar.update(max(0, min(images, bar.total) - bar.n))
