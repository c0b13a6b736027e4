"""Scenes and datasets of the studies: crowded scenes, described by writers that make the captioners' errors.

Seeds share no scenes, so the spread over seeds includes the spread over scenes. The long texts are made by the scene
writers and not by the tiny captioners, which know scenes of up to four objects only.
"""

import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.dataset.writer import SampleWriter, members, record_of
from lotlip_data.synthetic.caption_writers import WRITERS
from lotlip_data.synthetic.hard_scenes import crowded_scene, crowded_text, misread, near_twins
from lotlip_data.synthetic.scenes import SPLITS, Scene, render
from lotlip_data.training.config import TrainConfig

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.models import Embedder

SHARDS = 3
PIXELS = 96

RawText = Callable[[Scene], str]
"""The raw text of a scene."""
Figures = dict[str, float]
"""Figures of a training by name."""
METRICS = {
    "long": ("person.t2i.R@1", "person.i2t.R@1", "sharegpt4v.t2i.R@1", "sharegpt4v.i2t.R@1"),
    "twins": (
        "twins.person.t2i.R@1",
        "twins.person.i2t.R@1",
        "twins.sharegpt4v.t2i.R@1",
        "twins.sharegpt4v.i2t.R@1",
    ),
    "short": ("short.t2i.R@1", "short.i2t.R@1"),
    "class": ("class.top1",),
}
"""The metrics that comparisons use, each the mean of several figures."""


@dataclass(frozen=True)
class SeedBlocks:
    """The scenes that belong to each seed of a study: the first ones are for training, the rest for evaluation."""

    split: str
    scenes: int
    """Number of scenes of a seed."""
    training: int
    """Number of these that are for training."""

    def training_scenes(self, seed: int, count: int) -> tuple[Scene, ...]:
        """The first `count` training scenes of a seed. Raises ValueError if there are fewer."""
        if count > self.training:
            raise ValueError(f"{count} training scenes: a seed has {self.training}")
        return tuple(map(crowded_scene, self._block(seed)[:count]))

    def evaluation_seeds(self, seed: int) -> Iterator[int]:
        """The seeds of the scenes for evaluation, in order."""
        return iter(self._block(seed)[self.training :])

    def _block(self, seed: int) -> range:
        block = SPLITS[self.split][seed * self.scenes : (seed + 1) * self.scenes]
        if len(block) < self.scenes:
            raise ValueError(f"seed {seed}: the split {self.split!r} has no scenes for it")
        return block


def twin_groups(seeds: Iterator[int], groups: int, twins: int) -> tuple[Scene, ...]:
    """Groups of a scene and its near twins, one group after another, from the next seeds."""
    return tuple(itertools.chain.from_iterable(_twin_group(seeds, twins) for _ in range(groups)))


def _twin_group(seeds: Iterator[int], twins: int) -> list[Scene]:
    """The scene of the next seed and its near twins."""
    scene = crowded_scene(next(seeds))
    return [scene, *near_twins(scene, list(itertools.islice(seeds, twins)))]


