"""Result files of the studies: one JSON object per training, which is created once.

A result is named by a digest of everything that its training depends on, so results of different settings never mix,
and a folder of results can be moved.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError

Content = dict[str, Any]


def key_of(parts: Sequence[Any]) -> str:
    """12 hexadecimal digits that identify `parts`, which are JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def create(url: str, content: Mapping[str, Any]) -> None:
    """Write a result, unless it exists."""
    storage.create(url, (json.dumps(content) + "\n").encode())


def read_folder(folder: str, schema: type, remedy: str) -> list[Content]:
    """The results in a folder, in the order of their names.

    Args:
        folder: The folder; it may be missing.
        schema: A TypedDict of the fields that a result must have.
        remedy: How to replace a damaged result; the end of an error message.

    Raises:
        UserError: A file is no result; the message names it.
    """
    urls = [storage.join(folder, name) for name in storage.list_names(folder, ".json")]
    return [_parse(storage.read_bytes(url), url, schema, remedy) for url in urls]


def read_lines(file: str, schema: type, remedy: str, identity: Sequence[str]) -> list[Content]:
    """The results in a .jsonl file, one per line, without lines that repeat another one.

    Args:
        file: Path or URL.
        schema: As in `read_folder`.
        remedy: As in `read_folder`.
        identity: The fields that name the training of a result.

    Raises:
        UserError: The file cannot be read, a line is no result, or two lines are different results of one training.
    """
    try:
        lines = storage.read_bytes(file).splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot read the results of a study ({error})") from error
    kept: dict[tuple[Any, ...], tuple[int, Content]] = {}
    for number, line in enumerate(lines, 1):
        content = _parse(line, f"{file}, line {number}", schema, remedy)
        first, same = kept.setdefault(tuple(content[name] for name in identity), (number, content))
        if content != same:
            raise UserError(
                f"{file}, lines {first} and {number}: different results of one training; keep the one that you trust"
            )
    return [content for _, content in kept.values()]


def _parse(text: bytes, where: str, schema: type, remedy: str) -> Content:
    return dict(artifacts.parse_json(text, where, remedy, schema))


def format_lines(contents: Iterable[Mapping[str, Any]]) -> bytes:
    """The results as a .jsonl file, in their order."""
    return "".join(json.dumps(content, sort_keys=True) + "\n" for content in contents).encode()


def require_known(file: str, contents: Sequence[Content], known: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if `file` has results, but none that this release knows."""
    if contents and not known:
        raise UserError(
            f"{file}: all of its {len(contents)} results belong to other seeds or to a study with other settings, data "
            "or evaluation; "
            "use the release that wrote it"
        )


def local_folder(folder: str) -> str:
    """The absolute path of a study's folder. Raises UserError if it is not on this machine."""
    if not storage.is_local(folder):
        raise UserError(f"{folder}: the study runs on this machine; name a local folder")
    return str(Path(storage.normalise(folder)))
