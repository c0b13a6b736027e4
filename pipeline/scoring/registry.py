"""Finds a scorer by its kind."""

from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.pipeline.scoring.base import Scorer


def load_scorer(entry: ScorerEntry, device: str | None = None) -> Scorer:
    raise NotImplementedError
