"""Makes a run with images and captions of synthetic scenes, without network and model.

The captions are texts of the caption writers, so a test knows the text of each image. As a program, it runs the stage
`shard` on a run, for tests that kill it: `python -m tests.pipeline.run_fixture RUN`.
"""

import hashlib
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, manifest, storage
from lotlip_data.manifests.digests import JSON_KEY, digest_of_bytes
from lotlip_data.manifests.formats.dataset_index import ShardRecord
from lotlip_data.manifests.formats.schema import CAPTIONS, IMAGES, LISTS, SUCCESS
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.dataset.builds import plan_builds
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.stage import build_shard
from lotlip_data.pipeline.downloading.failures import count_failures
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, Scene, render, sample_scene

SHARD_SECTION: dict[str, Any] = {"sub_captions": "punkt", "min_long_texts": 1}
FAILURE = "HTTP Error 404: Not Found"

Row = dict[str, Any]


@dataclass(frozen=True)
class FakeRun:
    """A run and what it was made of."""

    run: Run
    manifest: Manifest
    scenes: dict[str, Scene]
    """The scene of each fetched image, by uid."""


def make(
    folder: Path, shards: int = 2, images: int = 8, writers: Iterable[str] = WRITERS, pixels: int = 32, **settings: Any
) -> FakeRun:
    """Make a run of `shards` × `images` fetched images, captioned by `writers`, and one failed image per shard.

    Args:
        folder: The folder of the run.
        shards: Number of shards.
        images: Number of fetched images per shard.
        writers: Names of the caption writers, each of which is a captioner of the run.
        pixels: Side of the images.
        settings: Fields of the manifest's section `shard`, and `clean`, which is the section `clean`.
    """
    run = Run.at(str(folder))
    frozen = make_manifest(**settings)
    manifest.freeze(frozen, run)
    scenes: dict[str, Scene] = {}
    for shard in range(shards):
        scenes |= write_images(run, shard, [SPLITS["images"][shard * images + row] for row in range(images)], pixels)
    for name in writers:
        claim_captioner(run, name)
        for shard in range(shards):
            write_captions(run, name, shard, captions_of(run, name, shard))
    return FakeRun(run, frozen, scenes)


def make_manifest(clean: Mapping[str, Any] | None = None, **settings: Any) -> Manifest:
    """A manifest with these settings of its `shard` and `clean` sections."""
    shard = SHARD_SECTION | settings
    sources = [{"name": "web", "files": ["web.csv"]}]
    return Manifest.model_validate({"name": "fake", "sources": sources, "shard": shard, "clean": clean or {}})


def build(run: Run, recipe: Recipe, shard: int) -> ShardRecord:
    """Build one shard of the run's dataset, without Ray."""
    return build_shard(run, recipe, plan_builds(run, recipe, [shard])[0])


def write_images(run: Run, shard: int, seeds: list[int], pixels: int = 32) -> dict[str, Scene]:
    """Commit one image shard as the download stage does, with its tar in random order. Returns the scenes by uid."""
    scenes, rows, members = {}, [], []
    for number, seed in enumerate(seeds):
        scene, url = sample_scene(seed), f"http://images.test/{seed}.jpg"
        image = io.BytesIO()
        render(scene, pixels).save(image, "JPEG", quality=95)
        row = listed_row(f"{shard_name(shard)}{number:04d}", url, [raw_text(scene)], ["web"]) | {
            "status": SUCCESS,
            "width": pixels,
            "height": pixels,
            "original_width": pixels,
            "original_height": pixels,
            "sha256": hashlib.sha256(image.getvalue()).hexdigest(),
        }
        scenes[row["uid"]] = scene
        rows.append(row)
        members.append((row, image.getvalue()))
    key, url = f"{shard_name(shard)}{len(seeds):04d}", f"http://images.test/gone-{shard}.jpg"
    failed = listed_row(key, url, ["gone"], ["web"])
    rows.append(failed | {"status": "failed_to_download", "error_message": FAILURE})
    random.Random(shard).shuffle(members)
    commit_images(run, shard, rows, members)
    return scenes


