"""Features of images for scorers: computed once for each image of a run, whatever scores them.

Shapes: D feature dimensions.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.scoring.base import ScoredImage

if TYPE_CHECKING:
    from PIL import Image

    from lotlip_data.training.data.image_features import FeaturesByImage
    from lotlip_data.training.evaluation.models import Embedder

NOT_FINITE = "its features are not finite numbers"


class FeatureStore:
    """The features of one shard's images, by model. Without a run, nothing is stored.

    Stored features are float16, and those that are computed are rounded to it too, so that a score does not depend on
    where its features come from.
    """

    def __init__(self, run: Run | None = None, shard: int = 0) -> None:
        self._run, self._shard = run, shard
        self._file = ""
        self._known: dict[str, FeaturesByImage] = {}
        """By model, what is stored and what was computed since."""
        self._stored: dict[str, int] = {}
        """By model, the number of stored features."""
        if run is not None:
            from lotlip_data.training.data.image_features import file_of

            self._file = file_of(shard, digest(ledger.images_file(ledger.read_image_stats(run, shard))))

    def has_all(self, model: str, images: Iterable[str]) -> bool:
        """Whether a model's features of all images, given by their sha256, are stored."""
        return self._read(model).keys() >= set(images)

    def unit_features(self, embedder: "Embedder", images: Sequence[ScoredImage]) -> list[np.ndarray | str]:
        """For each image its unit feature, float32 [D], or the reason why it has none."""
        known = self._read(embedder.image_identity) if self._run is not None else {}
        features = [known.get(image.sha256) for image in images]
        decoded = {index: decode_image(images[index].content) for index, found in enumerate(features) if found is None}
        readable = {index: image for index, image in decoded.items() if not isinstance(image, str)}
        if readable:
            computed = embedder.image_features(readable.values()).numpy()
            for index, feature in zip(readable, computed, strict=True):
                features[index] = feature
                if self._run is not None:
                    features[index] = known[images[index].sha256] = feature.astype(np.float16)
        return [str(decoded[index]) if found is None else _unit(found) for index, found in enumerate(features)]

    def save(self) -> None:
        """Store what was computed."""
        from lotlip_data.training.data.image_features import write_features

        for model, known in self._known.items():
            if self._run is not None and len(known) > self._stored[model]:
                write_features(self._run, model, self._file, known)

    def _read(self, model: str) -> "FeaturesByImage":
        from lotlip_data.training.data.image_features import read_features

        if model not in self._known:
            self._known[model] = read_features(self._run, model, self._file) if self._run is not None else {}
            self._stored[model] = len(self._known[model])
        return self._known[model]


@runtime_checkable
class UsesImageFeatures(Protocol):
    """A scorer whose features of images are kept with the run. If all of a shard are there, no image is read."""

    features: FeatureStore

    @property
    def image_identity(self) -> str:
        """Identifies the features of images, as they are stored."""


def _unit(feature_D: np.ndarray) -> np.ndarray | str:
    feature_D = feature_D.astype(np.float32)
    norm = float(np.linalg.norm(feature_D))
    return feature_D / norm if np.isfinite(norm) and norm else NOT_FINITE


def decode_image(content: bytes) -> "Image.Image | str":
    """The image in RGB, upright; or why it cannot be decoded."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return f"cannot be decoded: {error}"
