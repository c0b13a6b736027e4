"""Measures how well texts fit their image: `similarity`, the cosine of image and text features.

The model is any that `lotlip-data eval` loads. Raw texts, long texts and sub-captions are scored. A long text that
exceeds the model's limit would be truncated, so it has the mean of its sub-captions' scores.

Shapes: N images or texts, D feature dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.settings.base import Settings
from lotlip_data.pipeline.scoring.base import RAW, ImageScores, ImageText, ScoredImage, TextScore
from lotlip_data.pipeline.scoring.image_features import NOT_FINITE, FeatureStore

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.models import Embedder

IMAGES_AT_A_TIME = 64


class SimilarityOptions(Settings):
    """Options of the kind `similarity`; there are none."""


class Similarity:
    """Scores raw texts, long texts and sub-captions by their cosine with the image, from -1 to 1."""

    scores: ClassVar[Literal["texts", "images"]] = "texts"
    reads_images: ClassVar[bool] = True
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    needs_model: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = SimilarityOptions

    def __init__(self, model: str | None, options: SimilarityOptions | None = None, device: str | None = None) -> None:
        if model is None:
            raise UserError("similarity needs a model of images and texts, as for `lotlip-data eval`")
        self.model, self.options, self._device = model, options or SimilarityOptions(), device
        self._identity: dict[str, Any] | None = None
        self._loaded: Embedder | None = None
        self.features = FeatureStore()
        """Where the features of images are kept; the stage sets that of a shard."""

    @property
    def identity(self) -> dict[str, Any]:
        """The digest of the model. The first call loads it, on the CPU."""
        if self._identity is None:
            self._identity = {"version": 1, "model": (self._loaded or self._load("cpu")).identity}
        return self._identity

    def score(self, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        """See ShardScorer. An image that cannot be decoded, or whose features are not finite, gets the reason."""
        if self._loaded is None:
            self._loaded = self._load(self._device)
        for batch in batched(images, IMAGES_AT_A_TIME):
            features = self.features.unit_features(self._loaded, batch)
            readable = [image for image, feature in zip(batch, features, strict=True) if not isinstance(feature, str)]
            texts = TextCosines(self._loaded, readable)
            for image, feature in zip(batch, features, strict=True):
                yield ImageScores(error=feature) if isinstance(feature, str) else texts.score(image, feature)

    @property
    def image_identity(self) -> str:
        """Identifies the features of images, as they are stored. Loads the model."""
        if self._loaded is None:
            self._loaded = self._load(self._device)
        return self._loaded.image_identity

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_loaded": None,
            "features": FeatureStore(),
        }  # each task loads the model on its own device

    def _load(self, device: str | None) -> "Embedder":
        from lotlip_data.training.evaluation.models import load_embedder

        return load_embedder(self.model, device)


class TextCosines:
    """The features of the texts of a batch of images, each distinct text embedded once."""

    def __init__(self, embedder: "Embedder", images: Sequence[ScoredImage]) -> None:
        self._limit = embedder.context_length
        texts = list(dict.fromkeys(text for image in images for text in _texts_of(image)))
        embedded = embedder.embed_texts(texts)
        self._features = dict(zip(texts, embedded.features.numpy(), strict=True)) if texts else {}
        self._lengths = dict(zip(texts, embedded.lengths, strict=True)) if texts else {}

    def score(self, image: ScoredImage, feature_D: np.ndarray) -> ImageScores:
        """The cosines of an image and its texts, or the reason why there are none."""
        texts = list(dict.fromkeys(_texts_of(image)))
        if not texts:
            return ImageScores(texts=tuple(TextScore(None, (None,) * len(text.pieces)) for text in image.texts))
        cosines = np.stack([self._features[text] for text in texts]) @ feature_D
        if not np.isfinite(cosines).all():
            return ImageScores(error=NOT_FINITE)
        cosine_of = dict(zip(texts, cosines.tolist(), strict=True))
        return ImageScores(texts=tuple(self._score_text(text, cosine_of) for text in image.texts))

    def _score_text(self, text: ImageText, cosine_of: dict[str, float]) -> TextScore:
        pieces = tuple(cosine_of.get(piece) for piece in text.pieces)
        score = cosine_of.get(text.text)
        known = [piece for piece in pieces if piece is not None]
        if text.name != RAW and score is not None and known and self._lengths[text.text] > self._limit:
            score = sum(known) / len(known)
        return TextScore(score, pieces)


def _texts_of(image: ScoredImage) -> Iterator[str]:
    """The texts and sub-captions of an image that are not blank."""
    for text in image.texts:
        yield from (each for each in (text.text, *text.pieces) if each.strip())
