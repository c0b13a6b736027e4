"""The manifest's `scores` section: the scorers of images and texts; and the rules of `clean.scores` on their scores.

    scores:
      - {kind: similarity, model: runs/mine/train/lotlip/model}
      - {kind: agreement, model: sentence-transformers/all-MiniLM-L6-v2}
      - {name: boilerplate, kind: repetition}

    clean:
      scores:
        - {score: similarity, of: sub_captions, below: 0.15}
        - {score: agreement, of: texts, lowest: 0.1}
        - {score: boilerplate, of: sub_captions, above: 1000}

`kind` is an open set: another package adds one through an entry point, so `pipeline.scoring.registry` checks it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lotlip_data.manifests.settings.base import ListEntry, Name, SparseSettings

Share = Annotated[float, Field(gt=0, lt=1)]


class ScorerEntry(ListEntry):
    """One scorer of a manifest."""

    shorthand = "kind"

    kind: Name
    """What is scored: similarity, agreement, repetition, placeholder, classifier, or a kind of another package."""
    name: Name | None = None
    """Name of the scorer's folder in `RUN/scores`, and of its columns. Default: the kind."""
    model: str | None = None
    """Model that the kind needs: as for `lotlip-data eval`, or a sentence encoder; a folder or a hub id."""
    options: dict[str, Any] = {}
    """Settings of the kind."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs that Ray reserves per task. Default: half a GPU for a scorer with a model where the cluster has GPUs."""

    @property
    def label(self) -> str:
        """The name of the scorer."""
        return self.name or self.kind


class ScoreRule(SparseSettings):
    """What is left out because of its score. A text or an image without a score stays."""

    score: Name
    """Name of the scorer; `score` is the combined score."""
    of: Literal["sub_captions", "texts", "raw", "samples"]
    """What is left out: sub-captions of long texts, whole long texts, raw texts, or samples. A sample is left out by
    the score of its image, or if none of its long texts passes."""
    below: float | None = None
    """Leave out what has a lower score."""
    above: float | None = None
    """Leave out what has a higher score."""
    lowest: Share | None = None
    """Leave out this share of the dataset: what has the lowest scores."""
    highest: Share | None = None
    """Leave out this share of the dataset: what has the highest scores."""

    @model_validator(mode="after")
    def _check_limit(self) -> "ScoreRule":
        limits = [name for name in ("below", "above", "lowest", "highest") if getattr(self, name) is not None]
        if len(limits) != 1:
            given = " and ".join(limits) or "none"
            raise ValueError(f"give one of `below`, `above`, `lowest` and `highest`; this rule has {given}")
        return self
