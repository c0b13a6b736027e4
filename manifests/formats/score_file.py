"""Scores of images and texts as they are stored: one Parquet file per scorer and shard, and what made them.

scores/SCORER/NNNNN-ID.parquet (SCORES): one row per image of shard NNNNN, in the order of the uids. A scorer of images
fills `image`, one of texts `texts`: the raw texts, whose name is `raw`, then the long texts that exist, by captioner,
each with the scores of its sub-captions in order. A null is a text without a score, such as a blank one. Without any
score, `error` says why.

ID identifies everything that the scores depend on, so scores of other texts or images have another name.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.subcaptions import SplitMode

RAW = "raw"
"""The name of each raw text of an image. The other texts have the name of their captioner."""
ENDING = ".parquet"

_TEXT = pa.struct([("name", pa.string()), ("score", pa.float32()), ("pieces", pa.list_(pa.float32()))])
SCORES = pa.schema(
    [
        ("uid", pa.string()),
        ("sha256", pa.string()),
        ("image", pa.float32()),
        ("texts", pa.list_(_TEXT)),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class ScorerRecord:
    """scorer.json: what makes the scores in a scorer's folder."""

    id: str
    """Identifies the scorer and all of its settings."""
    kind: str
    scores: Literal["texts", "images"]
    """What it scores."""
    better: Literal["higher", "lower"]
    """Which scores are better."""
    dataset_wide: bool
    """Whether a score depends on all images and texts of the run."""
    sub_captions: SplitMode
    """The rule that split the long texts."""
    captioners: dict[str, str]
    """Ids of the captioners whose texts are scored, by name."""
    settings: dict[str, Any]
    """The settings and the digests that `id` covers, for people."""

    @property
    def scores_texts(self) -> bool:
        return self.scores == "texts"


@dataclass(frozen=True)
class FrequentText:
    """A text that many images have, as its first image has it."""

    role: Literal["raw", "text", "sub_caption"]
    text: str
    images: int
    name: str
    """RAW, or the captioner of the example."""
    uid: str
    """An image that has the text."""


@dataclass(frozen=True)
class ScoreSummary:
    """summary.json: what a scorer that compares shards tells people about the whole run."""

    frequent: list[FrequentText]
    """The most frequent texts, from the most frequent one on."""


def read_summary(run: Run, name: str) -> ScoreSummary | None:
    """What a scorer tells about the whole run; None if it tells nothing. Raises UserError if it is damaged."""
    url = run.score_summary(name)
    try:
        return artifacts.read_json(url, f"Remove {url}; `lotlip-data score` writes it with new scores.", ScoreSummary)
    except FileNotFoundError:
        return None


def scorers(run: Run) -> list[str]:
    """Names of the scorers that have a folder in the run, sorted."""
    return [name for name in storage.list_names(run.scores) if not name.startswith(".")]


def read_scorer(run: Run, name: str) -> ScorerRecord | None:
    """What makes the scores of a scorer; None if it has not started. Raises UserError if the record is damaged."""
    url = run.scorer_settings(name)
    try:
        return artifacts.read_json(url, f"Remove {url} and run `lotlip-data score` again.", ScorerRecord)
    except FileNotFoundError:
        return None


def read_scores(run: Run, name: str, file: str) -> pa.Table:
    """The scores in a file, with the columns of SCORES. Raises UserError if it is missing or damaged."""
    url = run.score_file(name, file)
    return artifacts.read_parquet(url, remedy(url), SCORES.names)


def remedy(url: str) -> str:
    """How to get a file of scores back. Without the removal, `score` takes it for one that is made."""
    return f"Remove {url} and run `lotlip-data score` again."
