"""Where everything lies in a run's folder (any fsspec URL). Nothing else spells these names.

RUN/
  manifest.yaml                                the resolved manifest, frozen
  lists/00000.parquet  plan.json               the rows to fetch, in seeded random order, cut into shards
  lists/retry-0001.json                        further shards behind them, of rows that are fetched again
  images/00000-ATTEMPT.tar .parquet            img2dataset's output; 00000_stats.json names the attempt that counts
  captions/CAPTIONER/00000.parquet             captions of image shard 0; captioner.json; .parts/ while under way
  images/.ledger/ captions/CAPTIONER/.ledger/  names that say what each shard took
  images/.tries/                               names that say in which downloads nothing came of a shard
  shards/train-00000.tar .parquet dataset.json the dataset
  clean/                                       hashes of the images, and which ones are left out: can be made again
  quarantine/                                  what could not be processed, with its reason
  train/NAME/                                  configuration, metrics, checkpoints
  eval/NAME.json                               results
  logs/                                        one folder an invocation
"""

from dataclasses import dataclass
from pathlib import Path

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

SHARD_DIGITS = 5


def shard_name(shard: int) -> str:
    return f"{shard:0{SHARD_DIGITS}d}"


@dataclass(frozen=True)
class Run:
    """The names in one run's folder. `url` is a local path or a fsspec URL."""

    url: str

    @classmethod
    def at(cls, url: str) -> "Run":
        """Raises UserError where a file of this machine is in its place."""
        at = storage.normalise(url)
        if "://" not in at:
            there = next(path for path in (Path(at), *Path(at).parents) if path.exists())
            if not there.is_dir():
                raise UserError(
                    f"{there}: is a file; RUN is a run's folder, as `lotlip-data download MANIFEST RUN` fills it"
                )
        return cls(at)

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
        """A round of rows that are fetched again, counted from 1."""
        return self._in("lists", f"retry-{number:04d}.json")

    @property
    def images(self) -> str:
        return self._in("images")

    def image_stats(self, shard: int) -> str:
        """The marker of a fetched shard: its counts, and the names of its tar and its Parquet in `images`."""
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
        """What is under way of a captioner, a folder a shard."""
        return self._in("captions", name, ".parts")

    def caption_parts(self, name: str, shard: int) -> str:
        return storage.join(self.parts(name), shard_name(shard))

    def caption_ledger(self, name: str) -> str:
        """An empty object for each committed caption shard, named by what it took."""
        return self._in("captions", name, ".ledger")

    @property
    def image_ledger(self) -> str:
        """The same for fetched shards."""
        return self._in("images", ".ledger")

    @property
    def image_tries(self) -> str:
        """An empty object for each download in which nothing came of a shard."""
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
        return self._in("eval", f"{name}.json")

    @property
    def logs(self) -> str:
        return self._in("logs")
