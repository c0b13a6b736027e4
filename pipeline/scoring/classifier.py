"""Gives images a probability from a small network over image features: `classifier`, for safety or watermarks.

LAION's CLIP-based NSFW detector works like this: a small network, trained on labelled images, reads the features of a
CLIP. Here the features come from any model that `lotlip-data eval` loads, and the network is a file of yours. LAION's
own files are not read, since they have another layout.

The file is a safetensors or npz file with the names that torch gives to `nn.Linear` (`weight`, `bias`) or to an
`nn.Sequential` of `nn.Linear` and `nn.ReLU` (`0.weight`, `0.bias`, `2.weight`, …). A weight has the shape [outputs,
inputs], a bias [outputs]. There is a ReLU between two layers. Features have the length 1 when they enter; a
normalisation by mean and deviation can be part of the first layer. One output gives its sigmoid; of several outputs,
the softmax of the one that `output` names.

Shapes: N images, D feature dimensions.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.settings.base import Settings
from lotlip_data.pipeline.scoring.base import ImageScores, ScoredImage
from lotlip_data.pipeline.scoring.image_features import NOT_FINITE, FeatureStore

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.models import Embedder

BATCH_SIZE = 64
_NAME = re.compile(r"(?:(\d+)\.)?(weight|bias)")
Layer = tuple[np.ndarray, np.ndarray]
"""Weight, float32 [outputs, inputs], and bias, float32 [outputs]."""


class ClassifierOptions(Settings):
    """Options of the kind `classifier`."""

    head: str
    """The file of the network: a path or URL that ends in .safetensors or .npz."""
    output: Annotated[int, Field(ge=0)] | None = None
    """The output whose probability is the score, from 0 on. Needed if the network has more than one."""


class Classifier:
    """Scores images by a probability. The higher it is, the surer is what the network was trained to find."""

    scores: ClassVar[Literal["texts", "images"]] = "images"
    reads_images: ClassVar[bool] = True
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    needs_model: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = ClassifierOptions

    def __init__(self, model: str | None, options: ClassifierOptions, device: str | None = None) -> None:
        if model is None:
            raise UserError("a classifier needs a model of image features")
        self.model, self.options, self._device = model, options, device
        self._identity: dict[str, Any] | None = None
        self._loaded: tuple[Embedder, Head] | None = None
        self.features = FeatureStore()
        """Where the features of images are kept; the stage sets that of a shard."""

    @property
    def identity(self) -> dict[str, Any]:
        """Digests of the model and of the head. The first call loads both, on the CPU."""
        if self._identity is None:
            embedder, head = self._load("cpu")
            self._identity = {
                "version": 1,
                "model": embedder.identity,
                "head": head.identity,
                "output": self.options.output,
            }
        return self._identity

    def score(self, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        """See ShardScorer. An image that cannot be decoded, or whose features are not finite, gets the reason."""
        if self._loaded is None:
            self._loaded = self._load(self._device)
        embedder, head = self._loaded
        for batch in batched(images, BATCH_SIZE):
            features = self.features.unit_features(embedder, batch)
            known = [feature for feature in features if not isinstance(feature, str)]
            values = iter(head.probabilities(np.stack(known)).tolist() if known else [])
            for feature in features:
                yield ImageScores(error=feature) if isinstance(feature, str) else _scores(next(values))

    @property
    def image_identity(self) -> str:
        """Identifies the features of images, as they are stored. Loads the model."""
        if self._loaded is None:
            self._loaded = self._load(self._device)
        return self._loaded[0].image_identity

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_loaded": None,
            "features": FeatureStore(),
        }  # each task loads the model on its own device

    def _load(self, device: str | None) -> tuple["Embedder", "Head"]:
        from PIL import Image

        from lotlip_data.training.evaluation.models import load_embedder

        head = Head.load(self.options)
        embedder = load_embedder(self.model, device)
        dimensions = embedder.image_features([Image.new("RGB", (64, 64))]).shape[1]
        if dimensions != head.inputs:
            raise UserError(
                f"{self.options.head}: reads {head.inputs} features, but {self.model} has {dimensions}; name the model "
                "that the head was trained with"
            )
        return embedder, head


class Head:
    """The network over the features."""

    def __init__(self, layers: Sequence[Layer], output: int | None, identity: str) -> None:
        self._layers, self._output = layers, output
        self.identity = identity
        """The sha256 of the file."""
        self.inputs = layers[0][0].shape[1]

    @classmethod
    def load(cls, options: ClassifierOptions) -> "Head":
        """Read the file. Raises UserError if it cannot be read, or if names, shapes or values are wrong."""
        try:
            content = storage.read_bytes(options.head)
        except OSError as error:
            raise UserError(f"{options.head}: cannot be read ({error})") from error
        layers = _layers(options.head, _arrays(options.head, content))
        outputs = len(layers[-1][1])
        if options.output is None and outputs > 1:
            raise UserError(f"{options.head}: has {outputs} outputs; name one with `output`, from 0 to {outputs - 1}")
        if options.output is not None and options.output >= outputs:
            raise UserError(f"{options.head}: `output: {options.output}`: the last output is {outputs - 1}")
        return cls(layers, options.output, hashlib.sha256(content).hexdigest())

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float64 [N] from float32 [N, D]."""
        for index, (weight, bias) in enumerate(self._layers):
            features = (np.maximum(features, 0) if index else features) @ weight.T + bias
        logits = features.astype(np.float64)
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)  # the softmax of 0 and x is the sigmoid
            return _softmax(logits)[:, 1]
        return _softmax(logits)[:, self._output or 0]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def _arrays(name: str, content: bytes) -> dict[str, np.ndarray]:
    """The arrays of the file. Raises UserError if it is damaged or of another format."""
    try:
        if name.endswith(".npz"):
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return dict(arrays)
        if name.endswith(".safetensors"):
            from safetensors import SafetensorError
            from safetensors.torch import load

            try:
                return {key: tensor.float().numpy() for key, tensor in load(content).items()}
            except SafetensorError as error:
                raise ValueError(str(error)) from error
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: is damaged or no such file ({error}); write it again") from error
    raise UserError(f"{name}: the network must be a .safetensors or .npz file")


