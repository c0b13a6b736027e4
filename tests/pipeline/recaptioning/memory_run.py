"""Captions shards in one process and prints its peak memory after each shard, in bytes, as a JSON list.

`python -m tests.pipeline.recaptioning.memory_run RUN ENGINE SIZE SIZE …`. ENGINE is `transformers`, or `stub`, which
needs no model. Each SIZE is the number of images of a shard. An image has 120 kB as stored and 0.8 MB decoded.
"""

import asyncio
import io
import json
import sys

import numpy as np
from PIL import Image

from lotlip_data.captioners.base import Caption, Engine
from lotlip_data.captioners.registry import get_default, load_engine
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.peak_memory import peak_memory_bytes

PIXELS = 512


class StubEngine:
    window, burst = 8, 4  # small: while a disk stalls, requests wait with their images in memory

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    async def caption(self, image: Image.Image) -> Caption:
        await asyncio.sleep(0.001)
        return Caption(f"A picture of {image.width} pixels. " * 10, "stop", 64)

    def close(self) -> None:
        pass


def write_shard(run: Run, shard: int, size: int) -> None:
    """Write an image shard with `size` images of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (PIXELS // 8, PIXELS // 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).resize((PIXELS, PIXELS)).save(content, "JPEG", quality=95)
    members = []
    for number in range(size):
        url = f"http://images.test/{shard}/{number}.jpg"
        row = fake_run.listed_row(f"{shard_name(shard)}{number:04d}", url, ["noise"], ["web"])
        members.append((row | {"status": SUCCESS, "sha256": "0" * 64}, content.getvalue()))
    fake_run.commit_images(run, shard, [row for row, _ in members], members)


async def caption_shards(worker: CaptionWorker, sizes: list[int]) -> list[int]:
    """Caption the shards one after another. Returns the peak memory after each, in bytes."""
    peaks = []
    for shard, size in enumerate(sizes):
        (result,) = (await worker.caption_shard(shard)).done
        assert (result.captioned, result.rejected) == (size, 0)
        peaks.append(peak_memory_bytes())
    return peaks


def main(url: str, engine_name: str, *arguments: str) -> None:
    run, sizes = Run.at(url), [int(size) for size in arguments]
    config = get_default("tiny-instructblip")
    engine: Engine = StubEngine() if engine_name == "stub" else load_engine(config, engine_name)
    print(json.dumps(asyncio.run(caption_shards(CaptionWorker(run, config, engine, engine_name), sizes))))


if __name__ == "__main__":
    main(*sys.argv[1:])
