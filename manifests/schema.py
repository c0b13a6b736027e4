"""The columns of every table in a run's folder, shared by all rooms. Needs pyarrow and nothing else.

lists/NNNNN.parquet (LISTS): one row for each URL to fetch; `texts[i]` comes from `sources[i]`. `expected_sha256` and
`expected_md5` are what the fetched bytes should have, in small hexadecimal letters, null where no list says.

images/*.parquet (IMAGES): one row for each URL asked for, as img2dataset writes it; the json member of a fetched
image has the same keys. `key` joins a tar's members, `sha256` is of the fetched bytes, before resizing.

captions/CAPTIONER/NNNNN.parquet (CAPTIONS): one row for each fetched image of shard NNNNN, sorted by `key`. Without a
caption, `text`, `finish_reason` and `tokens` are null and `error` says why. `tokens` counts what the model generated.

shards/train-NNNNN.parquet (`dataset`): one row for each sample, in the order of the tar; the json member of a sample
has the same keys and values. Samples with the fewest long texts missing come first, then they go by `key`: Hugging
Face `datasets` infers the types of a tar from its first five samples, and takes a key that is null or an empty list in
all five for one that never holds anything. For the same reason the flags are one string.

| column                | type         | means                                                                     |
|-----------------------|--------------|---------------------------------------------------------------------------|
| `key`                 | string       | joins a tar's members; no identity, it depends on how the lists were cut  |
| `uid`                 | string       | the sample's identity: 32 hexadecimal digits of the normalised URL's sha256 |
| `url`                 | string       | where the image was fetched from                                          |
| `sha256`              | string       | of the fetched bytes, before resizing                                     |
| `width`, `height`     | int32        | of the stored image, in pixels                                            |
| `original_width`, `original_height` | int32 | of the fetched image, in pixels                                    |
| `source`, `raw`       | string       | the first source that lists the URL, and its raw text                     |
| `sources`, `raws`     | list<string> | all of them, in the same order                                            |
| `<captioner>`         | string       | its long text; null where it has none                                     |
| `<captioner>_sub`     | list<string> | the sub-captions of that long text                                        |
| `<captioner>_flags`   | string       | what is suspicious about it: names with blanks between them, mostly none  |
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

EXTENSIONS = frozenset({IMAGE_EXTENSION, "txt", "json"})
"""The members of a sample in a tar of the dataset."""


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
