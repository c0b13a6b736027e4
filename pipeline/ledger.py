"""What is committed and what is left, read from the names of the markers: one listing a folder, no request a shard."""

import re
from dataclasses import dataclass

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run

_IMAGE_MARKER = re.compile(r"(\d{5,})_stats\.json")
_CAPTION_SHARD = re.compile(r"(\d{5,})\.parquet")


def fetched_shards(run: Run) -> list[int]:
    """The image shards whose download is committed, in order."""
    return _matching(run.images, _IMAGE_MARKER)


def captioned_shards(run: Run, captioner: str) -> list[int]:
    """The shards of which `captioner` has committed all captions, in order."""
    return _matching(run.captioner(captioner), _CAPTION_SHARD)


def captioners(run: Run) -> list[str]:
    """The captioners that have a folder in the run, by name."""
    return [name for name in storage.list_names(run.captions) if not name.startswith(".")]


@dataclass(frozen=True)
class Work:
    """The units of one captioner: image shards that are fetched, split by whether their captions are committed."""

    done: tuple[int, ...]
    left: tuple[int, ...]


def work_of(run: Run, captioner: str) -> Work:
    fetched = fetched_shards(run)
    done = set(captioned_shards(run, captioner))
    return Work(
        done=tuple(shard for shard in fetched if shard in done),
        left=tuple(shard for shard in fetched if shard not in done),
    )


def _matching(folder: str, pattern: re.Pattern[str]) -> list[int]:
    found = (pattern.fullmatch(name) for name in storage.list_names(folder))
    return sorted(int(match[1]) for match in found if match)
