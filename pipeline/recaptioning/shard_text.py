"""One text of a shard's images: its rows, which are saved in parts while the shard is captioned, and its commit."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.claims import check_claims
from lotlip_data.pipeline.recaptioning.results import (
    PartialResults,
    Row,
    UnitResult,
    encode_rows,
    exceeds_rejections,
    finish_commit,
    is_lost,
    read_partial,
    rejections,
)
from lotlip_data.pipeline.recaptioning.usage import Usage, UsageMeter


@dataclass(frozen=True)
class ShardOutcome:
    """What one attempt at a shard did."""

    done: list[UnitResult]
    """The texts that are committed, by this attempt or by another driver."""
    refused: dict[str, str]
    """By text, why it is not committed: too many of its images were rejected. Another attempt would end alike."""


@dataclass(frozen=True)
class PartSettings:
    """How the rows of a text are saved and judged.

    Attributes:
        part_size: Number of captions that a kill can cost.
        window: Requests in flight at most.
        model_digest: Of the model's files, if it is a folder; parts of another model are not used.
        max_rejected: Share of a shard's images above which rejections are not committed.
    """

    part_size: int
    window: int
    model_digest: str
    max_rejected: float


class ShardText:
    """One text of a shard's images during one attempt.

    Args:
        run: The run.
        config: The text's own configuration.
        shard: The shard.
        settings: How its rows are saved and judged.
        meter: Measures the actor's time. The text has a share of it until `leave`.
    """

    def __init__(
        self, run: Run, config: CaptionerConfig, shard: int, settings: PartSettings, meter: UsageMeter
    ) -> None:
        self.config, self.name = config, config.name
        self.folder = run.caption_parts(self.name, shard)
        self.saved_uids: set[str] = set()
        """The images whose rows earlier attempts have saved."""
        self._run, self._shard, self._settings, self._meter = run, shard, settings, meter
        self._target = run.caption_shard(self.name, shard)
        self._share = meter.join()
        self._started_at, self._earlier_usage = time.time(), Usage()
        self._saved: list[Row] = []
        self._parts: PartialResults | None = None

    async def is_committed(self) -> bool:
        """Whether the text of this shard is committed: by another driver, or before an answer was lost."""
        return await asyncio.to_thread(storage.exists, self._target)

    async def open(self, attempt: str, images: str, on_saved: Callable[[list[str]], None]) -> None:
        """Read the parts that earlier attempts have saved, and get ready for further rows.

        Args:
            attempt: Unique name of the attempt.
            images: Name of the file with the shard's images; parts of another one are not used.
            on_saved: Called with the uids of each part that the storage has.
        """
        # A kill costs the part that is being written, the slack that arrives meanwhile, and the window: together
        # part_size captions, unless the window alone is larger.
        size = max(1, self._settings.part_size // 4)
        slack = max(1, self._settings.part_size - size - self._settings.window)
        digest = self._settings.model_digest
        origin = {"captioner": f"{self.config.id}+{digest}" if digest else self.config.id, "tar": images}
        saved, first_started_at, self._earlier_usage = await asyncio.to_thread(read_partial, self.folder, origin)
        if exceeds_rejections(saved, self._settings.max_rejected):  # an earlier attempt was refused because of them
            saved = [row for row in saved if not is_lost(row)]
        self._started_at = min(self._started_at, first_started_at)
        self._saved, self.saved_uids = saved, {row["uid"] for row in saved}
        self._parts = PartialResults(self.folder, attempt, size, slack, on_saved, self._usage, origin)

    async def add(self, row: Row) -> None:
        """Add the row of an image that `saved_uids` lacks."""
        assert self._parts is not None
        await self._parts.add(row)

    async def save(self) -> None:
        """Save all rows."""
        if self._parts:
            await self._parts.save()

    async def close(self) -> None:
        """Wait for the part that is being written."""
        if self._parts:
            await self._parts.close()

    def leave(self) -> None:
        """End the text's share of the actor's time."""
        self._meter.leave(self._share)

    async def discard(self) -> None:
        """Remove the parts."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(storage.remove, self.folder)

    def rows_of(self, uids: set[str]) -> list[Row]:
        """The rows of these images, in order of their keys."""
        new_rows = self._parts.rows if self._parts else []
        return sorted((row for row in self._saved + new_rows if row["uid"] in uids), key=lambda row: row["key"])

    def refusal(self, rows: list[Row]) -> str:
        """Why these rows must not be committed; empty if they may."""
        return rejections(rows, self._settings.max_rejected, self._shard)

    async def commit(self, rows: list[Row]) -> UnitResult:
        """Commit the rows of all images of the shard.

        Raises:
            RecaptionError: Another driver has claimed the text's name for something else.
        """
        await asyncio.to_thread(check_claims, self._run, self.config, self._settings.model_digest)
        content = encode_rows(rows, captioner=self.config.id)
        return await self.finish(await asyncio.to_thread(storage.create, self._target, content))

    async def finish(self, won: bool) -> UnitResult:
        """Count a committed shard. `won`: whether this attempt has committed it."""
        usage, started_at = self._earlier_usage + self._usage(), int(self._started_at)
        record = await asyncio.to_thread(finish_commit, self._run, self.name, self._shard, started_at, usage)
        captioned = len(self._parts.rows) if self._parts else 0
        return UnitResult(self.name, self._shard, record.rows, captioned, record.failed, won, record.tokens)

    def _usage(self) -> Usage:
        """The actor's time for this text in this attempt so far."""
        return self._meter.usage_of(self._share)
