"""What each shard of the dataset is made from, as a fingerprint: where it is the same, the shard is not built again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.pipeline.dataset import Recipe


@dataclass(frozen=True, slots=True)
class Unit:
    """One shard to build. `drops` names its list in `clean/`: the images left out for the sake of others."""

    shard: int
    fingerprint: str
    drops: str | None = None


def digest(*parts: object) -> str:
    """12 hexadecimal digits of anything that JSON can tell."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def image_stamps(run: Run) -> dict[int, str]:
    """By shard, what changes when its images are fetched anew. One listing."""
    found = storage.list_stamps(run.images, "_stats.json")
    numbers = ((name.removesuffix("_stats.json"), stamp) for name, stamp in found.items())
    return {int(number): stamp for number, stamp in numbers if number.isdigit()}


def units(run: Run, recipe: Recipe, shards: Iterable[int], drops: Mapping[int, str] | None = None) -> list[Unit]:
    """The shards with their fingerprints: recipe, images, captions and what is dropped. One listing a folder."""
    shards = list(shards)

    def stamps(folder: str, ending: str) -> list[str | None]:
        held = storage.list_stamps(folder, ending)
        return [held.get(f"{shard_name(shard)}{ending}") for shard in shards]

    images = stamps(run.images, "_stats.json")
    captions = [stamps(run.captioner(name), ".parquet") for name in recipe.captioners]
    found = []
    for shard, image, *texts in zip(shards, images, *captions, strict=True):
        dropped = (drops or {}).get(shard)
        found.append(Unit(shard, digest(recipe.id, image, texts, dropped), dropped))
    return found
