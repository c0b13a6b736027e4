"""An engine whose caption is the grey value of the image, and shards of plain grey images.

So every caption shows which image it belongs to. As a program, this module captions one shard with an engine that ends
its own process at some values, as a crash does: `python -m tests.pipeline.recaptioning.grey_engine RUN SHARD PART_SIZE
LOG VALUE…`. It appends the value of each finished caption to LOG.
"""

import asyncio
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, EngineDead
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.results import UnitResult
from lotlip_data.pipeline.recaptioning.shard_text import ShardOutcome
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker

CONFIG = CaptionerConfig(name="grey", kind="llava", model="grey")


class GreyEngine:
    """An engine whose caption is the grey value of the image.

    Args:
        poison: Values whose request fails.
        max_requests: Number of requests after which the engine dies; None for never.
    """

    window, burst = 4, 1

    def __init__(self, poison: tuple[int, ...] = (), max_requests: int | None = None) -> None:
        self.requests: list[int] = []
        """The values of all requests, in order."""
        self.in_flight = 0
        self.max_in_flight = 0
        self.poison, self.max_requests = poison, max_requests

    def prepare(self, image: Image.Image) -> int:
        return int(image.getpixel((4, 4))[0])  # type: ignore[index]

    async def caption(self, value: int) -> Caption:
        self.requests.append(value)
        if self.max_requests is not None and len(self.requests) > self.max_requests:
            raise EngineDead("the engine is dead")
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await asyncio.sleep(0.001 * (value % 3))
        self.in_flight -= 1
        if value in self.poison:
            raise CaptionError("poison")
        return Caption(f"It is {value}.", "stop", 5)

    def close(self) -> None:
        pass


def write_shard(
    run: Run,
    shard: int,
    values: list[int],
    broken: tuple[int, ...] = (),
    meta: Callable[[int], dict[str, Any]] = lambda value: {},
    attempt: str = "a",
) -> None:
    """Write an image shard whose tar has its samples in reverse order of the keys.

    Args:
        run: The run.
        shard: The shard.
        values: Grey values, one image each.
        broken: Those of `values` whose image cannot be decoded.
        meta: From a value to further fields of the image's json member.
        attempt: Ends the name of the tar. The shard of an earlier attempt is replaced.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for value in reversed(values):
            encoded = io.BytesIO()
            Image.new("RGB", (8, 8), (value,) * 3).save(encoded, "PNG")
            image = b"junk" if value in broken else encoded.getvalue()
            member = json.dumps({"uid": f"u{value}", "sha256": f"s{value}", **meta(value)}).encode()
            for ending, data in (("jpg", image), ("json", member)):
                info = tarfile.TarInfo(f"{shard:05d}{value:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    name = f"{shard}-{attempt}"
    storage.create(storage.join(run.images, f"{name}.tar"), content.getvalue())
    marker = {"tar": f"{name}.tar", "parquet": f"{name}.parquet", "status_dict": {"success": len(values)}}
    storage.replace(
        run.image_stats(shard), json.dumps(marker | {"count": len(values), "successes": len(values)}).encode()
    )


def rows(run: Run, shard: int) -> list[dict[str, Any]]:
    """The committed caption rows of a shard."""
    content: list[dict[str, Any]] = pq.read_table(run.caption_shard("grey", shard)).to_pylist()
    return content


def outcomes(
    run: Run,
    engine: GreyEngine,
    *shards: int,
    config: CaptionerConfig | None = None,
    names: Sequence[str] = (),
    part_size: int = 512,
    **options: Any,
) -> list[ShardOutcome]:
    """Caption shards at the same time on one worker, with further `options` of it. Returns what became of each.

    Args:
        run: The run.
        engine: The engine.
        shards: The shards.
        config: The captioner. Default: CONFIG.
        names: Names of its texts to make; none for all.
        part_size: As of `CaptionWorker`.
        options: Further arguments of `CaptionWorker`.
    """

    async def caption_all() -> list[ShardOutcome]:
        worker = CaptionWorker(run, config or CONFIG, engine, "grey", part_size, **options)
        return await asyncio.gather(*(worker.caption_shard(shard, names) for shard in shards))

    return asyncio.run(caption_all())


def caption(run: Run, engine: GreyEngine, *shards: int, **options: Any) -> list[UnitResult]:
    """As `outcomes`, where every text of every shard is committed: the results of all of them."""
    ended = outcomes(run, engine, *shards, **options)
    assert not any(outcome.refused for outcome in ended)
    return [result for outcome in ended for result in outcome.done]


class CrashingEngine(GreyEngine):
    """Ends the process at some values, as a decoder that crashes does, and logs the value of every finished caption."""

    def __init__(self, log: str, fatal_values: set[int]) -> None:
        super().__init__()
        self.log, self.fatal_values = log, fatal_values

    async def caption(self, value: int) -> Caption:
        if value in self.fatal_values:
            await asyncio.sleep(0.02)
            os._exit(9)
        caption = await super().caption(value)
        with open(self.log, "a") as stream:
            stream.write(f"{value}\n")
        return caption


if __name__ == "__main__":
    url, number, size, log, *values = sys.argv[1:]
    caption(Run(url), CrashingEngine(log, set(map(int, values))), int(number), part_size=int(size))
