"""Kinds of scorers, and how an entry of a manifest becomes a scorer.

A further kind is either a line in `_KINDS` or, from another package, an entry point in the group `ENTRY_POINTS`.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import unknown_name
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.pipeline.scoring.base import DatasetScorer, ShardScorer

ENTRY_POINTS = "lotlip_data.scorers"

_KINDS = {
    "similarity": "similarity:Similarity",
    "agreement": "agreement:Agreement",
    "repetition": "repetition:Repetition",
    "placeholder": "placeholders:Placeholder",
    "classifier": "classifier:Classifier",
}
"""Module of this package, and class. A module is imported when its kind is asked for, so the list needs no torch."""


@cache
def get_scorer_kind(kind: str) -> Any:
    """Return the class of a kind: a built-in one, or one that an installed package registers as an entry point.

    Raises:
        UserError: The kind is unknown; the message lists the known ones. Or its package cannot be imported.
    """
    if kind in _KINDS:
        module, _, name = _KINDS[kind].partition(":")
        return getattr(import_module(f"lotlip_data.pipeline.scoring.{module}"), name)
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in plugins:
        known = unknown_name(kind, [*_KINDS, *sorted(plugins)])
        raise UserError(
            f"scorer kind {known}. Another package adds a kind through an entry point in the group {ENTRY_POINTS!r}"
        )
    try:
        return plugins[kind].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"scorer kind {kind!r}: its package cannot be imported ({error})") from error


def load_scorer(entry: ScorerEntry, device: str | None = None) -> ShardScorer | DatasetScorer:
    """Make the scorer of an entry. No model is loaded yet.

    Args:
        entry: The entry.
        device: Where a model computes, as torch names it. Default: a GPU if there is one.

    Raises:
        UserError: The kind is unknown, an option is wrong, or a model is missing or superfluous.
    """
    where = f"scorer {entry.label!r}"
    kind = get_scorer_kind(entry.kind)
    if kind.needs_model and entry.model is None:
        raise UserError(f"{where}: kind {entry.kind!r} needs a model; add `model`, a folder or a hub id")
    if not kind.needs_model and entry.model is not None:
        raise UserError(f"{where}: kind {entry.kind!r} has no model; leave out `model`")
    options = kind.settings_type.parse(entry.options, f"{where}: options")
    scorer: ShardScorer | DatasetScorer = kind(entry.model, options, device)
    return scorer
