"""The columns of every table in a run's folder, shared by all rooms. Needs pyarrow and nothing else.

lists/NNNNN.parquet (LISTS): one row for each URL to fetch; `texts[i]` comes from `sources[i]`.

images/*.parquet (IMAGES): one row for each URL asked for, as img2dataset writes it; the json member of a fetched
image has the same keys. `key` joins a tar's members, `sha256` is of the fetched bytes, before resizing.

captions/CAPTIONER/NNNNN.parquet (CAPTIONS): one row for each fetched image of shard NNNNN, sorted by `key`. Without a
caption, `text`, `finish_reason` and `tokens` are null and `error` says why. `tokens` counts what the model generated.

shards/train-NNNNN.parquet (`dataset`): one row for each sample, sorted by `key`; the json member has the same keys.

| column               | type         | means                                                                  |
|----------------------|--------------|------------------------------------------------------------------------|
| `key`                | string       | joins the members of a tar; no identity: it depends on how lists were cut |
| `uid`                | string       | first 32 hexadecimal digits of the sha256 of the normalised URL: the sample's identity |
| `url`                | string       | where the image was fetched from                                       |
| `sha256`             | string       | of the fetched bytes, before resizing                                  |
| `width`, `height`    | int32        | of the stored image, in pixels                                         |
| `original_width`, `original_height` | int32 | of the fetched image, in pixels                                |
| `source`, `raw`      | string       | the first source that lists the URL, and its raw text                  |
| `sources`, `raws`    | list<string> | all of them, in the same order                                         |
| `<captioner>`        | string       | its long text; null where it has none                                  |
| `<captioner>_sub`    | list<string> | the sub-captions of that long text                                     |
| `<captioner>_flags`  | list<string> | what is suspicious about it (cut off, repeats itself, …)               |
"""

from collections.abc import Iterable

import pyarrow as pa

SCHEMA_VERSION = 1

SUCCESS = "success"
"""`status` of a fetched image in IMAGES; any other value is a failure, with its reason in `error_message`."""

IMAGE_EXTENSION = "jpg"
SUB_SUFFIX = "_sub"
FLAGS_SUFFIX = "_flags"

_TEXTS = pa.list_(pa.string())

LISTS = pa.schema([("uid", pa.string()), ("url", pa.string()), ("texts", _TEXTS), ("sources", _TEXTS)])

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

EXTENSIONS = frozenset({IMAGE_EXTENSION, "txt", "json"})
"""The members of a sample in a tar of the dataset."""


def dataset(captioners: Iterable[str]) -> pa.Schema:
    """The columns of the dataset with these captioners, in this order.

    Raises ValueError where a captioner's name would be taken for another column.
    """
    schema = _SAMPLE
    for name in captioners:
        for column, kind in ((name, pa.string()), (name + SUB_SUFFIX, _TEXTS), (name + FLAGS_SUFFIX, _TEXTS)):
            if column in schema.names or column in EXTENSIONS:
                raise ValueError(
                    f"captioner {name!r}: the dataset has a column {column!r} already; rename the captioner"
                )
            schema = schema.append(pa.field(column, kind))
    return schema
