"""Checks what a manifest says about scores: its rules, its weights, and the columns that the dataset gets.

A wrong name costs a second before the download, and hours of scoring after it. So these checks need no score.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import SCORE
from lotlip_data.manifests.manifest import Manifest


class Scores(Protocol):
    """What the checks need of a scorer, or of the record of one."""

    @property
    def scores(self) -> Literal["texts", "images"]: ...

    @property
    def better(self) -> Literal["higher", "lower"]: ...


def combined_weights(manifest: Manifest, scorers: Mapping[str, Scores]) -> dict[str, float]:
    """By scorer of texts, its weight in the combined score; negative if lower scores are better."""
    signs = {name: 1 if s.better == "higher" else -1 for name, s in scorers.items() if s.scores == "texts"}
    weights = manifest.shard.score_weights or {name: 1.0 for name, sign in signs.items() if sign == 1}
    return {name: sign * weights.get(name, 0.0) for name, sign in signs.items()}


def check_columns(manifest: Manifest, scorers: Mapping[str, Scores], captioners: Iterable[str]) -> None:
    """Raise UserError if a scorer's column would have the name of another one in a dataset of these captioners."""
    json_columns = {name: form.column_types for name, form in manifest.structured_outputs.items()}
    try:
        schema.dataset(captioners, json_columns, {name: scorer.scores for name, scorer in scorers.items()})
    except ValueError as error:
        raise UserError(str(error)) from None


def check_rules(manifest: Manifest, scorers: Mapping[str, Scores]) -> None:
    """Raise UserError if a rule or a weight names a scorer that there is not, or that scores something else."""
    if not scorers and manifest.clean.scores:
        raise UserError("`clean.scores`: the manifest has no `scores`; add the scorers that the rules name")
    weights = combined_weights(manifest, scorers)
    if unknown := sorted(set(manifest.shard.score_weights) - set(weights)):
        known = f"they are {', '.join(weights)}" if weights else "the manifest has none"
        raise UserError(f"`shard.score_weights`: {unknown[0]} is no scorer of texts; {known}")
    for place, rule in enumerate(manifest.clean.scores):
        where = f"`clean.scores.{place}`"
        if rule.score == SCORE and not weights:
            raise UserError(f"{where}: the manifest has no scorer of texts, so there is no combined score")
        if rule.score == SCORE and not any(weights.values()):
            raise UserError(
                f"{where}: no scorer has a weight in the combined score, since counts have none by themselves; set "
                f"`shard.score_weights`, such as `{{{next(iter(weights))}: 1}}`, or name a scorer in the rule"
            )
        if rule.score != SCORE and rule.score not in scorers:
            known = ", ".join([*scorers, *([SCORE] if weights else [])])
            raise UserError(f"{where}: there is no scorer {rule.score}; the manifest has {known}")
        if rule.of != "samples" and rule.score != SCORE and rule.score not in weights:
            raise UserError(f"{where}: {rule.score} scores images, so the rule is `of: samples`")