def listed_row(key: str, url: str, texts: list[str], sources: list[str]) -> Row:
    """A row of IMAGES with the columns of its list only."""
    row = dict.fromkeys(IMAGES.names)
    return row | {"key": key, "uid": uid_from_url(url), "url": url, "texts": texts, "sources": sources}


def commit_images(run: Run, shard: int, rows: list[Row], members: list[tuple[Row, bytes]]) -> None:
    """Write the list, the tar, the Parquet and the marker of one image shard. `members` are the tar's images."""
    storage.create(run.list_shard(shard), parquet([{name: row[name] for name in LISTS.names} for row in rows], LISTS))
    names = {ending: f"{shard_name(shard)}-attempt.{ending}" for ending in ("tar", "parquet")}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for row, image in members:
            for ending, data in (("json", json.dumps(row).encode()), ("jpg", image)):
                member = tarfile.TarInfo(f"{row['key']}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    files = {"tar": content.getvalue(), "parquet": parquet(rows, IMAGES)}
    for ending, data in files.items():
        storage.create(storage.join(run.images, names[ending]), data)
    counts = count_failures(pa.Table.from_pylist(rows, schema=IMAGES))
    digests = {ending: asdict(digest_of_bytes(data)) for ending, data in files.items()}
    stats = {**names, "count": len(rows), "successes": len(members), **counts, "digests": digests}
    storage.create(run.image_stats(shard), artifacts.encode_json(stats))


def forget_digests(run: Run, shard: int) -> None:
    """Change the marker of an image shard to that of an earlier release, which has no digests."""
    marker = json.loads(storage.read_bytes(run.image_stats(shard)))
    del marker["digests"], marker[JSON_KEY]
    storage.replace(run.image_stats(shard), json.dumps(marker).encode())


def claim_captioner(run: Run, name: str, version: str = "1") -> None:
    """Write the settings file of a captioner's folder."""
    settings = {"id": f"{name}@{version}", "name": name}
    storage.create(run.captioner_settings(name), artifacts.encode_json(settings))


def fetched_rows(run: Run, shard: int) -> list[Row]:
    """The rows of the shard that have an image."""
    names = json.loads(storage.read_bytes(run.image_stats(shard)))
    rows = pq.read_table(storage.join(run.images, names["parquet"])).to_pylist()
    return [row for row in rows if row["status"] == SUCCESS]


def captions_of(run: Run, name: str, shard: int) -> list[Row]:
    """The texts of the writer `name` for the fetched images of the shard, as rows of CAPTIONS."""
    rows = []
    for image in fetched_rows(run, shard):
        seed = int(image["url"].rsplit("/", 1)[-1].removesuffix(".jpg"))
        text = long_text(sample_scene(seed), name)
        rows.append(caption(image, text))
    return rows


def caption(image: Mapping[str, Any], text: str | None, flags: Iterable[str] = ()) -> Row:
    """A row of CAPTIONS for an image; a failed one if `text` is None."""
    tokens = None if text is None else len(text.split())
    return {name: image[name] for name in ("key", "uid", "sha256")} | {
        "text": text,
        "finish_reason": None if text is None else "stop",
        "tokens": tokens,
        "flags": list(flags),
        "error": "poison" if text is None else None,
        "engine": "writer",
    }


def write_captions(run: Run, name: str, shard: int, rows: list[Row]) -> None:
    """Write one caption shard, and replace an existing one."""
    storage.replace(run.caption_shard(name, shard), parquet(rows, CAPTIONS))


def parquet(rows: list[Row], schema: pa.Schema) -> bytes:
    """Encode rows as Parquet."""
    return artifacts.encode_parquet(pa.Table.from_pylist(rows, schema=schema))


def _shard(url: str) -> None:
    from lotlip_data.pipeline.dataset.stage import shard

    run = Run.at(url)
    shard(manifest.frozen(run), run)


if __name__ == "__main__":
    _shard(sys.argv[1])
