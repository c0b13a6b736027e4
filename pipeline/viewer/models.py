"""Trained models on the dataset: the images most similar to a text, and where in an image a text matches."""

import collections
import functools
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.features import ImageFeatures
from lotlip_data.pipeline.viewer.paging import Position
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.training.data.dataset import DataError
from lotlip_data.training.models.lotlip import LoTLIP
from lotlip_data.training.saliency import saliency

TOP_IMAGES = 24
"""Number of images that a search returns."""
CACHED_SEARCHES = 32
"""Number of searches per model that continue where they stopped."""
CACHED_MAPS = 64
"""Number of maps kept per model."""
MAP_PIXELS = 448
"""Width and height of a map."""
MAP_COLOURS = "inferno"
"""Name of the matplotlib colour map."""
MAP_OPACITY = 0.6
"""Opacity of the colour where the map is largest."""


@dataclass(frozen=True)
class Ranking:
    """The images most similar to a text, among the shards searched so far."""

    best: list[tuple[float, Position]]
    """Cosine similarity and position, the most similar first."""
    searched: int
    """Number of shards searched."""
    ready: int
    """Number of shards that have features."""
    shards: int
    """Number of shards of the dataset."""
    cut: bool
    """Whether the text was truncated to the model's context length."""
    damaged: list[str]
    """Shards whose features cannot be read, each with the reason."""


@dataclass(frozen=True)
class SearchState:
    """A search for a text with every model, as far as it has progressed."""

    text: str
    rankings: "list[tuple[Model, Ranking | None]]"
    """The ranking of each model; None without a text."""
    features: list[ImageFeatures]
    """The features that the models need, without repeats."""
    computing: bool
    """Whether features were being computed when the search continued."""

    @property
    def unfinished(self) -> bool:
        """Whether a later request may find more."""
        return self.computing or any(ranking.searched < ranking.ready for _, ranking in self.rankings if ranking)


@dataclass(frozen=True)
class SaliencyMap:
    """Where an image matches a text."""

    picture: bytes
    """PNG, MAP_PIXELS wide and high."""
    similarity: float
    """Cosine similarity of the image and the text."""
    cut: bool
    """Whether the text was truncated to the model's context length."""
    blank: bool
    """Whether no part of the image raises the similarity."""


@dataclass
class _Search:
    """The search for one text: the best images of the shards searched so far."""

    feature: np.ndarray
    """The text feature, float32 [D]."""
    cut: bool
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    positions: list[Position] = field(default_factory=list)
    searched: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)

    def add_shard(self, shard: int, features: np.ndarray) -> None:
        """Rank the images of one shard; features: float16 [samples, D], not normalised."""
        images = features.astype(np.float32)
        scores = images @ self.feature / np.maximum(np.linalg.norm(images, axis=1), 1e-12)
        top = np.argsort(-scores, kind="stable")[:TOP_IMAGES]
        scores = np.concatenate([self.scores, scores[top]])
        positions = self.positions + [Position(shard, int(row)) for row in top]
        order = sorted(range(len(positions)), key=lambda index: (-scores[index], positions[index]))[:TOP_IMAGES]
        self.scores, self.positions = scores[order], [positions[index] for index in order]


