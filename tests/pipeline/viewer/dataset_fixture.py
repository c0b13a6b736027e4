"""A dataset for the tests of the page: shards in the format of the dataset stage, with any content.

As a program, it writes a dataset to view, with SAMPLES per shard:

    python -m tests.pipeline.viewer.dataset_fixture FOLDER SHARDS SAMPLES
"""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset import writer as dataset_writer
from lotlip_data.pipeline.dataset.writer import SampleWriter, members, record_of

CAPTIONERS = ("llava", "sharegpt4v")
COLOURS = ("red", "green", "blue")
SCORERS = {"similarity": "texts", "agreement": "texts", "size": "images"}
STANDARDS = {
    "similarity": {"mean": 0.5, "deviation": 0.25, "weight": 1.0},
    "agreement": {"mean": 0.0, "deviation": 2.0, "weight": -1.0},
}
"""Of the scores of sub-captions."""
LIMITS = ({"score": "similarity", "of": "sub_captions", "minimum": 0.05, "maximum": None},)

Row = dict[str, Any]
NO_SCORERS: Mapping[str, str] = {}


def make(
    folder: Path,
    shards: int = 3,
    samples: int = 10,
    change: Callable[[int, Row], None] = lambda number, row: None,
    picture: Callable[[int], Image.Image] | None = None,
    row_group: int = 4,
    captioners: Sequence[str] = CAPTIONERS,
    scorers: Mapping[str, str] | None = None,
) -> Run:
    """Return a run that has only a dataset.

    Args:
        folder: The folder of the run.
        shards: Number of shards.
        samples: Samples per shard.
        change: Edits a row in place, from its number over all shards.
        picture: Returns the image of a row by its number. Default: `plain`.
        row_group: Rows per row group of the Parquet files.
        captioners: Names of the captioners; `change` adds the texts of those that are not in CAPTIONERS.
        scorers: The scorers, such as SCORERS; `change` may replace the scores by `add_scores`. Default: none.
    """
    run = Run.at(str(folder))
    Path(run.shards).mkdir(parents=True)
    columns = schema.dataset(captioners, scorers=scorers)

    def edit(number: int, row: Row) -> None:
        if scorers:
            add_scores(number, row)
        change(number, row)

    records = [_shard(run, shard, samples, edit, picture or plain, row_group, columns) for shard in range(shards)]
    describe(run, records, captioners, scorers or {})
    return run


def describe(
    run: Run, records: list[Row], captioners: Sequence[str] = CAPTIONERS, scorers: Mapping[str, str] = NO_SCORERS
) -> None:
    """Write or replace dataset.json; the last of several shards is the validation split."""
    content = {
        "rules": {"validation": 0.0},
        **{name: {} for name in ("splits", "long_texts", "dropped", "dropped_texts")},
        **{name: [] for name in ("columns", "inputs", "replaced")},
        **dict.fromkeys(("fetched", "samples", "bytes"), 0),
        "schema_version": schema.SCHEMA_VERSION,
        "name": "fake",
        "captioners": {name: f"{name}@1" for name in captioners},
        "sub_captions": "punkt",
        "manifest": {"name": "fake", "sources": [{"name": "web"}, {"name": "books"}], "shard": {}, "clean": {}},
        "shards": records[:-1] or records,
        "validation": records[-1:] if records[:-1] else [],
    }
    if scorers:
        content["scorers"] = {name: {"id": name, "kind": name, "scores": scores} for name, scores in scorers.items()}
        content["score_limits"] = {"standards": {"sub_captions": STANDARDS}, "limits": list(LIMITS)}
    storage.replace(run.dataset, json.dumps(content).encode())


def row_of(number: int) -> Row:
    """Return a row of the dataset; its texts contain its number and one of COLOURS."""
    colour = COLOURS[number % 3]
    texts = {
        "llava": f"The picture shows a {colour} circle. It is number {number}." + " More." * (number % 5),
        "sharegpt4v": f"A {colour} disc can be seen. It is number {number}.",
    }
    url, raw = f"http://images.test/{number}.jpg", f"{colour} circle stock photo {number}"
    row: Row = {"uid": f"{number:032x}", "url": url, "sha256": f"{number:064x}", "source": "web", "raw": raw}
    row |= dict.fromkeys(("width", "height", "original_width", "original_height"), 8)
    row |= {"sources": ["web"], "raws": [raw]}
    for name, text in texts.items():
        row |= {name: text, f"{name}_sub": subcaptions.split(text), f"{name}_flags": ""}
    return row


def score_of(number: int, item: int = 0) -> float:
    """A score of a text or sub-caption: a multiple of 1/64 between 0 and 1, which no other row of 61 has."""
    return (17 * number + 5 * item) % 61 / 64


def add_scores(number: int, row: Row) -> None:
    """Add the scores by SCORERS to a row of `row_of`."""
    for place, name in enumerate(CAPTIONERS):
        for scorer, factor in (("score", -4.0), ("similarity", 1.0), ("agreement", 8.0)):
            pieces = [factor * score_of(number, place + item) for item in range(len(row[f"{name}_sub"]))]
            row[schema.text_score_column(name, scorer)] = factor * score_of(number, place)
            row[schema.piece_scores_column(name, scorer)] = pieces
    for scorer in ("score", "similarity", "agreement"):
        row[schema.raw_scores_column(scorer)] = [score_of(number, 7)]
    row["size"] = float(number % 10)


def plain(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), COLOURS[number % 3])


def jpeg(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=95)
    return content.getvalue()


def _shard(run: Run, shard: int, samples: int, change: Any, picture: Any, row_group: int, columns: Any) -> Row:
    names = [f"train-{shard:05d}.{ending}" for ending in ("tar", "parquet")]
    tar, parquet = (Path(run.shards, name) for name in names)
    default, dataset_writer.ROW_GROUP = dataset_writer.ROW_GROUP, row_group
    try:
        with SampleWriter(tar, parquet, columns) as writer:
            for row in range(samples):
                number = shard * samples + row
                content = row_of(number) | {"key": f"{shard:05d}{row:04d}"}
                change(number, content)
                image = content.pop("image", None) or jpeg(picture(number))
                writer.write(content, members(content, image, columns.names))
    finally:
        dataset_writer.ROW_GROUP = default
    files = {path.suffix[1:]: vars(record_of(path, path.name)) for path in (tar, parquet)}
    return {"input": shard, "samples": samples, **files}


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), row_group=dataset_writer.ROW_GROUP)
