"""Measures how far captioners agree: `agreement`, which finds statements that one captioner alone makes.

The score of a sub-caption is its support by the long texts of the other captioners of the image. The support by one of
them is 1 - angle / 90°, with the smallest angle between the sub-caption's feature and those of that text's
sub-captions: 1 for equal features, 0 for orthogonal ones. (Cosines of sub-captions that mean the same are all close to
1; angles tell them apart.) Of several other captioners the best support counts, or the mean. The score of a long text
is the mean of its sub-captions' scores. A raw text has the support of all long texts. The images are not read, so an
error that captioners share is not found.

Captioners differ in what they write about. A sub-caption on the mood of a picture has little support where no other
captioner mentions moods, right or wrong. With `neighbours`, the mean support of the most similar sub-captions that the
same captioner wrote about other images of the shard is subtracted, so that such a sub-caption scores about 0. The
features of a shard's sub-captions are then in memory: 2 bytes × D each.

The model is an encoder of sentences (see `sentence_encoder`), or the text tower of a model that `lotlip-data eval`
loads. A LoTLIP that was trained on the captions has learned which words of different captioners mean the same.

Shapes: P sub-captions of an image, N sub-captions of a shard, R references, D feature dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints.model_folder import CONFIG, CheckpointError, parse_config
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.settings.base import Settings
from lotlip_data.pipeline.scoring.base import RAW, ImageScores, ImageText, ScoredImage, TextScore

IMAGES_AT_A_TIME = 64
REFERENCES = 4096
"""The most sub-captions of a captioner, spread over the shard, among which neighbours are searched."""
_ROWS_PER_BLOCK = 1024
NOT_FINITE = "a text's features are not finite numbers"
NO_OTHER = "fewer than two captioners have a text"


class AgreementOptions(Settings):
    """Options of the kind `agreement`."""

    others: Literal["best", "mean"] = "best"
    """Whose support counts: that of the captioner who agrees best, or the mean of all others."""
    neighbours: Annotated[int, Field(ge=0)] = 0
    """Number of similar sub-captions of other images whose mean support is subtracted; 0 for none. 30 is a good one, in
    shards of hundreds of images."""


class TextEncoder(Protocol):
    """What makes features of texts."""

    @property
    def identity(self) -> str:
        """A digest of everything that features depend on."""

    def embed(self, texts: Sequence[str]) -> Any:
        """float32 [N, D] with unit rows, a tensor on the CPU."""


class Agreement:
    """Scores raw texts, long texts and sub-captions by their support, from -1 to 1."""

    scores: ClassVar[Literal["texts", "images"]] = "texts"
    reads_images: ClassVar[bool] = False
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    needs_model: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = AgreementOptions

    def __init__(self, model: str | None, options: AgreementOptions | None = None, device: str | None = None) -> None:
        if model is None:
            raise UserError("agreement needs a model: an encoder of sentences, or a model as for `lotlip-data eval`")
        self.model, self.options, self._device = model, options or AgreementOptions(), device
        self._identity: dict[str, Any] | None = None
        self._loaded: TextEncoder | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The digest of the model, and the options. The first call loads the model, on the CPU."""
        if self._identity is None:
            encoder = self._loaded or load_text_encoder(self.model, "cpu")
            self._identity = {"version": 1, "model": encoder.identity, **self.options.model_dump()}
        return self._identity

    def score(self, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        """See ShardScorer. An image without two long texts of different captioners gets the reason."""
        if self._loaded is None:
            self._loaded = load_text_encoder(self.model, self._device)
        if self.options.neighbours:
            yield from self._score_relatively(self._loaded, images)
        else:
            yield from (scores for _, scores, _ in self._score_plainly(self._loaded, images))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}  # each task loads the model on its own device

    def _score_plainly(
        self, encoder: TextEncoder, images: Iterable[ScoredImage]
    ) -> Iterator[tuple[ScoredImage, ImageScores, dict[str, np.ndarray]]]:
        """Each image with its scores, and the features of the texts of its batch."""
        for batch in batched(images, IMAGES_AT_A_TIME):
            texts = list(dict.fromkeys(text for image in batch for text in _texts_of(image)))
            features = np.asarray(encoder.embed(texts)) if texts else np.zeros((0, 1))
            feature_of = dict(zip(texts, features, strict=True))
            for image in batch:
                yield image, self._score(image, feature_of), feature_of

    def _score_relatively(self, encoder: TextEncoder, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        """The scores of the images of a shard, less the mean support of like sub-captions."""
        scored, rows = [], _Rows()
        for number, (image, scores, feature_of) in enumerate(self._score_plainly(encoder, images)):
            names = tuple(text.name for text in image.texts)
            scored.append((names, scores))
            for text, score in zip(image.texts, scores.texts, strict=False):  # none if the image has an error
                for piece, support in _scored_pieces(text, score):
                    rows.add(text.name, number, feature_of[piece], support)
        relative = rows.relative(self.options.neighbours)
        for names, scores in scored:
            texts = (
                _replaced(name == RAW, text, relative.get(name, iter(())))
                for name, text in zip(names, scores.texts, strict=False)
            )
            yield replace(scores, texts=tuple(texts))

    def _score(self, image: ScoredImage, feature_of: dict[str, np.ndarray]) -> ImageScores:
        pieces = {text.name: _pieces(text) for text in image.texts if text.name != RAW}
        features = {name: np.stack([feature_of[piece] for piece in of]) for name, of in pieces.items() if of}
        if len(features) < 2:
            return ImageScores(error=NO_OTHER)
        if not all(np.isfinite(feature_of[text]).all() for text in _texts_of(image)):
            return ImageScores(error=NOT_FINITE)
        return ImageScores(texts=tuple(self._score_text(text, features, feature_of) for text in image.texts))

    def _score_text(
        self, text: ImageText, features: dict[str, np.ndarray], feature_of: dict[str, np.ndarray]
    ) -> TextScore:
        if text.name == RAW:
            if not text.text.strip():
                return TextScore(None)
            return TextScore(float(self._support(feature_of[text.text][None], list(features.values()))[0]))
        own = features.get(text.name)
        if own is None:
            return TextScore(None, (None,) * len(text.pieces))
        support = self._support(own, [others for name, others in features.items() if name != text.name])
        scores = iter(support.tolist())
        return TextScore(float(support.mean()), tuple(next(scores) if piece.strip() else None for piece in text.pieces))

    def _support(self, own_PD: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
        """[P], the support of P sub-captions by other texts, given as the features of their sub-captions."""
        cosines = np.stack([(own_PD @ other.T).max(axis=1) for other in others])
        support = 1 - np.arccos(np.clip(cosines, -1, 1)) / (np.pi / 2)
        return support.max(axis=0) if self.options.others == "best" else support.mean(axis=0)


class _Rows:
    """The sub-captions of a shard that have a support, by captioner."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, np.ndarray, float]]] = {}

    def add(self, captioner: str, image: int, feature_D: np.ndarray, support: float) -> None:
        self._rows.setdefault(captioner, []).append((image, feature_D.astype(np.float16), support))

    def relative(self, neighbours: int) -> dict[str, Iterator[float]]:
        """By captioner, the support of each sub-caption less that of its neighbours, in the order of `add`."""
        return {name: iter(_less_neighbours(rows, neighbours).tolist()) for name, rows in self._rows.items()}


def _less_neighbours(rows: Sequence[tuple[int, np.ndarray, float]], neighbours: int) -> np.ndarray:
    """float64 [N], the support of each row less the mean of its neighbours of other images; itself without any."""
    images_N = np.array([image for image, _, _ in rows])
    support_N = np.array([support for _, _, support in rows])
    chosen_R = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), REFERENCES)).astype(np.int64))
    references_RD = np.stack([rows[index][1] for index in chosen_R]).astype(np.float32)
    count = min(neighbours, len(chosen_R))
    relative_N = support_N.copy()
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        block = slice(start, start + _ROWS_PER_BLOCK)
        cosines = np.stack([feature for _, feature, _ in rows[block]]).astype(np.float32) @ references_RD.T
        cosines[images_N[block, None] == images_N[chosen_R]] = -np.inf
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        is_other = np.isfinite(np.take_along_axis(cosines, nearest, axis=1))
        total = (support_N[chosen_R][nearest] * is_other).sum(axis=1)
        relative_N[block] -= total / np.maximum(1, is_other.sum(axis=1))
    return relative_N


def _scored_pieces(text: ImageText, score: TextScore) -> Iterator[tuple[str, float]]:
    """What has a support of its own: the raw text, or the sub-captions that are not blank."""
    parts = [(text.text, score.score)] if text.name == RAW else zip(text.pieces, score.pieces, strict=True)
    yield from ((part, support) for part, support in parts if support is not None)


def _replaced(is_raw: bool, score: TextScore, supports: Iterator[float]) -> TextScore:
    """The score with the next supports in place of its own."""
    if is_raw:
        return TextScore(None if score.score is None else next(supports))
    pieces = tuple(None if piece is None else next(supports) for piece in score.pieces)
    known = [piece for piece in pieces if piece is not None]
    return TextScore(sum(known) / len(known) if known else None, pieces)


def load_text_encoder(name: str, device: str | None = None) -> TextEncoder:
    """The encoder of sentences or the text tower of that name.

    Raises:
        UserError: There is no such model, or it cannot embed texts.
    """
    from lotlip_data.pipeline.scoring.sentence_encoder import SentenceEncoder
    from lotlip_data.training.evaluation.models import NAME_PREFIXES

    if name.startswith(NAME_PREFIXES) or _is_lotlip(name):
        return _TextTower(name, device)
    return SentenceEncoder(name, device)


class _TextTower:
    """The text tower of a model of images and texts."""

    def __init__(self, name: str, device: str | None) -> None:
        from lotlip_data.training.evaluation.models import load_embedder

        self._embedder = load_embedder(name, device)
        self.identity = self._embedder.identity

    def embed(self, texts: Sequence[str]) -> Any:
        return self._embedder.embed_texts(texts).features


def _is_lotlip(name: str) -> bool:
    """Whether it is the folder of a model of this project, also a damaged one."""
    url = storage.join(storage.normalise(name), CONFIG)
    try:
        return parse_config(storage.read_bytes(url), url) is not None
    except CheckpointError:
        return True
    except OSError:
        return "://" in name


def _pieces(text: ImageText) -> list[str]:
    return [piece for piece in text.pieces if piece.strip()]


def _texts_of(image: ScoredImage) -> Iterator[str]:
    """What is embedded of an image: the raw texts and the sub-captions that are not blank."""
    for text in image.texts:
        yield from [text.text] * bool(text.text.strip()) if text.name == RAW else _pieces(text)
