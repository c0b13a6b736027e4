"""The columns of every table in a run's folder, shared by all rooms. Needs pyarrow and nothing else.

lists/NNNNN.parquet (LISTS): one row for each URL to fetch; `texts[i]` comes from `sources[i]`. `expected_sha256` and
`expected_md5` are what the fetched bytes should have, in small hexadecimal letters, null where no list says.

images/*.parquet (IMAGES): one row for each URL asked for, as img2dataset writes it; the json member of a fetched
image has the same keys. `key` joins a tar's members, `sha256` is of the fetched bytes, before resizing.

captions/CAPTIONER/NNNNN.parquet (CAPTIONS): one row for each fetched image of shard NNNNN, sorted by `key`. Without a
caption, `text`, `finish_reason` and `tokens` are null and `error` says why. `tokens` counts what the model generated;
of an imported caption, whose `engine` is `imported`, it is null.

shards/train-NNNNN.parquet (`dataset`): one row for each sample, in the order of the tar; the json member of a sample
has the same keys and values. Samples with the fewest long texts missing come first, then they go by `key`: Hugging
Face `datasets` infers the types of a tar from its first five samples, and takes a key that is null or an empty list in
all five for one that never holds anything. For the same reason the flags are one string.

quarantine/shard/*.parquet (DROPPED): one row for each thing that was left out of a shard, with its `reason`. `what` is
`sample`, `raw` (one of several raw texts) or a captioner (its long text); `detail` is the text, or the key or name of
the image that a left-out image is like.

What each of the dataset's columns means is in MEANINGS below, and in docs/reference/dataset-format.md.
"""

from collections.abc import Iterable

import pyarrow as pa

SCHEMA_VERSION = 2

SUCCESS = "success"
"""`status` of a fetched image in IMAGES; any other value is a failure, with its reason in `error_message`."""

IMAGE_EXTENSION = "jpg"
SUB_SUFFIX = "_sub"
FLAGS_SUFFIX = "_flags"

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
    ]
)

EXTENSIONS = frozenset({IMAGE_EXTENSION, "txt", "json"})
"""The members of a sample in a tar of the dataset."""


MEANINGS = {
    "key": "joins the members of a tar; not an identity, because it depends on how the lists were cut into shards",
    "uid": "identity of the sample: the first 32 hexadecimal digits of the sha256 of its normalised URL",
    "url": "the URL that the image was downloaded from",
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
LONG_TEXT = "the long text by this captioner; null if there is none"
SUB_CAPTIONS = "the sub-captions of that long text, in order"
FLAGS = "quality flags of that long text, separated by spaces, usually none; kept if they exclude the text"


def meaning(column: str) -> str:
    """What a column of the dataset means."""
    if column in MEANINGS:
        return MEANINGS[column]
    return SUB_CAPTIONS if column.endswith(SUB_SUFFIX) else FLAGS if column.endswith(FLAGS_SUFFIX) else LONG_TEXT


def dataset(captioners: Iterable[str]) -> pa.Schema:
    """The columns of the dataset with these captioners, in this order.

    Raises ValueError where a captioner's name would be taken for another column.
    """
    schema = _SAMPLE
    for name in captioners:
        for column, kind in ((name, pa.string()), (name + SUB_SUFFIX, _TEXTS), (name + FLAGS_SUFFIX, pa.string())):
            if column in schema.names or column in EXTENSIONS:
                raise ValueError(f"captioner {name!r}: the dataset has a column {column!r} already; rename it")
            schema = schema.append(pa.field(column, kind))
    return schema


KIND = "imported"