def _layers(name: str, arrays: dict[str, np.ndarray]) -> list[Layer]:
    """The layers in order. Raises UserError if names, shapes or values are wrong."""
    expected = "expected `weight` and `bias`, or `0.weight`, `0.bias`, `2.weight`, …"
    if other := [key for key in arrays if not _NAME.fullmatch(key)]:
        raise UserError(f"{name}: has an array {other[0]!r}; {expected}")
    prefixes = sorted({key.rpartition(".")[0] for key in arrays}, key=lambda prefix: int(prefix or -1))
    if not prefixes or (prefixes[0] == "" and len(prefixes) > 1):
        raise UserError(f"{name}: has no layers, or layers with and without a number; {expected}")
    layers = [_layer(name, f"{prefix}." if prefix else "", arrays) for prefix in prefixes]
    for prefix, (before, _), (weight, _) in zip(prefixes[1:], layers, layers[1:], strict=False):
        if weight.shape[1] != len(before):
            raise UserError(
                f"{name}: `{prefix}.weight` reads {weight.shape[1]} values, but the layer before it has {len(before)}"
            )
    return layers


def _layer(name: str, prefix: str, arrays: dict[str, np.ndarray]) -> Layer:
    missing = [key for key in (f"{prefix}weight", f"{prefix}bias") if key not in arrays]
    if missing:
        raise UserError(f"{name}: has no `{missing[0]}`")
    weight, bias = arrays[f"{prefix}weight"], arrays[f"{prefix}bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not weight.size:
        raise UserError(
            f"{name}: `{prefix}weight` has the shape {list(weight.shape)} and `{prefix}bias` {list(bias.shape)}; "
            "expected [outputs, inputs] and [outputs]"
        )
    for array in (weight, bias):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(f"{name}: `{prefix}weight` or `{prefix}bias` has values that are not finite numbers")
    return weight.astype(np.float32), bias.astype(np.float32)


def _scores(probability: float) -> ImageScores:
    if np.isfinite(probability):
        return ImageScores(image=probability)
    return ImageScores(error=NOT_FINITE)
