"""Identifies what a shard is built from: its images, its captions, and what else decides the result."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lotlip_data.manifests import storage
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.run_layout import Run, shard_name


@dataclass(frozen=True, slots=True)
class BuildTask:
    """One shard to build."""

    shard: int
    fingerprint: str
    exclusions: str | None = None
    """The file in `clean/left_out` with the images to leave out because of other images; None if there are none."""
    scores: tuple[tuple[str, str], ...] = ()
    """The scorers whose scores the shard has, each with the name of its file."""


class Identified(Protocol):
    """What is made of the texts of some captioners: the recipe of a dataset, or an export."""

    @property
    def id(self) -> str:
        """Identifies all settings that decide the result."""

    @property
    def captioners(self) -> Mapping[str, str]:
        """Ids of the captioners by name."""


def plan_builds(
    run: Run,
    recipe: Identified,
    shards: Iterable[int],
    exclusions: Mapping[int, str] | None = None,
    scores: Mapping[int, Mapping[str, str]] | None = None,
) -> list[BuildTask]:
    """The shards with the fingerprints of recipe, images, captions, exclusions and scores. One listing per folder.

    Args:
        run: The run.
        recipe: The recipe of the dataset, or the export.
        shards: Numbers of the input shards.
        exclusions: The file of excluded images by shard, as `find_exclusions` returns it.
        scores: By shard, the file of scores of each scorer. Default: the dataset has no scores.
    """
    shards = list(shards)

    def stamps(folder: str, ending: str) -> list[str | None]:
        stamp_by_name = storage.list_stamps(folder, ending)
        return [stamp_by_name.get(f"{shard_name(shard)}{ending}") for shard in shards]

    images = stamps(run.images, "_stats.json")
    captions = [stamps(run.captioner(name), ".parquet") for name in recipe.captioners]
    tasks = []
    for shard, image, *texts in zip(shards, images, *captions, strict=True):
        excluded = (exclusions or {}).get(shard)
        files = tuple((scores or {}).get(shard, {}).items())
        made_from = [recipe.id, image, texts, excluded, *([files] if files else [])]
        tasks.append(BuildTask(shard, digest(*made_from), excluded, files))
    return tasks
