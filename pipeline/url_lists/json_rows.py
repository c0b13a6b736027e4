"""Reads JSON lines: one object per line, whose keys are the columns."""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lotlip_data.pipeline.url_lists.cells import GARBLED, kind_of, texts_of
from lotlip_data.pipeline.url_lists.rows import (
    BATCH_ROWS,
    CHUNK_BYTES,
    LINE_TOO_LONG,
    BadRow,
    Columns,
    ListError,
    Reject,
    Row,
    clip,
    positions,
)
from lotlip_data.pipeline.url_lists.text_lines import Line, LongLine

_NOT_AN_OBJECT = "not a JSON object"


class _RepeatingObject(dict[str, Any]):
    """An object with a key that stands twice in it."""

    repeated: frozenset[str]


def json_rows(lines: Iterator[Line], source: str, columns: Columns, file: str, reject: Reject) -> Iterator[Row]:
    """The rows of JSON lines.

    Args:
        lines: The lines of the file.
        source: Name of the source, for unusable rows.
        columns: The requested columns.
        file: Name of the file.
        reject: Receives unusable rows.

    Raises:
        ListError: None of the first objects has a column, or all have it with a type that is no text.
    """
    names = columns.names
    pending: list[tuple[Row, dict[str, Any]]] | None = []
    size = 0
    for row, content in _objects(lines, source, names, file, reject):
        if pending is None:
            yield row
            continue
        pending.append((row, content))
        size += row[2]
        if len(pending) == BATCH_ROWS or size >= CHUNK_BYTES:
            yield from _checked(pending, columns, file)
            pending = None
    if pending:
        yield from _checked(pending, columns, file)


def _objects(
    lines: Iterator[Line], source: str, names: Sequence[str], file: str, reject: Reject
) -> Iterator[tuple[Row, dict[str, Any]]]:
    wanted = tuple(names)
    for number, line in enumerate(lines, 1):
        if isinstance(line, LongLine):
            reject(BadRow(source, file, number, LINE_TOO_LONG, clip(line.start)))
            continue
        if not line.strip():
            continue
        content = object_of(line, wanted)
        if isinstance(content, str):
            reject(BadRow(source, file, number, content, clip(line)))
        else:
            yield (number, tuple(content.get(name) for name in names), len(line)), content


def object_of(text: str, names: tuple[str, ...]) -> dict[str, Any] | str:
    """The JSON object in a text; or the reason why it cannot be used: it is none, or has one of the names twice."""
    content = _parse(text)
    if not isinstance(content, dict):
        return _NOT_AN_OBJECT
    if any(sum(map(text.count, forms)) > 1 for forms in _spellings(names)) and _repeats(text, names):
        return "a column stands twice"
    return content


@functools.lru_cache
def _spellings(names: tuple[str, ...]) -> list[set[str]]:
    """How each name can stand in JSON."""
    return [{json.dumps(name, ensure_ascii=False), json.dumps(name)} for name in names]


def object_names(lines: Sequence[str]) -> list[str]:
    """The keys of the objects in the first lines of a file."""
    objects = (content for line in lines[:BATCH_ROWS] if isinstance(content := _parse(line), dict))
    return list(dict.fromkeys(name for content in objects for name in content))


def _parse(line: str) -> Any:
    """The value in a line; None if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _repeats(line: str, names: Sequence[str]) -> bool:
    """Whether a key of the object in a line stands twice in it."""
    content = json.loads(line, object_pairs_hook=_to_object)
    return isinstance(content, _RepeatingObject) and not content.repeated.isdisjoint(names)


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    repeating = _RepeatingObject(content)
    repeating.repeated = frozenset(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return repeating


def _checked(pending: list[tuple[Row, dict[str, Any]]], columns: Columns, file: str) -> Iterator[Row]:
    """The rows, once their columns are checked."""
    seen = dict.fromkeys(name for _, content in pending for name in content)
    positions(columns.names, list(seen), file)
    for name in (*columns.values, *columns.texts):
        kinds = [_kind(content.get(name), name in columns.texts) for _, content in pending]
        known = [kind for (_, content), kind in zip(pending, kinds, strict=True) if content.get(name) is not None]
        if known and all(known):
            expected = "a text or a list of texts" if name in columns.texts else "a text"
            raise ListError(f"{file}: every cell of the column {name!r} is {known[0]}, not {expected}; choose another")
    for row, _ in pending:
        yield row


def _kind(value: Any, can_be_list: bool) -> str | None:
    """What the cell is, if it cannot be used."""
    if not can_be_list:
        return kind_of(value)
    texts, defect = texts_of(value)
    return defect if not texts and defect not in (None, GARBLED) else None


def check_beginning(lines: Sequence[str], file: str) -> None:
    """Raise ListError if a file with these first lines is one JSON array or one object over many lines."""
    first = next((line.strip() for line in lines if line.strip()), "")
    remedy = "it must be JSON lines, with one object per line and no commas between them"
    if first.startswith("["):
        content = _parse(first)
        if content is None or (isinstance(content, list) and any(isinstance(part, dict) for part in content)):
            raise ListError(
                f"{file}: is one JSON array; {remedy}. Convert it, for example with `jq -c '.[]' OLD.json > NEW.jsonl`"
            )
    elif first == "{" or (first.startswith("{") and first.endswith("[")):
        raise ListError(f"{file}: is one JSON object over many lines; {remedy}")
