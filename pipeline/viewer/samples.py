"""The dataset of a run as the page needs it: what dataset.json says of its files, and nothing of their content."""

from dataclasses import dataclass

import pyarrow as pa

from lotlip_data.captioners.quality_flags import RULES
from lotlip_data.manifests import dataset_index, schema
from lotlip_data.manifests.dataset_index import DatasetError, ShardFile
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.subcaptions import SplitMode


@dataclass(frozen=True)
class Samples:
    """A dataset: all of its files, of all splits."""

    name: str
    captioners: tuple[str, ...]
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    sub_captions: SplitMode
    files: tuple[ShardFile, ...]

    @property
    def parquets(self) -> list[str]:
        return [file.parquet_url for file in self.files]

    @property
    def columns(self) -> pa.Schema:
        """Those of every Parquet file."""
        return schema.dataset(self.captioners)

    @property
    def total(self) -> int:
        return sum(file.samples for file in self.files)


def open_samples(run: Run) -> Samples:
    """The dataset of a run. Raises DatasetError where there is none, or it names what is not in its folder."""
    content = dataset_index.read_index(run)
    try:
        return Samples(
            name=str(content["name"]),
            captioners=tuple(content["captioners"]),
            sources=tuple(source["name"] for source in content["manifest"]["sources"]),
            flags=tuple(RULES),
            sub_captions=content["sub_captions"],
            files=tuple(dataset_index.shard_files(run, content)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{run.dataset}: lacks what it should say ({error!r}). Run `lotlip-data shard`.") from error
