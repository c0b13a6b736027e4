"""What of a dataset a repository holds, and where.

The Hub refuses a folder of more than 10,000 files. So the shards of a large dataset lie in folders: a rewrite can
double their number until its last commit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.run_layout import shard_name
from lotlip_data.pipeline.dataset.metadata import Description

MOST_FILES_BESIDE_CARD = 4_500
"""More files of shards than this lie in folders."""
SHARDS_PER_FOLDER = 200
"""Input shards whose files share a folder. Each can have 25 files before a rewrite of all fills the folder."""

_SHARD_PATH = re.compile(
    r"(\d{5,}-\d{5,}/)?(train|validation)-\d{5,}(-\d{2,})?(-[0-9a-f]{6}|-[0-9a-f]{12})?\.(tar|parquet)"
)
_NUMBER = re.compile(r"-(\d+)")


@dataclass(frozen=True)
class Layout:
    """The layout of a repository."""

    images: bool
    """Whether the repository has the tars, which hold the images."""
    folders: bool
    """Whether the shards lie in folders."""

    @classmethod
    def of(cls, files: Sequence[ShardFile], images: bool) -> "Layout":
        """The layout for these shards."""
        return cls(images, len(files) * (2 if images else 1) > MOST_FILES_BESIDE_CARD)

    @property
    def is_plain(self) -> bool:
        """Whether the repository looks like the folder of the dataset."""
        return self.images and not self.folders

    def path(self, name: str) -> str:
        """The path in the repository of a file of the dataset."""
        return self.folder(name) + name

    def folder(self, name: str) -> str:
        """The folder of a file of the dataset, with a slash; empty for the top folder."""
        if not self.folders:
            return ""
        number = _NUMBER.search(name)
        assert number is not None, "the names of the dataset's files have the number of their input shard"
        first = int(number[1]) // SHARDS_PER_FOLDER * SHARDS_PER_FOLDER
        return f"{shard_name(first)}-{shard_name(first + SHARDS_PER_FOLDER - 1)}/"

    def data_files(self, description: Description) -> dict[str, list[str]]:
        """The names of the files that `datasets` loads, by split: the tars, or the Parquet files if there are none."""
        if self.images:
            return description.tars
        return {
            split: [f"{name.removesuffix('.tar')}.parquet" for name in names]
            for split, names in description.tars.items()
        }


def is_shard(path: str) -> bool:
    """Whether a path in a repository is one that `Layout.path` gives. `publish` removes such files if it lacks them."""
    return bool(_SHARD_PATH.fullmatch(path))
