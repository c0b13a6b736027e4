"""Datasets and evaluation sets of the study: crowded scenes.

Seeds share no scenes, so the spread over seeds includes the spread over scenes.

    STUDY/data/SEED-TEXTS-ID/10/shards …  a dataset as `lotlip-data shard` writes it, with the locked tower's features
    STUDY/data/SEED-TEXTS-ID/1/shards …   its first shards, as hard links; ID identifies how the data are made

The long texts are written by the scene writers, with each captioner's errors, and not by the tiny captioners, which
know scenes of up to four objects only. Raw texts name the salient object, as for all synthetic scenes.
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

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.dataset.writer import SampleWriter, members, record_of
from lotlip_data.pipeline.study.experiments import DATA_VERSIONS, LIT, SCALES, Design, Experiment, Gallery, Texts
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.eval_sets import TEMPLATES
from lotlip_data.synthetic.hard_scenes import (
    CAPTIONER_ERRORS,
    crowded_scene,
    crowded_text,
    misread,
    near_twins,
    salient_object,
    short_text,
)
from lotlip_data.synthetic.scenes import SPLITS, Scene, class_names, render

SCENES_PER_SEED = 100_000
TRAINING_SCENES_PER_SEED = 80_000
"""The first scenes of a seed are for training, the rest for evaluation."""
FIRST_DEVELOPMENT_SEED = 50
"""Settings are chosen on this seed and those above it; no table shows them."""
SHARDS_AT_SCALE_1 = 3
PIXELS = 96


def scene_seeds(seed: int) -> range:
    """The seeds of the scenes that belong to a seed of the study."""
    return SPLITS["study"][seed * SCENES_PER_SEED : (seed + 1) * SCENES_PER_SEED]


@dataclass(frozen=True)
class RetrievalSet:
    """Pictures with one text each, in the form that `lotlip_data.training.evaluation.evaluate` reads."""

    name: str
    pictures: tuple[Image.Image, ...]
    texts: tuple[str, ...]

    @property
    def image_of_text(self) -> range:
        """For each text, the index of its image."""
        return range(len(self.texts))

    def images(self) -> Iterator[Image.Image]:
        return iter(self.pictures)


@dataclass(frozen=True)
class ClassificationSet:
    """Pictures whose class is the colour and shape of the salient object."""

    name: str
    pictures: tuple[Image.Image, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES

    def images(self) -> Iterator[Image.Image]:
        return iter(self.pictures)


@functools.lru_cache(maxsize=3)
def evaluation_sets(seed: int, texts: Texts, gallery: Gallery) -> tuple[list[RetrievalSet], ClassificationSet]:
    """The retrieval sets and the classification set of a seed.

    Args:
        seed: A seed of the study.
        texts: The long texts that the evaluated experiment trains on.
        gallery: Number of scenes of each set.

    Returns:
        The retrieval sets, then the classification set. For `captioners` the retrieval sets are `person`, `sharegpt4v`
        and `short`; for `detailed` they are `detailed`, `unrelated` and `short`. `person`, `sharegpt4v` and `detailed`
        have long texts of groups of a scene and its near twins. `unrelated` has as many `detailed` texts of unrelated
        scenes. `short` has texts of the salient object, all different.
    """
    seeds = evaluation_seeds(seed)
    grouped = twin_groups(seeds, gallery)
    pictures = tuple(map(render, grouped))
    writers = ("detailed",) if texts == "detailed" else ("person", "sharegpt4v")
    sets = [RetrievalSet(name, pictures, tuple(crowded_text(scene, name) for scene in grouped)) for name in writers]
    scene_of_text: dict[str, Scene] = {}
    while len(scene_of_text) < gallery.short:
        scene = crowded_scene(next(seeds))
        scene_of_text.setdefault(short_text(scene), scene)
    sets.append(RetrievalSet("short", tuple(map(render, scene_of_text.values())), tuple(scene_of_text)))
    classified = [crowded_scene(next(seeds)) for _ in range(gallery.classified)]
    if texts == "detailed":
        unrelated = [crowded_scene(next(seeds)) for _ in grouped]
        descriptions = tuple(crowded_text(scene, texts) for scene in unrelated)
        sets.insert(1, RetrievalSet("unrelated", tuple(map(render, unrelated)), descriptions))
    return sets, _classification_set(classified)


def evaluation_seeds(seed: int) -> Iterator[int]:
    """The seeds of the scenes for evaluation, in order. The first ones are those of the groups of near twins."""
    return iter(scene_seeds(seed)[TRAINING_SCENES_PER_SEED:])


def twin_groups(seeds: Iterator[int], gallery: Gallery) -> tuple[Scene, ...]:
    """The groups of a scene and its near twins, one group after another, from the next seeds."""
    return tuple(scene for _ in range(gallery.groups) for scene in _twin_group(seeds, gallery.twins))


def _twin_group(seeds: Iterator[int], twins: int) -> list[Scene]:
    """The scene of the next seed and its near twins."""
    scene = crowded_scene(next(seeds))
    return [scene, *near_twins(scene, [next(seeds) for _ in range(twins)])]


def _classification_set(scenes: Sequence[Scene]) -> ClassificationSet:
    names = class_names()
    labels = tuple(names.index(f"{obj.colour} {obj.shape}") for obj in map(salient_object, scenes))
    return ClassificationSet("salient", tuple(map(render, scenes)), labels, tuple(names))


def dataset_path(study: str, design: Design, experiment: Experiment, seed: int) -> str:
    """The folder of the dataset that an experiment trains on."""
    return str(_folder(study, design, experiment.texts, seed) / str(experiment.scale))


def is_written(study: str, design: Design, texts: Texts, seed: int) -> bool:
    """Whether `write_datasets` has finished for this seed."""
    return (_folder(study, design, texts, seed) / "done").exists()


def _folder(study: str, design: Design, texts: Texts, seed: int) -> Path:
    origin = [DATA_VERSIONS[texts], design.scenes, design.settings["image_tower"]]
    identity = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:8]
    return Path(study, "data", f"{seed}-{texts}-{identity}")


def write_datasets(study: str, design: Design, texts: Texts, seed: int) -> None:
    """Write the datasets of a seed, one per scale. Existing shards stay; the file `done` is written last."""
    folder, scales = _folder(study, design, texts, seed), SCALES if texts == "captioners" else SCALES[:1]
    largest = Run.at(str(folder / str(scales[-1])))
    Path(largest.shards).mkdir(parents=True, exist_ok=True)
    seeds = scene_seeds(seed)[: design.scenes * scales[-1]]
    assert len(seeds) <= TRAINING_SCENES_PER_SEED, "no training scene is an evaluation scene"
    starts = range(0, len(seeds), design.scenes // SHARDS_AT_SCALE_1)
    records = [
        write_shard(Path(largest.shards), number, seeds[start : start + starts.step], texts)
        for number, start in enumerate(starts)
    ]
    write_index(largest, records, texts)
    cache_features(largest.url, design)
    for scale in scales[:-1]:
        _link_first_shards(largest, Run.at(str(folder / str(scale))), records[: SHARDS_AT_SCALE_1 * scale], texts)
    (folder / "done").touch()


def writers_of(texts: Texts) -> tuple[str, ...]:
    """The writers of a dataset's long texts."""
    return ("detailed",) if texts == "detailed" else tuple(CAPTIONER_ERRORS)


