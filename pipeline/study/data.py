"""What the study trains on and evaluates on: crowded scenes, of each seed its own, so that the spread over seeds is
that of the scenes, too.

    STUDY/data/SEED-TEXTS-ID/10/shards …  a dataset as `lotlip-data shard` writes it, with the locked tower's features
    STUDY/data/SEED-TEXTS-ID/1/shards …   its first shards again, as hard links; ID stands for what the data are made by

The long texts are the writers', of scenes misread at each captioner's rate: the tiny captioners know scenes of up to
four things only. Raw texts name the salient thing, as everywhere in this world.
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lotlip_data.manifests import schema, subcaptions
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sample_id import uid_from_url
from lotlip_data.pipeline.dataset.writer import SampleWriter, members, record_of
from lotlip_data.pipeline.study.experiments import EDITIONS, LIT, SCALES, Design, Experiment, Gallery, Texts
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.eval_sets import TEMPLATES
from lotlip_data.synthetic.hard_scenes import (
    EYESIGHT,
    crowded_scene,
    crowded_text,
    misread,
    near_twins,
    salient,
    short_text,
)
from lotlip_data.synthetic.scenes import SPLITS, Scene, class_names, render

BLOCK = 100_000
"""Scenes of a seed: the first 80,000 to train on, the rest to evaluate on."""
EVALUATED = 80_000
DEVELOPMENT = 50
"""Seeds from here on are for choosing settings; no table shows them."""
SHARDS = 3
"""Of the scale 1×."""
PIXELS = 96


def block(seed: int) -> range:
    """The scenes of a seed of the study."""
    return SPLITS["study"][seed * BLOCK : (seed + 1) * BLOCK]


@dataclass(frozen=True)
class Pairs:
    """One text of each picture, to be found among all; see `lotlip_data.training.evaluation.evaluate`."""

    name: str
    pictures: tuple[Image.Image, ...]
    texts: tuple[str, ...]

    @property
    def image_of_text(self) -> range:
        return range(len(self.texts))

    def images(self) -> Iterator[Image.Image]:
        return iter(self.pictures)


@dataclass(frozen=True)
class Classes:
    """Pictures whose salient thing is to be named by colour and shape."""

    name: str
    pictures: tuple[Image.Image, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES

    def images(self) -> Iterator[Image.Image]:
        return iter(self.pictures)


@functools.lru_cache(maxsize=3)
def evaluation(seed: int, texts: Texts, gallery: Gallery) -> tuple[list[Pairs], Classes]:
    """The retrieval sets and the classification of a seed.

    `person` and `sharegpt4v`, or `detailed`: long texts of pictures in groups, of which all but the first differ from
    the first in one attribute of one thing. `unrelated`, of `detailed` alone: as many of its texts, of scenes that have
    nothing to do with one another. `short`: texts of the salient thing, no two of them equal.
    """
    seeds = iter(block(seed)[EVALUATED:])
    grouped = tuple(one for _ in range(gallery.groups) for one in _group(next(seeds), seeds, gallery.twins))
    pictures = tuple(map(render, grouped))
    writers = ("detailed",) if texts == "detailed" else ("person", "sharegpt4v")
    sets = [Pairs(name, pictures, tuple(crowded_text(scene, name) for scene in grouped)) for name in writers]
    short: dict[str, Scene] = {}
    while len(short) < gallery.short:
        scene = crowded_scene(next(seeds))
        short.setdefault(short_text(scene), scene)
    sets.append(Pairs("short", tuple(map(render, short.values())), tuple(short)))
    classified = [crowded_scene(next(seeds)) for _ in range(gallery.classified)]
    if texts == "detailed":
        unrelated = [crowded_scene(next(seeds)) for _ in grouped]
        described = tuple(crowded_text(scene, texts) for scene in unrelated)
        sets.insert(1, Pairs("unrelated", tuple(map(render, unrelated)), described))
    names = class_names()
    labels = tuple(names.index(f"{salient(scene).colour} {salient(scene).shape}") for scene in classified)
    return sets, Classes("salient", tuple(map(render, classified)), labels, tuple(names))


def _group(seed: int, seeds: Iterator[int], twins: int) -> list[Scene]:
    scene = crowded_scene(seed)
    return [scene, *near_twins(scene, [next(seeds) for _ in range(twins)])]


def dataset_of(study: str, design: Design, row: Experiment, seed: int) -> str:
    """Where the dataset of a row and seed is."""
    return str(_folder(study, design, row.texts, seed) / str(row.scale))


def is_written(study: str, design: Design, texts: Texts, seed: int) -> bool:
    return (_folder(study, design, texts, seed) / "done").exists()


def _folder(study: str, design: Design, texts: Texts, seed: int) -> Path:
    made_by = [EDITIONS[texts], design.scenes, design.settings["image_tower"]]
    id = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:8]
    return Path(study, "data", f"{seed}-{texts}-{id}")


def write(study: str, design: Design, texts: Texts, seed: int) -> None:
    """Write the datasets of a seed, one of each scale; what is there stays. The last thing written is `done`."""
    folder, scales = _folder(study, design, texts, seed), SCALES if texts == "captioners" else SCALES[:1]
    at = Run.at(str(folder / str(scales[-1])))
    Path(at.shards).mkdir(parents=True, exist_ok=True)
    seeds = block(seed)[: design.scenes * scales[-1]]
    assert len(seeds) <= EVALUATED, "scenes that are evaluated on are not trained on"
    starts = range(0, len(seeds), design.scenes // SHARDS)
    records = [
        _shard(Path(at.shards), number, seeds[start : start + starts.step], texts)
        for number, start in enumerate(starts)
    ]
    _describe(at, records, texts)
    _features(at.url, design)
    for scale in scales[:-1]:
        _first_shards(at, Run.at(str(folder / str(scale))), records[: SHARDS * scale], texts)
    (folder / "done").touch()


def writers_of(texts: Texts) -> tuple[str, ...]:
    """The captioners whose long texts the dataset has."""
    return ("detailed",) if texts == "detailed" else tuple(EYESIGHT)


def _shard(folder: Path, number: int, seeds: Sequence[int], texts: Texts) -> dict[str, Any]:
    """Write a shard, unless it is there, and return what dataset.json says of it."""
    stem, writers = f"train-{number:05d}", writers_of(texts)
    tar, parquet, record = (folder / f"{stem}{ending}" for ending in (".tar", ".parquet", ".json"))
    if not record.exists():
        columns = schema.dataset(writers)
        with SampleWriter(tar, parquet, columns) as writer:
            for index, seed in enumerate(seeds):
                row, image = _sample(seed, f"{number:05d}{index:04d}", writers)
                writer.write(row, members(row, image, columns.names))
        files = {"tar": asdict(record_of(tar, tar.name)), "parquet": asdict(record_of(parquet, parquet.name))}
        scratch = record.with_suffix(".part")
        scratch.write_text(json.dumps({**files, "samples": len(seeds)}))
        scratch.rename(record)
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def _sample(seed: int, key: str, writers: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    scene, url = crowded_scene(seed), f"http://127.0.0.1/crowded/{seed}.jpg"
    buffer = io.BytesIO()
    render(scene, PIXELS).save(buffer, "JPEG", quality=95)
    image, raw = buffer.getvalue(), raw_text(scene)
    side = dict.fromkeys(("width", "height", "original_width", "original_height"), PIXELS)
    row = {"key": key, "uid": uid_from_url(url), "url": url, "sha256": hashlib.sha256(image).hexdigest(), **side}
    row |= {"source": "world", "raw": raw, "sources": ["world"], "raws": [raw]}
    for name in writers:
        text = crowded_text(misread(scene, name) if name in EYESIGHT else scene, name)
        row |= {
            name: text,
            name + schema.SUB_SUFFIX: subcaptions.split(text, "authors"),
            name + schema.FLAGS_SUFFIX: "",
        }
    return row, image


def _describe(run: Run, records: Sequence[dict[str, Any]], texts: Texts) -> None:
    content = {
        "schema_version": schema.SCHEMA_VERSION,
        "captioners": {name: f"{name}-writer" for name in writers_of(texts)},
        "sub_captions": "authors",
        "samples": sum(record["samples"] for record in records),
        "shards": list(records),
    }
    Path(run.dataset).write_text(json.dumps(content))


def _features(url: str, design: Design) -> None:
    """The locked tower's features, before any training asks for them."""
    from lotlip_data.training.data.dataset import open_dataset
    from lotlip_data.training.data.feature_cache import FeatureCache
    from lotlip_data.training.models.lotlip import load_model

    model = load_model(LIT.config(design, 0))
    FeatureCache(open_dataset(url), model.towers.image, model.transform).fill()


def _first_shards(source: Run, target: Run, records: Sequence[dict[str, Any]], texts: Texts) -> None:
    """The dataset of the first shards of another, which it shares with it."""
    names = [record[kind]["name"] for record in records for kind in ("tar", "parquet")]
    pairs = [(Path(source.shards, name), Path(target.shards, name)) for name in names]
    features = Path(source.url, "features")
    pairs += [(path, Path(target.url, path.relative_to(source.url))) for path in features.rglob("*.npz")]
    for there, here in pairs:
        here.parent.mkdir(parents=True, exist_ok=True)
        if not here.exists():
            os.link(there, here)
    _describe(target, records, texts)
