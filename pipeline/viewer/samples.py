"""The dataset of a run as the page needs it: what dataset.json says about its files, without their content."""

from dataclasses import dataclass, field

import pyarrow as pa

from lotlip_data.captioners.quality_flags import FLAGS
from lotlip_data.manifests.formats import dataset_index, schema
from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.captioners import several_texts
from lotlip_data.manifests.subcaptions import SplitMode
from lotlip_data.pipeline.viewer.scoring import NO_SCORING, Scoring


@dataclass(frozen=True)
class Samples:
    """A dataset: the files of all its splits."""

    name: str
    captioners: tuple[str, ...]
    """Names of the long texts."""
    texts: dict[str, tuple[str, ...]]
    """By captioner that makes several texts for each image, their names."""
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    sub_captions: SplitMode
    files: tuple[ShardFile, ...]
    json_columns: schema.JsonColumns = field(default_factory=dict)
    scoring: Scoring = NO_SCORING

    @property
    def parquets(self) -> list[str]:
        """The URLs of the Parquet files, in order."""
        return [file.parquet_url for file in self.files]

    @property
    def columns(self) -> pa.Schema:
        """The schema of every Parquet file."""
        return schema.dataset(self.captioners, self.json_columns, self.scoring.scorers)

    @property
    def total(self) -> int:
        """The number of samples."""
        return sum(file.samples for file in self.files)


def open_samples(run: Run) -> Samples:
    """Return the dataset of a run.

    Raises:
        DatasetError: There is no dataset, or dataset.json is damaged or names a file outside its folder.
    """
    content = dataset_index.read_index(run)
    return Samples(
        name=content["name"],
        captioners=tuple(content["captioners"]),
        texts=several_texts(content["manifest"].get("captioners", ())),
        sources=tuple(source["name"] for source in content["manifest"]["sources"]),
        flags=FLAGS,
        sub_captions=content["sub_captions"],
        files=tuple(dataset_index.shard_files(run, content)),
        json_columns=content.get("json_columns", {}),
        scoring=Scoring.of(content),
    )
