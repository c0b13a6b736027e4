"""Datasets of the study of scores: crowded scenes, three writers, a stated error rate.

    STUDY/scores-data/SEED-ID/images/        the images of a seed, with the locked tower's features; all rates have them
    STUDY/scores-data/SEED-ID/gallery.npz    features of the images of the evaluation
    STUDY/scores-data/SEED-ID/RATE/KEY/      a dataset: the images' tars as hard links, and Parquet twins of its own
    STUDY/scores-data/bert-N/                the text tower of N layers; trainings record its path in the study's folder

Trainings read texts from the Parquet twins alone, so the tars keep the texts of the study's own error rates.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.feature_file import encode_features, file_name, read_features
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.writer import record_of
from lotlip_data.pipeline.study import world
from lotlip_data.pipeline.study.scores.design import VERSION, Role, ScoresDesign
from lotlip_data.synthetic.caption_writers import WRITERS, raw_text
from lotlip_data.synthetic.hard_scenes import ErrorRates, crowded_text, misread
from lotlip_data.synthetic.scenes import Scene
from lotlip_data.training.data.dataset import open_dataset

Texts = dict[str, list[str]]
"""The sub-captions of a scene, by writer."""
BLOCKS = world.SeedBlocks("study_scores", scenes=100_000, training=80_000)
GALLERY = "gallery.npz"
RETRIEVAL_TEXTS = ("person", "sharegpt4v")
"""The writers of the texts of the evaluation. They make no errors there."""


def sub_captions(scene: Scene, rate: float) -> Texts:
    """The sub-captions of a scene at an error rate. No object is omitted."""
    return {
        writer: subcaptions.split(crowded_text(misread(scene, writer, ErrorRates(rate, 0.0)), writer), "authors")
        for writer in WRITERS
    }


@functools.lru_cache(maxsize=2)
def training_scenes(seed: int, count: int) -> tuple[Scene, ...]:
    """The training scenes of a seed, in the order of the dataset's rows."""
    return BLOCKS.training_scenes(seed, count)


def folder(study: str, design: ScoresDesign, seed: int) -> Path:
    """The folder of a seed's data."""
    origin = [VERSION, design.scenes, [design.gallery.groups, design.gallery.twins], design.settings["image_tower"]]
    return Path(study, "scores-data", f"{seed}-{hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:8]}")


def write_images(study: str, design: ScoresDesign, seed: int) -> None:
    """Write the images of a seed, and the features of the images of training and evaluation."""
    run = Run.at(str(folder(study, design, seed) / "images"))
    config = design.config("all", seed, text_tower(study, design, "all"))
    world.write_dataset(run, training_scenes(seed, design.scenes), raw_text, config)
    features = world.unit_features(config, gallery_scenes(design, seed))
    storage.replace(str(folder(study, design, seed) / GALLERY), encode_features(features))


def gallery_scenes(design: ScoresDesign, seed: int) -> tuple[Scene, ...]:
    """The scenes of the evaluation: groups of a scene and its near twins."""
    return world.twin_groups(BLOCKS.evaluation_seeds(seed), design.gallery.groups, design.gallery.twins)


def gallery_features(study: str, design: ScoresDesign, seed: int) -> np.ndarray:
    """float32 [N, D], the unit features of the images of the evaluation."""
    return read_features(str(folder(study, design, seed) / GALLERY), (None, None))


def has_images(study: str, design: ScoresDesign, seed: int) -> bool:
    """Whether `write_images` has finished."""
    return (folder(study, design, seed) / GALLERY).exists()


def text_tower(study: str, design: ScoresDesign, role: Role) -> str:
    """The folder of the text tower, which is written if it is missing: the first layers of the study's."""
    layers = design.layers(role)
    target = Path(study, "scores-data", f"bert-{layers}")
    world.write_text_tower(design.settings["text_tower"], layers, target)
    return str(target)


def write_dataset(
    study: str, design: ScoresDesign, seed: int, name: str, texts: Sequence[Texts], scores: Sequence[Any] = ()
) -> str:
    """Write a dataset with the images of a seed and other texts, unless it exists. Returns its folder.

    Args:
        study: The study's folder.
        design: The design.
        seed: The seed.
        name: Folder of the dataset in that of the seed.
        texts: For each training scene the sub-captions of each writer.
        scores: For each training scene and writer the score of the text and those of its sub-captions. None: no scores.
    """
    images, run = (Run.at(str(folder(study, design, seed) / each)) for each in ("images", name))
    if Path(run.dataset).exists():
        return run.url
    index = json.loads(Path(images.dataset).read_text())
    rows = iter(zip(texts, scores or [None] * len(texts), strict=True))
    for record in index["shards"]:
        tar, parquet = (Path(run.shards, record[kind]["name"]) for kind in ("tar", "parquet"))
        _link(Path(images.shards, tar.name), tar)
        shard = pq.read_table(Path(images.shards, parquet.name)).to_pylist()
        table = pa.Table.from_pylist([_row(row, *next(rows)) for row in shard], schema=_schema(bool(scores)))
        with storage.replacing(parquet) as part:
            pq.write_table(table, part)
        record["parquet"] = asdict(record_of(parquet, parquet.name))
    for features in Path(images.features()).rglob("*.npz"):
        _link(features, Path(run.url, features.relative_to(images.url)))
    storage.replace(run.dataset, json.dumps(index).encode())
    return run.url


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.link(source, target)


def _schema(with_scores: bool) -> pa.Schema:
    columns = schema.dataset(WRITERS)
    for name in WRITERS if with_scores else ():
        columns = columns.append(pa.field(schema.text_score_column(name, schema.SCORE), pa.float32()))
        columns = columns.append(pa.field(schema.piece_scores_column(name, schema.SCORE), pa.list_(pa.float32())))
    return columns


def _row(row: dict[str, Any], texts: Texts, scores: dict[str, tuple[float, list[float]]] | None) -> dict[str, Any]:
    """A dataset row with other texts and their scores."""
    row = row | {name: ". ".join(pieces) + "." if pieces else None for name, pieces in texts.items()}
    row |= {name + schema.SUB_SUFFIX: pieces for name, pieces in texts.items()}
    for name, (score, sub_scores) in (scores or {}).items():
        row |= {
            schema.text_score_column(name, schema.SCORE): score,
            schema.piece_scores_column(name, schema.SCORE): sub_scores,
        }
    return row


def dataset_features(run: str) -> np.ndarray:
    """float32 [N, D], unit features of the training images in the order of the rows, as the locked tower has them."""
    files = {path.name: str(path) for path in Path(Run.at(run).features()).rglob("*.npz")}
    shards = open_dataset(run).shards
    features = np.concatenate([read_features(files[file_name(shard.sha256)], (None, None)) for shard in shards])
    unit: np.ndarray = features.astype(np.float32)
    return unit / np.linalg.norm(unit, axis=1, keepdims=True)
