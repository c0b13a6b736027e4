"""Turns the cells of a list into texts: of any Python value that a format gives, and of any Arrow type.

A cell of texts is one value or a list of values. A value is a text, bytes in UTF-8, or a number; NaN and infinity are
missing, as null is. Booleans, objects, dates and lists in lists are no texts: a column of such a type is an error, and
single cells are counted by what they are.
"""

import html
import math
import re
import urllib.parse
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.settings.source import Decoding
from lotlip_data.pipeline.url_lists.rows import SURROGATES

GARBLED = "not in UTF-8"
"""The defect of a text with undecodable bytes, which are replaced by U+FFFD."""
GARBLED_REMEDY = (
    f"{GARBLED}, so their unreadable bytes are lost (\ufffd); convert the files, "
    "with `iconv -f latin1 -t utf-8 OLD > NEW` if they are in Latin-1"
)
"""Completes the sentence "N texts are …"."""

_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what `surrogateescape` turns undecodable bytes into


def clean(value: Any) -> str | None:
    """A cell as stripped text that UTF-8 can encode; None if the cell is empty or holds no single value."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        value = str(value) if isinstance(value, int) or math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if value.isascii() else SURROGATES.sub("\ufffd", value)


def is_utf8(value: Any) -> bool:
    """Whether the bytes of a cell are valid UTF-8."""
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            return False
    return not (isinstance(value, str) and _UNDECODABLE.search(value))


def kind_of(value: Any) -> str | None:
    """What a cell is that is neither a value nor missing, such as `an object`; None for other cells."""
    if value is None or (isinstance(value, str | bytes | int | float | Decimal) and not isinstance(value, bool)):
        return None
    names = {bool: "true or false", dict: "an object", list: "a list"}
    return names.get(type(value), f"of type {type(value).__name__}")


def texts_of(value: Any, decode: Callable[[str], str] | None = None) -> tuple[list[str], str | None]:
    """The texts of a cell, each once, without blank ones; and its defect, if it has one.

    Args:
        value: A value, or a list of values.
        decode: Removes an encoding of the texts.
    """
    if type(value) is str and decode is None:  # nearly all cells
        text = clean(value)
        return [text] if text else [], GARBLED if text and "\ufffd" in text and not is_utf8(value) else None
    defect = None
    texts: dict[str, None] = {}
    for part in value if isinstance(value, list) else (value,):
        if (kind := kind_of(part)) is not None:
            defect = kind if part is value else f"a list with an element that is {kind}"
            continue
        text = clean(part) or ""
        if text and decode is not None:
            text = clean(decode(text)) or ""
            defect = GARBLED if "\ufffd" in text else defect
        if text:
            texts[text] = None
            if "\ufffd" in text and not is_utf8(part):
                defect = GARBLED
    return list(texts), defect


def decoder(decoding: Decoding) -> Callable[[str], str] | None:
    """The function that removes an encoding of texts; None if there is none to remove."""
    return {"url": _url_decoded, "html": html.unescape, "none": None}[decoding]


def _url_decoded(text: str) -> str:
    """Percent escapes decoded. A `+` is a space if the text has no other space."""
    has_space = any(character.isspace() for character in text)
    return urllib.parse.unquote(text) if has_space else urllib.parse.unquote_plus(text)


def is_value_type(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts, numbers, or nothing."""
    kind = _storage_type(kind)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return is_value_type(kind.value_type)
    checks = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null),
    )
    return any(check(kind) for check in checks)


def is_text_type(kind: pa.DataType) -> bool:
    """Whether a column of this type holds values or lists of values."""
    kind = _storage_type(kind)
    return is_value_type(kind.value_type if _is_list(kind) else kind)


def _is_list(kind: pa.DataType) -> bool:
    checks = (
        *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
        *(pa.types.is_list_view, pa.types.is_large_list_view),
    )
    return any(check(kind) for check in checks)


def _storage_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def plain(values: pa.Array) -> pa.Array:
    """The same values in a type that every Arrow function takes: without views, dictionaries and extensions."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    if pa.types.is_list_view(values.type) or pa.types.is_large_list_view(values.type):
        # Arrow's own cast gives other elements for a slice of list views.
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int64())
        return pa.LargeListArray.from_arrays(offsets, plain(values.flatten()), mask=values.is_null())
    kind = _plain_type(values.type)
    return values if kind == values.type else values.cast(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    kind = _storage_type(kind)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.large_list(_plain_type(kind.value_type)) if _is_list(kind) else kind


def sizes(values: pa.Array) -> np.ndarray:
    """Bytes of each cell as if it stood alone; int64. Dictionaries are not expanded for it."""
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        return sizes(values.storage)
    if pa.types.is_dictionary(kind):
        indices = pc.fill_null(values.indices.cast(pa.int64()), len(values.dictionary)).to_numpy()
        return np.append(sizes(values.dictionary), 0)[indices]
    if _is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        element_ends = np.cumsum(np.append(0, sizes(values.flatten())))
        ends = np.cumsum(lengths)
        return element_ends[ends] - element_ends[ends - lengths] + 8 * lengths
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        values = values.cast(_plain_type(kind))
    if pa.types.is_large_unicode(values.type) or pa.types.is_unicode(values.type):
        values = values.cast(pa.large_binary())
    if pa.types.is_large_binary(values.type) or pa.types.is_binary(values.type):
        return pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.full(len(values), values.nbytes // max(len(values), 1), np.int64)


def to_list(values: Sequence[Any] | pa.Array) -> list[Any]:
    """A column as Python values. Texts that are not UTF-8 are given as bytes."""
    if not isinstance(values, pa.Array):
        return list(values)
    try:
        listed: list[Any] = values.to_pylist()
    except UnicodeDecodeError:  # some Parquet writers declare bytes as strings without a check
        kind = values.type
        binary = pa.large_list(pa.large_binary()) if _is_list(kind) else pa.large_binary()
        listed = values.cast(binary).to_pylist()
    return listed
