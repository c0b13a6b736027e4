"""What trained models make of the dataset: the images that suit a text best, and where in an image a text is seen.

A map over an image, as a picture.
"""

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
from lotlip_data.pipeline.viewer.features import Features
from lotlip_data.pipeline.viewer.paging import Place
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.training.data.dataset import DataError
from lotlip_data.training.models.lotlip import LoTLIP
from lotlip_data.training.saliency import saliency

BEST = 24
"""Images that a search gives."""
SEARCHES = 32
"""Searches that go on where they were."""
MAPS = 64
"""Maps that are kept."""


@dataclass(frozen=True)
class Ranking:
    """The images that suit a text best, among those looked at so far."""

    best: list[tuple[float, Place]]
    """Cosine similarity and place, the most alike first."""
    searched: int
    """Shards looked at."""
    ready: int
    """Shards that have features; beyond, they have to be computed first."""
    shards: int
    cut: bool
    """Whether the text is longer than the context length."""
    damaged: list[str]


@dataclass(frozen=True)
class Looked:
    """A search for a text by every model, as far as it has come."""

    text: str
    rankings: "list[tuple[Model, Ranking | None]]"
    """Of each model; None where no text is asked for."""
    features: list[Features]
    """Those that the models need, each once."""
    computing: bool
    """Whether some of these were being computed when the look began."""

    @property
    def unfinished(self) -> bool:
        """Whether looking again may find more."""
        return self.computing or any(one.searched < one.ready for _, one in self.rankings if one)


@dataclass(frozen=True)
class Map:
    """Where a text is seen in an image: a picture (PNG), and the similarity of the two."""

    picture: bytes
    similarity: float
    cut: bool
    blank: bool
    """Whether nothing in the image speaks for the text."""


@dataclass
class _Search:
    """One text on its way through the shards."""

    feature: np.ndarray
    cut: bool
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    places: list[Place] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)

    def look_at(self, shard: int, features: np.ndarray) -> None:
        """float16 [samples, D], not normalised."""
        table = features.astype(np.float32)
        scores = table @ self.feature / np.maximum(np.linalg.norm(table, axis=1), 1e-12)
        first = np.argsort(-scores, kind="stable")[:BEST]
        scores = np.concatenate([self.scores, scores[first]])
        places = self.places + [Place(shard, int(row)) for row in first]
        order = sorted(range(len(places)), key=lambda index: (-scores[index], places[index]))[:BEST]
        self.scores, self.places = scores[order], [places[index] for index in order]


class Model:
    """A trained model beside a dataset. One request at a time computes with it."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._model = LoTLIP.load(url)
        self._model.towers.to("cuda" if torch.cuda.is_available() else "cpu")
        self._turn = threading.Lock()
        self._searches: collections.OrderedDict[str, _Search] = collections.OrderedDict()
        self._searched: Features | None = None
        self._map = functools.lru_cache(MAPS)(self._drawn)

    def features(self, run: Run, samples: Samples) -> Features:
        """This model's image features of the dataset."""
        return Features(run, samples, self._model.towers.image, self._model.transform)

    def rank(self, text: str, features: Features, seconds: float) -> Ranking:
        """Go on with the search for a text, for so long."""
        until = time.monotonic() + seconds
        missing = set(features.missing())
        ready = [shard for shard in range(features.shards) if shard not in missing]
        with self._computing():
            if features is not self._searched:  # another dataset's places mean nothing here
                self._searches.clear()
                self._searched = features
            search = self._search(text)
            for shard in ready:
                if shard in search.done:
                    continue
                try:
                    search.look_at(shard, features.shard(shard))
                except DataError as error:
                    search.damaged.append(str(error))
                search.done.add(shard)
                if time.monotonic() >= until:
                    break
            best = list(zip(search.scores.tolist(), search.places, strict=True))
            done = len(search.done)
        return Ranking(best, done, len(ready), features.shards, search.cut, list(search.damaged))

    def map(self, image: bytes, text: str) -> Map:
        """Where the text is seen in the image (its bytes). Raises OSError or ValueError where it is no image."""
        with self._computing():
            return self._map(image, text)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """This request's turn. Raises UserError where the GPU has no memory left for it."""
        with self._turn:
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{self.url}: {str(error).splitlines()[0]} Stop what else runs on this GPU and ask again, or start "
                    "`lotlip-data view` with CUDA_VISIBLE_DEVICES= to compute on the CPU."
                ) from error

    def _search(self, text: str) -> _Search:
        if text in self._searches:
            self._searches.move_to_end(text)
        else:
            encoded = self._model.tokenizer.encode([text])
            self._searches[text] = _Search(self._model.embed_tokens(encoded)[0].numpy(), encoded.cut[0])
            if len(self._searches) > SEARCHES:
                self._searches.popitem(last=False)
        return self._searches[text]

    def _drawn(self, image: bytes, text: str) -> Map:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        found = saliency(self._model, picture, text)
        seen = self._model.transform.centre_crop(picture)
        drawn = overlay(seen, found.patches.numpy())
        return Map(drawn, found.similarity, found.cut, blank=not found.patches.any())


class Models:
    """The models that the page was given, and their features; those with the same image tower share them."""

    def __init__(self, urls: list[str]) -> None:
        urls = [storage.normalise(url) for url in urls]
        self.all = [Model(url, name) for url, name in zip(urls, names_of(urls), strict=True)]
        self._features: list[Features] = []
        self._samples: Samples | None = None
        self._turn = threading.Lock()

    def features(self, run: Run, samples: Samples) -> list[Features]:
        """Of each model in order."""
        with self._turn:
            if samples != self._samples:
                by_folder: dict[str, Features] = {}
                found = [model.features(run, samples) for model in self.all]
                self._features = [by_folder.setdefault(one.folder, one) for one in found]
                self._samples = samples
            return self._features

    def look(self, run: Run, samples: Samples, text: str, seconds: float) -> Looked:
        """Go on with the search for a text by every model, for so long in all; without a text, with none."""
        features, each = self.features(run, samples), seconds / len(self.all)
        computing = any(one.computing for one in features)
        rankings = [
            (model, model.rank(text, one, each) if text else None)
            for model, one in zip(self.all, features, strict=True)
        ]
        return Looked(text, rankings, list(dict.fromkeys(features)), computing)


def names_of(urls: list[str]) -> list[str]:
    """Short names: the folder's, or the one above where it is called `model`; the whole URL where these are equal."""
    short = [url.removesuffix("/model").rsplit("/", 1)[-1] for url in urls]
    return [name if short.count(name) == 1 else url for name, url in zip(short, urls, strict=True)]


SIDE = 448
"""Pixels of the picture's sides."""
COLOURS = "inferno"
STRENGTH = 0.6


def overlay(image: Image.Image, patches: np.ndarray) -> bytes:
    """PNG of a square RGB image under its map, float [rows, columns] ≥ 0, in shares of its own largest value.

    Where the map is 0 the image is dark and grey; the more it has, the more of the colour.
    """
    from matplotlib import colormaps

    most = float(patches.max())
    shares = (patches / most if most > 0 else np.zeros_like(patches)).astype(np.float32)
    smooth = Image.fromarray(shares).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)[..., None]
    picture = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    ground = np.asarray(picture.convert("L").convert("RGB"), np.float32) * 0.6
    colour = colormaps[COLOURS](heat[..., 0])[..., :3] * 255
    share = STRENGTH * np.sqrt(heat)
    drawn = Image.fromarray((ground * (1 - share) + colour * share).astype(np.uint8))
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return out.getvalue()