class Model:
    """A trained model. It computes for one request at a time."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._model = LoTLIP.load(url)
        self._model.towers.to("cuda" if torch.cuda.is_available() else "cpu")
        self._lock = threading.Lock()
        self._searches: collections.OrderedDict[str, _Search] = collections.OrderedDict()
        self._searched_features: ImageFeatures | None = None
        self._cached_map = functools.lru_cache(CACHED_MAPS)(self._draw_map)

    def features(self, run: Run, samples: Samples) -> ImageFeatures:
        """Return this model's image features of the dataset."""
        return ImageFeatures(run, samples, self._model.towers.image, self._model.transform)

    def rank(self, text: str, features: ImageFeatures, seconds: float) -> Ranking:
        """Continue the search for a text, for at most `seconds` plus one shard.

        Raises:
            UserError: The GPU is out of memory.
        """
        deadline = time.monotonic() + seconds
        missing = set(features.missing())
        ready = [shard for shard in range(features.shards) if shard not in missing]
        with self._exclusive():
            if features is not self._searched_features:  # positions of another dataset are not valid here
                self._searches.clear()
                self._searched_features = features
            search = self._get_search(text)
            for shard in ready:
                if shard in search.searched:
                    continue
                try:
                    search.add_shard(shard, features.read_shard(shard))
                except DataError as error:
                    search.damaged.append(str(error))
                search.searched.add(shard)
                if time.monotonic() >= deadline:
                    break
            best = list(zip(search.scores.tolist(), search.positions, strict=True))
            searched = len(search.searched)
        return Ranking(best, searched, len(ready), features.shards, search.cut, list(search.damaged))

    def map(self, image: bytes, text: str) -> SaliencyMap:
        """Return the map of a text over an image file's content.

        Raises:
            OSError: The content is not an image.
            ValueError: The content is not an image.
            UserError: The GPU is out of memory.
        """
        with self._exclusive():
            return self._cached_map(image, text)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock for one request. Raises UserError if the GPU runs out of memory."""
        with self._lock:
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{self.url}: {str(error).splitlines()[0]} Stop other programs on this GPU and repeat the request, "
                    "or start `lotlip-data view` with CUDA_VISIBLE_DEVICES= to compute on the CPU."
                ) from error

    def _get_search(self, text: str) -> _Search:
        if text in self._searches:
            self._searches.move_to_end(text)
        else:
            encoded = self._model.tokenizer.encode([text])
            self._searches[text] = _Search(self._model.embed_tokens(encoded)[0].numpy(), encoded.truncated[0])
            if len(self._searches) > CACHED_SEARCHES:
                self._searches.popitem(last=False)
        return self._searches[text]

    def _draw_map(self, image: bytes, text: str) -> SaliencyMap:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        result = saliency(self._model, picture, text)
        drawn = draw_overlay(self._model.transform.square(picture), result.patches.numpy())
        return SaliencyMap(drawn, result.similarity, result.truncated, blank=not result.patches.any())


class Models:
    """The models of the page and their image features; models with equal image towers share them."""

    def __init__(self, urls: list[str]) -> None:
        urls = [storage.normalise(url) for url in urls]
        self.all = [Model(url, name) for url, name in zip(urls, short_names(urls), strict=True)]
        self._features: list[ImageFeatures] = []
        self._samples: Samples | None = None
        self._lock = threading.Lock()

    def features(self, run: Run, samples: Samples) -> list[ImageFeatures]:
        """Return the features for each model, in the order of `all`."""
        with self._lock:
            if samples != self._samples:
                by_folder: dict[str, ImageFeatures] = {}
                features = [model.features(run, samples) for model in self.all]
                self._features = [by_folder.setdefault(each.folder, each) for each in features]
                self._samples = samples
            return self._features

    def search(self, run: Run, samples: Samples, text: str, seconds: float) -> SearchState:
        """Continue the search for a text with every model.

        Args:
            run: The run.
            samples: Its dataset.
            text: The text; if it is empty, nothing is searched.
            seconds: Time limit for all models together.
        """
        features, seconds_per_model = self.features(run, samples), seconds / len(self.all)
        computing = any(each.computing for each in features)
        rankings = [
            (model, model.rank(text, each, seconds_per_model) if text else None)
            for model, each in zip(self.all, features, strict=True)
        ]
        return SearchState(text, rankings, list(dict.fromkeys(features)), computing)


def short_names(urls: list[str]) -> list[str]:
    """Return a name per model: its folder's, or the parent's if that is `model`; the whole URL if names are equal."""
    names = [url.removesuffix("/model").rsplit("/", 1)[-1] for url in urls]
    return [name if names.count(name) == 1 else url for name, url in zip(names, urls, strict=True)]


def draw_overlay(image: Image.Image, patches: np.ndarray) -> bytes:
    """Return a PNG of an image under a map.

    Where the map is 0, the image is dark and grey; the larger the map, the stronger the colour.

    Args:
        image: Square RGB image.
        patches: The map, float [rows, columns] ≥ 0; it is scaled to its own maximum.
    """
    from matplotlib import colormaps

    maximum = float(patches.max())
    scaled = (patches / maximum if maximum > 0 else np.zeros_like(patches)).astype(np.float32)
    smooth = Image.fromarray(scaled).resize((MAP_PIXELS, MAP_PIXELS), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)[..., None]
    picture = image.resize((MAP_PIXELS, MAP_PIXELS), Image.Resampling.BICUBIC)
    background = np.asarray(picture.convert("L").convert("RGB"), np.float32) * 0.6
    colour = colormaps[MAP_COLOURS](heat[..., 0])[..., :3] * 255
    opacity = MAP_OPACITY * np.sqrt(heat)
    drawn = Image.fromarray((background * (1 - opacity) + colour * opacity).astype(np.uint8))
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return out.getvalue()
