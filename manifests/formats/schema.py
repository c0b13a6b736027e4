"""The columns of every table in a run's folder. It needs pyarrow and nothing else.

lists/NNNNN.parquet (LISTS): one row per URL to download; `texts[i]` comes from `sources[i]`. `expected_sha256` and
`expected_md5` are the hashes that the downloaded bytes should have, as lowercase hexadecimal digits; null if no list
gives one.

images/*.parquet (IMAGES): one row per requested URL, as img2dataset writes it; the json member of a downloaded image
has the same keys. `key` joins the members of a tar, `sha256` is the hash of the downloaded bytes, before resizing.

A shard of images that existed before the run (EXISTING_IMAGES) has three columns more (ORIGIN). `container` is the tar,
the table or the folder that an image is read from, `member` its name in it, and `converted` says whether the image is
converted when it is read; it is null for an image that the run stores, as for one without success. The `uid` is that of
the URL, or the first 32 digits of the sha256 where there is no URL.

captions/CAPTIONER/NNNNN.parquet (CAPTIONS): one row per downloaded image of shard NNNNN, sorted by `key`. Without a
caption, `text`, `finish_reason` and `tokens` are null and `error` says why. `tokens` is the number of generated
tokens; it is null for an imported caption, whose `engine` is `imported`. `fields_sha256` is the hash of the columns of
the sample that the prompt has; it is null if the prompt has none, and files of older releases lack it.

shards/train-NNNNN.parquet (`dataset`): one row per sample, in the order of the tar; the json member of a sample has
the same keys and values. Samples with the fewest missing long texts come first; among these, the order is by `key`.
The reason: Hugging Face `datasets` infers the types of a tar from its first five samples, and takes a key that is null
or an empty list in all five for one that is always empty. For the same reason the flags are one string. A captioner
whose texts are JSON objects has a further column for each key that its setting `structured.columns` names. A dataset
with scores has further columns at the end: those of each captioner's texts, of the raw texts, and of the images.

quarantine/shard/*.parquet (DROPPED): one row per sample or text that was left out of a shard, with its `reason`.
`what` is `sample`, `raw` (one of several raw texts) or a captioner (its long text). `detail` is the text, or the key
or name of the image that a left-out image resembles; `distance` is the number of bits that differ between the
perceptual hashes of these two images, 0 for equal bytes, and null for other reasons.

MEANINGS below describes each column of the dataset; docs/reference/dataset-format.md repeats it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

SCHEMA_VERSION = 2

SUCCESS = "success"
"""`status` of a downloaded image in IMAGES; any other value is a failure, with its reason in `error_message`."""

IMAGE_EXTENSION = "jpg"
SUB_SUFFIX = "_sub"
FLAGS_SUFFIX = "_flags"
SCORE = "score"
"""The name of the combined score. No scorer has it."""
RAW_SCORES = "raws_"
"""Start of the names of the columns with the scores of the raw texts."""

_TEXTS = pa.list_(pa.string())

LISTS = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("texts", _TEXTS),
        ("sources", _TEXTS),
        ("expected_sha256", pa.string()),
        ("expected_md5", pa.string()),
    ]
)

IMAGES = pa.schema(
    [
        *LISTS,
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
    ]
)

ORIGIN = pa.schema([("container", pa.string()), ("member", pa.string()), ("converted", pa.bool_())])

EXISTING_IMAGES = pa.schema([*IMAGES, *ORIGIN])

CAPTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("sha256", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("flags", _TEXTS),
        ("error", pa.string()),
        ("engine", pa.string()),
        ("fields_sha256", pa.string()),
    ]
)

_SAMPLE = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("source", pa.string()),
        ("raw", pa.string()),
        ("sources", _TEXTS),
        ("raws", _TEXTS),
    ]
)

DROPPED = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
        ("what", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("distance", pa.int32()),
    ]
)

EXTENSIONS = frozenset({IMAGE_EXTENSION, "txt", "json"})
"""Extensions of the members of a sample in a tar of the dataset."""


MEANINGS = {
    "key": "joins the members of a tar; not an identity, because it depends on how the lists were cut into shards",
    "uid": "identity of the sample: the first 32 hexadecimal digits of the sha256 of its normalised URL, or of the "
    "image's bytes where it has no URL",
    "url": "the URL that the image was downloaded from; empty for an image that has none",
    "sha256": "sha256 of the downloaded bytes, before resizing",
    "width": "width of the stored image in pixels",
    "height": "height of the stored image in pixels",
    "original_width": "width of the downloaded image in pixels",
    "original_height": "height of the downloaded image in pixels",
    "source": "the first source whose raw text passes the filters and is not blank; if all are blank, the first one",
    "raw": "the raw text of that source",
    "sources": "all sources whose raw text passes the filters",
    "raws": "their raw texts, in the same order",
}
VALUE = (
    "the value of this key in the long text by this captioner, a JSON object; null if the text is flagged or lacks it"
)
LONG_TEXT = "the long text by this captioner; null if there is none"
SUB_CAPTIONS = "the sub-captions of that long text, in order"
FLAGS = "quality flags of that long text, separated by spaces, usually none; kept if they exclude the text"


VALUE_TYPES = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "strings": _TEXTS,
}
"""Types of the columns of a captioner whose texts are JSON objects, by their name in `json_columns` of dataset.json."""

JsonColumns = Mapping[str, Mapping[str, str]]
"""By captioner whose texts are JSON objects: the keys that have a column, and the names of their types."""


Scorers = Mapping[str, str]
"""By scorer, what it scores: `texts` or `images`."""


def scores_of_texts(scorers: Scorers) -> list[str]:
    """SCORE and the scorers of texts; empty without one."""
    names = [name for name, scores in scorers.items() if scores == "texts"]
    return [SCORE, *names] if names else []


def scores_of_images(scorers: Scorers) -> list[str]:
    """The scorers of images."""
    return [name for name, scores in scorers.items() if scores == "images"]


def text_score_column(captioner: str, scorer: str) -> str:
    """The column with the scores of a captioner's texts by a scorer; SCORE is the combined score."""
    return f"{captioner}_{scorer}"


