"""Paths in a run's folder, which is any fsspec URL. No other module spells these names.

RUN/
  manifest.yaml                                the frozen manifest
  lists/00000.parquet  plan.json               the rows to download, in seeded random order, as shards
  lists/retry-0001.json                        further shards, with the rows that are downloaded again
  images/00000-ATTEMPT.tar .parquet            output of img2dataset; 00000_stats.json names the committed attempt
  captions/CAPTIONER/00000.parquet             captions of image shard 0; captioner.json; .parts/ with partial results
  images/.ledger/ captions/CAPTIONER/.ledger/  empty objects whose names record the counts and times of each shard
  images/.tries/                               empty objects whose names record downloads without any image
  shards/train-00000.tar .parquet dataset.json the dataset
  clean/                                       hashes of the images and the list of exclusions; can be recomputed
  quarantine/                                  what could not be processed, with its reason
  train/NAME/                                  configuration, metrics, checkpoints, results on published tasks
  eval/NAME.json                               results on synthetic scenes
  logs/                                        one folder per invocation
"""

from dataclasses import dataclass
from pathlib import Path

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

SHARD_DIGITS = 5


def shard_name(shard: int) -> str:
    """The number of a shard as file names have it, such as `00012`."""
    return f"{shard:0{SHARD_DIGITS}d}"


@dataclass(frozen=True)
class Run:
    """The paths in one run's folder."""

    url: str
    """The folder: a local path or an fsspec URL."""

    @classmethod
    def at(cls, url: str) -> "Run":
        """The run in the folder `url`, which need not exist. Raises UserError if the path leads through a file."""
        folder = storage.normalise(url)
        if "://" not in folder:
            existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
            if not existing.is_dir():
                raise UserError(
                    f"{existing}: is a file; RUN is a run's folder, as `lotlip-data download MANIFEST RUN` fills it"
                )
        return cls(folder)

    def _in(self, *names: str) -> str:
        return storage.join(self.url, *names)

    @property
    def manifest(self) -> str:
        return self._in("manifest.yaml")

    @property
    def lists(self) -> str:
        return self._in("lists")

    def list_shard(self, shard: int) -> str:
        return self._in("lists", f"{shard_name(shard)}.parquet")

    @property
    def plan(self) -> str:
        return self._in("lists", "plan.json")

    def retry(self, number: int) -> str:
        """The round `number` of rows that are downloaded again, counted from 1."""
        return self._in("lists", f"retry-{number:04d}.json")

    @property
    def images(self) -> str:
        return self._in("images")

    def image_stats(self, shard: int) -> str:
        """The marker of a downloaded shard: its counts, and the names of its tar and its Parquet in `images`."""
        return self._in("images", f"{shard_name(shard)}_stats.json")

    @property
    def captions(self) -> str:
        return self._in("captions")

    def captioner(self, name: str) -> str:
        return self._in("captions", name)

    def captioner_settings(self, name: str) -> str:
        return self._in("captions", name, "captioner.json")

    def caption_shard(self, name: str, shard: int) -> str:
        return self._in("captions", name, f"{shard_name(shard)}.parquet")

    def parts(self, name: str) -> str:
        """Partial results of a captioner, one folder per shard."""
        return self._in("captions", name, ".parts")

    def caption_parts(self, name: str, shard: int) -> str:
        return storage.join(self.parts(name), shard_name(shard))

    def caption_ledger(self, name: str) -> str:
        """One empty object per committed caption shard; its name records counts and times."""
        return self._in("captions", name, ".ledger")

    @property
    def image_ledger(self) -> str:
        """One empty object per downloaded shard, as in `caption_ledger`."""
        return self._in("images", ".ledger")

    @property
    def image_tries(self) -> str:
        """One empty object per download of a shard that gave no image."""
        return self._in("images", ".tries")

    @property
    def shards(self) -> str:
        return self._in("shards")

    @property
    def dataset(self) -> str:
        return self._in("shards", "dataset.json")

    def clean(self, *names: str) -> str:
        return self._in("clean", *names)

    def quarantine(self, *names: str) -> str:
        return self._in("quarantine", *names)

    def train(self, name: str) -> str:
        return self._in("train", name)

    def evaluation(self, name: str) -> str:
        """Results of the training `name` on synthetic scenes."""
        return self._in("eval", f"{name}.json")

    @property
    def logs(self) -> str:
        return self._in("logs")
