"""An engine that says the grey value of an image, and shards of plain grey images, so that a text tells its image.

As a program it works on one shard with an engine that ends its own process at some values, as a crash does:
`python -m tests.pipeline.recaptioning.grey_engine RUN SHARD PART_SIZE LOG VALUE…`. It appends each finished
caption's value to LOG.
"""

import asyncio
import io
import json
import os
import sys
import tarfile
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, EngineDead
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker

CONFIG = CaptionerConfig(name="seer", kind="llava", model="seer")


class Seer:
    """An engine that says the grey value of an image: so a caption tells which image it belongs to."""

    window, burst = 4, 1

    def __init__(self, poison: tuple[int, ...] = (), die_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.under_way = 0
        self.most = 0
        self.poison, self.die_at = poison, die_at

    def prepare(self, image: Image.Image) -> int:
        return int(image.getpixel((4, 4))[0])  # type: ignore[index]

    async def caption(self, value: int) -> Caption:
        self.seen.append(value)
        if self.die_at is not None and len(self.seen) > self.die_at:
            raise EngineDead("gone")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.001 * (value % 3))
        self.under_way -= 1
        if value in self.poison:
            raise CaptionError("poison")
        return Caption(f"It is {value}.", "stop", 5)

    def close(self) -> None:
        pass


def fetched(run: Run, shard: int, values: list[int], broken: tuple[int, ...] = ()) -> None:
    """An image shard with one plain picture a value, its tar in reverse order of the keys."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for value in reversed(values):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (value,) * 3).save(picture, "PNG")
            image = b"junk" if value in broken else picture.getvalue()
            meta = json.dumps({"uid": f"u{value}", "sha256": f"s{value}"}).encode()
            for ending, data in (("jpg", image), ("json", meta)):
                member = tarfile.TarInfo(f"{shard:05d}{value:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    storage.create(storage.join(run.images, f"{shard}-a.tar"), content.getvalue())
    marker = {"tar": f"{shard}-a.tar", "parquet": f"{shard}-a.parquet", "status_dict": {"success": len(values)}}
    storage.create(
        run.image_stats(shard), json.dumps(marker | {"count": len(values), "successes": len(values)}).encode()
    )


def rows(run: Run, shard: int) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(run.caption_shard("seer", shard)).to_pylist()
    return table


def caption(run: Run, seer: Seer, *shards: int, part_size: int = 512, gpus: float = 0.0) -> list[Any]:
    async def all_of_them() -> list[Any]:
        captioning = CaptionWorker(run, CONFIG, seer, "seer", part_size, gpus=gpus)
        return await asyncio.gather(*(captioning.caption_shard(shard) for shard in shards))

    return asyncio.run(all_of_them())


class Fragile(Seer):
    """Ends the process at some values, as a decoder that crashes does, and logs every caption that it finishes."""

    def __init__(self, log: str, deadly: set[int]) -> None:
        super().__init__()
        self.log, self.deadly = log, deadly

    async def caption(self, value: int) -> Caption:
        if value in self.deadly:
            await asyncio.sleep(0.02)
            os._exit(9)
        caption = await super().caption(value)
        with open(self.log, "a") as stream:
            stream.write(f"{value}\n")
        return caption


if __name__ == "__main__":
    url, number, size, log, *values = sys.argv[1:]
    caption(Run(url), Fragile(log, set(map(int, values))), int(number), part_size=int(size))
