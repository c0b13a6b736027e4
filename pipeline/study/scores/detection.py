"""How well scores find wrong sub-captions: the area under the ROC curve.

A sub-caption is wrong if the writer would not write it about the scene as it is. A statement is a sub-caption that
describes an object; the error rate is that of statements. The other sub-captions count objects or name rows, sizes and
colours, and are wrong if an error changes these.

Shapes: N sub-captions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lotlip_data.pipeline.dataset.calibration import auc_and_error
from lotlip_data.pipeline.dataset.score_tally import Moments
from lotlip_data.pipeline.dataset.scores import ScoreRecipe, Standard
from lotlip_data.pipeline.scoring.agreement import Agreement, AgreementOptions
from lotlip_data.pipeline.scoring.base import ImageScores, ImageText, ScoredImage, ShardScorer, TextScore
from lotlip_data.pipeline.scoring.image_features import FeatureStore
from lotlip_data.pipeline.scoring.similarity import Similarity
from lotlip_data.pipeline.study.scores.data import Texts, sub_captions
from lotlip_data.synthetic.caption_facts import text_facts
from lotlip_data.synthetic.scenes import Scene

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.models import Embedder


def auc(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """The probability that a right sub-caption has a higher score than a wrong one. Equal scores count half.

    Args:
        scores: float [N].
        wrong: bool [N].

    Returns:
        None if all are right, or all are wrong.
    """
    return auc_and_error(scores, ~wrong)[0]


@dataclass(frozen=True)
class TextScores:
    """The combined scores of all texts, and those of each scorer for all sub-captions."""

    by_text: list[dict[str, tuple[float, list[float]]]]
    """For each scene, by writer: the mean score of the text's sub-captions, and their scores."""
    by_scorer: dict[str, np.ndarray]
    """By scorer, float64 [N], in the order of scenes, writers and sub-captions; `combined` among them."""


class _GivenFeatures(FeatureStore):
    """Image features that are there already, float32 [images, D]. Image i has the uid i."""

    def __init__(self, features: np.ndarray) -> None:
        super().__init__()
        self._features = features

    def unit_features(self, embedder: "Embedder", images: Sequence[ScoredImage]) -> list[np.ndarray | str]:
        return [self._features[int(image.uid)] for image in images]


def score_texts(
    model: str, texts: Sequence[Texts], features: np.ndarray, weights: dict[str, float], neighbours: int
) -> TextScores:
    """Score all texts by the scorers of the product with a trained model.

    Args:
        model: The model's folder.
        texts: For each scene the sub-captions of each writer.
        features: float32 [scenes, D], unit features of the images by the model's image tower.
        weights: The weights of the scorers in the combined score.
        neighbours: The option of agreement.
    """
    images = [_image(index, by_writer) for index, by_writer in enumerate(texts)]
    similarity = Similarity(model, None, "cpu")
    similarity.features = _GivenFeatures(features)
    scorers: dict[str, ShardScorer] = {
        "similarity": similarity,
        "agreement": Agreement(model, AgreementOptions(neighbours=neighbours), "cpu"),
    }
    scored = {name: list(scorer.score(images)) for name, scorer in scorers.items()}
    by_scorer = {name: _floats(each for text in _texts(of) for each in text.pieces) for name, of in scored.items()}
    combined = _combine(by_scorer, weights)
    rest = iter(combined.tolist())
    by_text = [
        {writer: _with_mean([next(rest) for _ in pieces]) for writer, pieces in by_writer.items()}
        for by_writer in texts
    ]
    return TextScores(by_text, by_scorer | {"combined": combined})


def _combine(by_scorer: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """float64 [N], the combined scores, as the stage `shard` computes them."""
    moments = {name: Moments.of(values) for name, values in by_scorer.items()}
    standards = {name: Standard(of.mean, of.deviation, weights[name]) for name, of in moments.items()}
    recipe = ScoreRecipe(standards={"sub_captions": standards})
    rows = zip(*(values.tolist() for values in by_scorer.values()), strict=True)
    return _floats(recipe.combine("sub_captions", dict(zip(by_scorer, row, strict=True))) for row in rows)


def labels(scenes: Sequence[Scene], texts: Sequence[Texts]) -> tuple[np.ndarray, np.ndarray]:
    """bool [N] each: whether a sub-caption is wrong, and whether it is a statement."""
    wrong, statement = [], []
    for scene, by_writer in zip(scenes, texts, strict=True):
        for writer, truth in sub_captions(scene, 0.0).items():
            wrong += [piece not in truth for piece in by_writer[writer]]
            statement += [bool(text_facts(piece)) for piece in by_writer[writer]]
    return np.array(wrong), np.array(statement)


def detection_figures(scores: TextScores, wrong: np.ndarray, statement: np.ndarray) -> dict[str, float | None]:
    """Per scorer the AUC of all sub-captions and of statements; and the shares of both that are wrong, in percent."""
    figures: dict[str, float | None] = {
        "wrong.all": 100 * float(wrong.mean()),
        "wrong.statements": 100 * float(wrong[statement].mean()),
    }
    for name, values in scores.by_scorer.items():
        figures[f"auc.{name}.all"] = auc(values, wrong)
        figures[f"auc.{name}.statements"] = auc(values[statement], wrong[statement])
    return figures


def _with_mean(scores: list[float]) -> tuple[float, list[float]]:
    return sum(scores) / len(scores), scores


def _image(index: int, texts: Texts) -> ScoredImage:
    """The sub-captions of a scene alone: whole texts need no score."""
    return ScoredImage(str(index), "", b"", tuple(ImageText(name, "", tuple(of)) for name, of in texts.items()))


def _texts(images: Iterable[ImageScores]) -> Iterator[TextScore]:
    for image in images:
        assert image.error is None, image.error
        yield from image.texts


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])