def piece_scores_column(captioner: str, scorer: str) -> str:
    """The column with the scores of a captioner's sub-captions."""
    return f"{captioner}{SUB_SUFFIX}_{scorer}s" if scorer == SCORE else f"{captioner}{SUB_SUFFIX}_{scorer}"


def raw_scores_column(scorer: str) -> str:
    """The column with the scores of the raw texts."""
    return f"{RAW_SCORES}{scorer}s" if scorer == SCORE else f"{RAW_SCORES}{scorer}"


def value_column(captioner: str, key: str) -> str:
    """The column of a key of the JSON objects by a captioner."""
    return f"{captioner}_{key}"


def meaning(column: str, json_columns: JsonColumns | None = None) -> str:
    """The description of a column of the dataset that is not one of `score_columns`."""
    if column in MEANINGS:
        return MEANINGS[column]
    if any(column == value_column(name, key) for name, keys in (json_columns or {}).items() for key in keys):
        return VALUE
    return SUB_CAPTIONS if column.endswith(SUB_SUFFIX) else FLAGS if column.endswith(FLAGS_SUFFIX) else LONG_TEXT


class ScoreColumn(NamedTuple):
    """A column of the dataset with scores."""

    name: str
    type: pa.DataType
    meaning: str


def score_columns(captioners: Iterable[str], scorers: Scorers) -> list[ScoreColumn]:
    """The columns with scores of a dataset, in their order."""
    one, several = pa.float32(), pa.list_(pa.float32())
    names = scores_of_texts(scorers)
    kinds = [(name, "combined score" if name == SCORE else f"score by {name}") for name in names]
    columns = []
    for captioner in captioners:
        for name, what in kinds:
            text, pieces = text_score_column(captioner, name), piece_scores_column(captioner, name)
            columns.append(ScoreColumn(text, one, f"{what} of the long text by this captioner; null if there is none"))
            columns.append(ScoreColumn(pieces, several, f"{what} of each of its sub-captions, in their order"))
    columns += [ScoreColumn(raw_scores_column(name), several, f"{what} of each of `raws`") for name, what in kinds]
    images = scores_of_images(scorers)
    return columns + [ScoreColumn(name, one, f"score of the image by {name}; null if there is none") for name in images]


def dataset(
    captioners: Iterable[str], json_columns: JsonColumns | None = None, scorers: Scorers | None = None
) -> pa.Schema:
    """The columns of a dataset with these captioners, in this order.

    Args:
        captioners: Their names.
        json_columns: The columns of those whose texts are JSON objects.
        scorers: The scorers whose scores the dataset has.

    Raises:
        ValueError: If a captioner's name, a key's column or a scorer's column is the name of another column or of a
            tar's member.
    """
    captioners = list(captioners)
    columns: list[tuple[str, str, pa.DataType]] = []
    for name in captioners:
        of_one = [(name, pa.string()), (name + SUB_SUFFIX, _TEXTS), (name + FLAGS_SUFFIX, pa.string())]
        keys = (json_columns or {}).get(name, {})
        of_one += [(value_column(name, key), VALUE_TYPES[kind]) for key, kind in keys.items()]
        columns += [(f"captioner {name!r}", *column) for column in of_one]
    scores = score_columns(captioners, scorers or {})
    columns += [(f"scorer of the column {column.name!r}", column.name, column.type) for column in scores]
    schema = _SAMPLE
    for subject, column, column_type in columns:
        if column in schema.names or column in EXTENSIONS:
            raise ValueError(f"{subject}: the dataset has a column {column!r} already; rename it")
        schema = schema.append(pa.field(column, column_type))
    return schema


def scorers_of(index: Mapping[str, Any]) -> Scorers:
    """The scorers whose scores the dataset has that a dataset.json describes."""
    return {name: scorer["scores"] for name, scorer in index.get("scorers", {}).items()}


def score_columns_of(index: Mapping[str, Any]) -> list[ScoreColumn]:
    """The columns with scores of the dataset that a dataset.json describes."""
    return score_columns(index["captioners"], scorers_of(index))


def dataset_of(index: Mapping[str, Any]) -> pa.Schema:
    """The columns of the dataset that a dataset.json describes."""
    return dataset(index["captioners"], index.get("json_columns"), scorers_of(index))


IMPORTED_KIND = "imported"
"""The `kind` of a captioner whose captions were imported, in its captioner.json."""