def write_shard(folder: Path, number: int, seeds: Sequence[int], texts: Texts) -> dict[str, Any]:
    """Write a shard, unless it exists, and return its record for dataset.json."""
    stem, writers = f"train-{number:05d}", writers_of(texts)
    tar, parquet, record = (folder / f"{stem}{ending}" for ending in (".tar", ".parquet", ".json"))
    if not record.exists():
        columns = schema.dataset(writers)
        with SampleWriter(tar, parquet, columns) as writer:
            for index, seed in enumerate(seeds):
                row, image = _sample(seed, f"{number:05d}{index:04d}", writers)
                writer.write(row, members(row, image, columns.names))
        files = {"tar": asdict(record_of(tar, tar.name)), "parquet": asdict(record_of(parquet, parquet.name))}
        with storage.replacing(record) as part:
            part.write_text(json.dumps({**files, "samples": len(seeds)}))
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def _sample(seed: int, key: str, writers: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    """The dataset row and the JPEG of a scene."""
    scene, url = crowded_scene(seed), f"http://127.0.0.1/crowded/{seed}.jpg"
    buffer = io.BytesIO()
    render(scene, PIXELS).save(buffer, "JPEG", quality=95)
    image, raw = buffer.getvalue(), raw_text(scene)
    sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), PIXELS)
    row = {"key": key, "uid": uid_from_url(url), "url": url, "sha256": hashlib.sha256(image).hexdigest(), **sizes}
    # Results are recorded for datasets with the source name "world", so it stays.
    row |= {"source": "world", "raw": raw, "sources": ["world"], "raws": [raw]}
    for name in writers:
        text = crowded_text(misread(scene, name) if name in CAPTIONER_ERRORS else scene, name)
        row |= {
            name: text,
            name + schema.SUB_SUFFIX: subcaptions.split(text, "authors"),
            name + schema.FLAGS_SUFFIX: "",
        }
    return row, image


def write_index(run: Run, records: Sequence[dict[str, Any]], texts: Texts) -> None:
    """Write dataset.json of a run in a folder, with the records of `write_shard`."""
    content = {
        "schema_version": schema.SCHEMA_VERSION,
        "captioners": {name: f"{name}-writer" for name in writers_of(texts)},
        "sub_captions": "authors",
        "samples": sum(record["samples"] for record in records),
        "shards": list(records),
    }
    Path(run.dataset).write_text(json.dumps(content))


def cache_features(url: str, design: Design) -> None:
    """Compute the locked tower's features, so that no training has to."""
    from lotlip_data.training.data.dataset import open_dataset
    from lotlip_data.training.data.feature_cache import FeatureCache
    from lotlip_data.training.models.lotlip import load_model

    model = load_model(LIT.config(design, 0))
    FeatureCache(open_dataset(url), model.towers.image, model.transform).fill()


def _link_first_shards(source: Run, target: Run, records: Sequence[dict[str, Any]], texts: Texts) -> None:
    """Create a dataset of the first shards of `source`, as hard links to their files and features."""
    names = [record[kind]["name"] for record in records for kind in ("tar", "parquet")]
    pairs = [(Path(source.shards, name), Path(target.shards, name)) for name in names]
    features = Path(source.features())
    pairs += [(path, Path(target.url, path.relative_to(source.url))) for path in features.rglob("*.npz")]
    for original, link in pairs:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(original, link)
    write_index(target, records, texts)
