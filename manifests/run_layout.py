"""Paths in a run's folder, which is any fsspec URL. No other module spells these names.

RUN/
  manifest.yaml                                the frozen manifest
  lists/00000.parquet  plan.json               the rows to download, in seeded random order, as shards
  lists/00012.json                             the tar, table or folder that the images of a shard are read from
  lists/retry-0001.json                        further shards, with the rows that are downloaded again
  images/00000-ATTEMPT.tar .parquet            output of img2dataset; 00000_stats.json names the committed attempt
  captions/CAPTIONER/00000.parquet             captions of image shard 0; .parts/ with partial results
  captions/CAPTIONER/captioner.json            the settings that made them; model_files.json: digests of a local model;
                                               model_revision.json: the commit of one on the hub;
                                               stopped.json: why the last call gave up
  images/.ledger/ captions/CAPTIONER/.ledger/  empty objects whose names record the counts and times of each shard
  images/.tries/                               empty objects whose names record downloads without any image
  scores/SCORER/00000-ID.parquet               scores of the images and texts of shard 0; scorer.json: what made them;
                                               summary.json: what a scorer tells about the whole run;
                                               .surveys/: what a scorer that compares shards notes of each
  shards/train-00000.tar .parquet dataset.json the dataset
  clean/                                       hashes of the images and the list of exclusions; can be recomputed
  publish/statistics.json                      statistics of the dataset for the hub; can be recomputed
  quarantine/                                  what could not be processed, with its reason
  train/NAME/                                  configuration, metrics, checkpoints, results on published tasks
  eval/NAME.json                               results on synthetic scenes
  logs/                                        one folder per invocation; engines/: their starts, and their traces;
                                               stopped/: why the last call of a stage left work
"""

from dataclasses import dataclass
from pathlib import Path

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