def write_dataset(run: Run, scenes: Sequence[Scene], raw_text: RawText, config: TrainConfig) -> None:
    """Write a dataset as `lotlip-data shard` does, and the features of its images. Existing shards stay.

    Args:
        run: The dataset's run.
        scenes: The scenes.
        raw_text: Makes the raw texts. The long texts have the captioners' errors.
        config: A training whose locked image tower computes the features, so that no training has to.
    """
    from lotlip_data.training.data.dataset import open_dataset
    from lotlip_data.training.data.feature_cache import FeatureCache
    from lotlip_data.training.models.lotlip import load_model

    Path(run.shards).mkdir(parents=True, exist_ok=True)
    parts = batched(scenes, -(-len(scenes) // SHARDS))
    records = [_write_shard(Path(run.shards), number, part, raw_text) for number, part in enumerate(parts)]
    _write_index(run, records)
    model = load_model(config)
    FeatureCache(open_dataset(run.url), model.towers.image, model.transform).fill()


def _write_shard(folder: Path, number: int, scenes: Sequence[Scene], raw_text: RawText) -> dict[str, Any]:
    """Write a shard, unless it exists, and return its record for dataset.json."""
    stem = f"train-{number:05d}"
    tar, parquet, record = (folder / f"{stem}{ending}" for ending in (".tar", ".parquet", ".json"))
    if not record.exists():
        columns = schema.dataset(WRITERS)
        with SampleWriter(tar, parquet, columns) as writer:
            for index, scene in enumerate(scenes):
                row, image = _sample(scene, f"{number:05d}{index:04d}", raw_text(scene))
                writer.write(row, members(row, image, columns.names))
        files = {"tar": asdict(record_of(tar, tar.name)), "parquet": asdict(record_of(parquet, parquet.name))}
        with storage.replacing(record) as part:
            part.write_text(json.dumps({**files, "samples": len(scenes)}))
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def _sample(scene: Scene, key: str, raw: str) -> tuple[dict[str, Any], bytes]:
    """The dataset row and the JPEG of a scene."""
    url = f"http://127.0.0.1/crowded/{scene.seed}.jpg"
    buffer = io.BytesIO()
    render(scene, PIXELS).save(buffer, "JPEG", quality=95)
    image = buffer.getvalue()
    sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), PIXELS)
    row = {"key": key, "uid": uid_from_url(url), "url": url, "sha256": hashlib.sha256(image).hexdigest(), **sizes}
    row |= {"source": "world", "raw": raw, "sources": ["world"], "raws": [raw]}
    for name in WRITERS:
        text = crowded_text(misread(scene, name), name)
        row |= {
            name: text,
            name + schema.SUB_SUFFIX: subcaptions.split(text, "authors"),
            name + schema.FLAGS_SUFFIX: "",
        }
    return row, image


def _write_index(run: Run, records: Sequence[dict[str, Any]]) -> None:
    """Write dataset.json of a run, with the records of `_write_shard`."""
    content = {
        "schema_version": schema.SCHEMA_VERSION,
        "captioners": {name: f"{name}-writer" for name in WRITERS},
        "sub_captions": "authors",
        "samples": sum(record["samples"] for record in records),
        "shards": list(records),
    }
    Path(run.dataset).write_text(json.dumps(content))


def write_text_tower(source: str, layers: int, folder: Path) -> None:
    """Write a text tower of the first layers of another one, unless `folder` exists. `source` as in a training."""
    if folder.exists():
        return
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(resolve(source))
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(resolve(source)).save_pretrained(part)
    try:
        part.rename(folder)
    except OSError:  # another process has written it
        storage.remove(str(part))


def unit_features(config: TrainConfig, scenes: Iterable[Scene]) -> np.ndarray:
    """float32 [N, D], the unit features of N pictures by the locked image tower of a training."""
    from lotlip_data.training.models.lotlip import load_model

    features: np.ndarray = load_model(config).embed_images(map(render, scenes)).numpy()
    return features


def retrieval_figures(embedder: "Embedder", images_ND: np.ndarray, texts: Mapping[str, Sequence[str]]) -> Figures:
    """R@1 in percent in both directions, as NAME.t2i.R@1 and NAME.i2t.R@1. Text j belongs to image j.

    Args:
        embedder: The model.
        images_ND: Its unit features of the pictures.
        texts: By name of the texts, one text per picture.
    """
    import torch

    from lotlip_data.training.evaluation.metrics import recall

    figures: Figures = {}
    for name, of_images in texts.items():
        features = embedder.embed_texts(of_images).features
        recalls = recall(torch.from_numpy(images_ND), features, range(len(of_images)), ks=(1,))
        figures |= {f"{name}.{direction}.R@1": 100 * recalls[direction]["R@1"] for direction in ("t2i", "i2t")}
    return figures
