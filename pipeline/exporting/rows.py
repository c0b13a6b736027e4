"""The rows of an export: one per downloaded image, with the names that its owner knows it by, and all of its texts.

    key, container, member        where the image comes from: `key` is the name of the image in its container without
                                  the extension, or the key of the run where there is none; the other two are null for
                                  an image that was downloaded
    uid, url, sha256, …, raws     as in the dataset of `shard`; no filter is applied
    TEXT, TEXT_flags, TEXT_reason of each captioner: the text, or null; its flags, separated by spaces; and why there is
                                  no text, empty if there is one

The rows stand beside the images of one shard: nothing is lost, and nothing is there twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import FLAGS_SUFFIX
from lotlip_data.pipeline.curation.filters import Filters, raw_texts
from lotlip_data.pipeline.dataset.join import RAW, Captions, JoinError
from lotlip_data.pipeline.dataset.outdated import OUTDATED
from lotlip_data.pipeline.existing_images.side_files import META

Row = dict[str, Any]

REASON_SUFFIX = "_reason"
NO_REASON = "the captioner has given no reason"
NUL = "\0"
HAS_NUL = "nul_character"
"""Reason why a text is left out of a CSV file: some readers end a text at the character U+0000, which has no escape."""
LEFT_OUT = frozenset({*OUTDATED, HAS_NUL})
"""Reasons why a text that exists is left out."""

_SAMPLE = schema.dataset(())
_COLUMNS = pa.schema(
    [
        _SAMPLE.field("key"),
        ("container", pa.string()),
        ("member", pa.string()),
        *(field for field in _SAMPLE if field.name != "key"),
    ]
)
_COPIED = ("uid", "url", "sha256", "width", "height", "original_width", "original_height")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NO_FILTERS = Filters()


def schema_of(columns: Mapping[str, str]) -> pa.Schema:
    """The schema of the rows.

    Args:
        columns: The column of each captioner's texts, by name of the captioner, in their order.

    Raises:
        UserError: Two columns have one name.
    """
    fields = _COLUMNS
    for name, column in columns.items():
        for each in (column, column + FLAGS_SUFFIX, column + REASON_SUFFIX):
            if each in fields.names:
                raise UserError(
                    f"captioner {name!r}: the export has a column {each!r} already. Name another column for its texts: "
                    f"--captioners {name}=COLUMN"
                )
            fields = fields.append(pa.field(each, pa.string()))
    return fields


def join(
    images: Iterable[Mapping[str, Any]], captions: Mapping[str, Captions], columns: Mapping[str, str]
) -> Iterator[Row]:
    """The rows of one shard, in the order of its images. Images and captions are joined by uid.

    Args:
        images: The columns of the downloaded images, as `schema.IMAGES` has them.
        captions: The captions of the shard, by captioner.
        columns: The column of each captioner's texts.

    Raises:
        JoinError: An image does not have exactly one caption of each captioner, or a caption has no image. It can
            come after the last row, so nothing may be committed before the iterator has ended.
    """
    seen: set[str] = set()
    keys: set[str] = set()
    for image in images:
        if image["uid"] in seen:
            raise JoinError(f"image {image['key']} ({image['url']}): uid {image['uid']} occurs twice in this shard")
        seen.add(image["uid"])
        row = _image_columns(image)
        if row["key"] in keys:  # of a.jpg and a.png in one tar
            row["key"] = f"{row['key']}-{image['uid']}"
        keys.add(row["key"])
        for name, captions_of_one in captions.items():
            row |= _text_columns(columns[name], captions_of_one, image)
        yield row
    for captions_of_one in captions.values():
        captions_of_one.check_all_taken()


def _image_columns(image: Mapping[str, Any]) -> Row:
    texts, sources = image["texts"] or [], image["sources"] or []
    raws = raw_texts(texts, sources, _NO_FILTERS)
    raw, source = raws.first
    return {
        "key": original_key(image) or image["key"],
        "container": image.get("container"),
        "member": image.get("member"),
        **{name: image.get(name) for name in _COPIED},
        "source": source or next(iter(sources), None),
        "raw": raw if raw.strip() else None,
        "sources": [source for _, source in raws.kept],
        "raws": [text for text, _ in raws.kept],
    }


def original_key(image: Mapping[str, Any]) -> str | None:
    """The key of an image that existed before the run: the path of its file up to the dot, or its name in a table.

    None for an image that was downloaded, and for a name that cannot be the key of a sample in a tar.
    """
    member, container = str(image.get("member") or ""), str(image.get("container") or "")
    folder, slash, name = member.rpartition("/")
    key, _, extension = name.partition(".")
    is_cut = "." in extension and not container.lower().endswith(_TAR_ENDINGS)  # readers of tars end a key at a dot
    if not key or is_cut or member.startswith("/") or ".." in folder.split("/") or META.match(member):
        return None
    return folder + slash + key


def _text_columns(column: str, captions: Captions, image: Mapping[str, Any]) -> Row:
    """The columns of one captioner. An outdated text is not the image's, and neither are its flags."""
    taken = captions.take(image)
    text = taken.text if taken.outdated is None else None
    reason = "" if text is not None else taken.outdated or " ".join((taken.error or NO_REASON).split())
    flags = [] if taken.outdated else taken.flags
    return {column: text, column + FLAGS_SUFFIX: " ".join(flags), column + REASON_SUFFIX: reason}


def is_complete(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether the image has a text by every captioner."""
    return all(row[column] is not None for column in columns.values())


class Counts:
    """Counts the rows of a shard, their texts, and the texts that exist and are left out."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        """Args:
        columns: The column of each captioner's texts.
        """
        self._columns = columns
        self.rows = 0
        self.texts = dict.fromkeys(columns, 0)
        """By captioner, the number of images with a text."""
        self.left_out: dict[str, Counter[str]] = {}
        """By captioner, or RAW, the number of images whose text is left out, by reason: one of `LEFT_OUT`."""

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        if row["raw"] is None and any(NUL in text for text in row["raws"]):
            self._leave_out(RAW, HAS_NUL)
        for name, column in self._columns.items():
            if row[column] is not None:
                self.texts[name] += 1
            elif (reason := row[column + REASON_SUFFIX]) in LEFT_OUT:
                self._leave_out(name, reason)

    def _leave_out(self, what: str, reason: str) -> None:
        self.left_out.setdefault(what, Counter())[reason] += 1