SHARD_DIGITS = 5
DATASET_JSON = "dataset.json"
MARKERS = ".done"
"""The folder of the markers in `shards`."""
TRAINING_DONE, TRAINED_MODEL, TRAINING_METRICS = "done.json", "model", "metrics.jsonl"
"""Names in the folder of a training, which may lie outside a run."""


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

    def container_list(self, shard: int) -> str:
        """What a shard reads whose images exist already, in place of its `list_shard`."""
        return self._in("lists", f"{shard_name(shard)}.json")

    @property
    def plan(self) -> str:
        return self._in("lists", "plan.json")

    def retry(self, number: int) -> str:
        """The round `number` of rows that are downloaded again, counted from 1."""
        return self._in("lists", f"retry-{number:04d}.json")

    def list_file(self, name: str) -> str:
        """An object in `lists`, by its name in a listing."""
        return self._in("lists", name)

    @property
    def images(self) -> str:
        return self._in("images")

    def image_file(self, name: str) -> str:
        """A tar or Parquet file in `images`, by the name that the marker of its shard gives."""
        return self._in("images", name)

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

    def model_files(self, name: str) -> str:
        """The digests of the files in the model folder of a captioner."""
        return self._in("captions", name, "model_files.json")

    def model_revision(self, name: str) -> str:
        """The commit of a captioner's model on the hub that the run uses."""
        return self._in("captions", name, "model_revision.json")

    def captioner_stopped(self, name: str) -> str:
        """Why the last call of `recaption` gave a captioner up; the next call removes it."""
        return self._in("captions", name, "stopped.json")

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
    def scores(self) -> str:
        return self._in("scores")

    def scorer(self, name: str) -> str:
        return self._in("scores", name)

    def scorer_settings(self, name: str) -> str:
        """What made the scores in a scorer's folder."""
        return self._in("scores", name, "scorer.json")

    def score_summary(self, name: str) -> str:
        """What a scorer that compares shards has to tell about the whole run."""
        return self._in("scores", name, "summary.json")

    def score_file(self, name: str, file: str) -> str:
        """The scores of one shard, by the name of their file."""
        return self._in("scores", name, file)

    def score_ledger(self, name: str) -> str:
        """One empty object per scored shard, as in `caption_ledger`."""
        return self._in("scores", name, ".ledger")

    def score_survey(self, name: str, *file: str) -> str:
        """What a scorer that compares shards has noted of one of them; without `file`, the folder."""
        return self._in("scores", name, ".surveys", *file)

    @property
    def score_limits(self) -> str:
        """Means, deviations and limits of scores over all shards, one file for each state; can be computed again."""
        return self._in("scores", ".limits")

    @property
    def image_ledger(self) -> str:
        """One empty object per downloaded shard, as in `caption_ledger`."""
        return self._in("images", ".ledger")

    @property
    def image_tries(self) -> str:
        """One empty object per download of a shard that gave no image."""
        return self._in("images", ".tries")

    @property
    def image_suspects(self) -> str:
        """One empty object per image that takes much memory and is being decoded, or was when its process died."""
        return self._in("images", ".suspects")

    @property
    def shards(self) -> str:
        return self._in("shards")

    @property
    def dataset(self) -> str:
        """dataset.json, the index of the dataset."""
        return self._in("shards", DATASET_JSON)

    def dataset_file(self, name: str) -> str:
        """A tar, a Parquet file or another file of the dataset, by the name that dataset.json gives."""
        return self._in("shards", name)

    @property
    def shard_markers(self) -> str:
        """One object for each input shard that is built into the dataset, named by the shard and its fingerprint."""
        return self._in("shards", MARKERS)

    def shard_marker(self, name: str) -> str:
        return self._in("shards", MARKERS, name)

    def clean(self, *names: str) -> str:
        return self._in("clean", *names)

    def image_hashes(self, shard: int, stamp: str) -> str:
        """The perceptual hashes of a downloaded shard; `stamp` identifies its images."""
        return self._in("clean", "hashes", f"{shard_name(shard)}-{stamp}.parquet")

    def evaluation_hashes(self, id: str) -> str:
        """The hashes of the evaluation sets that `id` identifies."""
        return self._in("clean", "evaluation", f"{id}.parquet")

    def exclusion_index(self, id: str) -> str:
        """The names of the lists of excluded images by shard; `id` identifies images and settings, `*` any."""
        return self._in("clean", f"left-out-{id}.json")

    def exclusion_list(self, name: str) -> str:
        """The images of one shard that are left out because of other images."""
        return self._in("clean", "left_out", name)

    def quarantine(self, *names: str) -> str:
        return self._in("quarantine", *names)

    @property
    def statistics(self) -> str:
        """The statistics of the dataset that were published last."""
        return self._in("publish", "statistics.json")

    @property
    def trainings(self) -> str:
        return self._in("train")

    def train(self, name: str) -> str:
        return self._in("train", name)

    def training_done(self, name: str) -> str:
        """The result of a training; it exists once the training is finished."""
        return self._in("train", name, TRAINING_DONE)

    def training_metrics(self, name: str) -> str:
        """The metrics of each step of a training, one JSON object per line."""
        return self._in("train", name, TRAINING_METRICS)

    def trained_model(self, name: str) -> str:
        return self._in("train", name, TRAINED_MODEL)

    @property
    def evaluations(self) -> str:
        return self._in("eval")

    def evaluation(self, name: str) -> str:
        """Results of the training `name` on synthetic scenes."""
        return self._in("eval", f"{name}.json")

    @property
    def logs(self) -> str:
        return self._in("logs")

    def log(self, invocation: str) -> str:
        return self._in("logs", invocation, "log.txt")

    def stopped(self, stage: str) -> str:
        """Why the last call of `download` or `shard` ended before its work was done; the next call removes it."""
        return self._in("logs", "stopped", f"{stage}.json")

    def engine_log(self, captioner: str, attempt: str) -> str:
        """The whole trace of a failed start of a captioner's engine."""
        return self._in("logs", "engines", f"{captioner}-{attempt}.txt")

    def engine_start(self, captioner: str, host: str, time: int, process: int) -> str:
        """Model, precision, capacity and start seconds of one start of an engine."""
        return self._in("logs", "engines", f"{captioner}-{host}-{time}-{process}.json")

    def features(self, *tower: str) -> str:
        """The image features of a tower, one object for each tar; without `tower`, the folder of all towers."""
        return self._in("features", *tower)

    @property
    def report(self) -> str:
        return self._in("report.html")

    @property
    def demo(self) -> str:
        """The figures of a demo run."""
        return self._in("demo.json")

    def at_path(self, path: str) -> str:
        """An object by its path relative to the run, as dataset.json's `replaced` gives it."""
        return self._in(path)

    def relative(self, url: str) -> str:
        """The path of an object of this run relative to its folder."""
        return url.removeprefix(self.url.rstrip("/") + "/")
