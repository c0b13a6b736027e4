"""Writes the dataset card: README.md with the YAML front matter that the Hugging Face hub and `datasets` read."""

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa
import yaml

from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import DATASET_JSON
from lotlip_data.manifests.wording import count
from lotlip_data.pipeline.dataset.metadata import Description

_SIZE_CATEGORIES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
FEATURES = "dataset_info"
"""The key of the front matter that declares the columns."""
_NUMBER = re.compile(r"\d+")


def card(description: Description) -> str:
    """The content of README.md."""
    return f"---\n{_front_text(description)}---\n\n{_body(description)}{stamp(description)}\n"


def _front_text(description: Description) -> str:
    return yaml.safe_dump(front_matter(description), sort_keys=False, allow_unicode=True)


def text_of(content: bytes, errors: str = "strict") -> str:
    """The text of a card, which an editor on Windows may have saved."""
    return content.decode("utf-8-sig", errors).replace("\r\n", "\n")


def declaring_columns(content: str, description: Description) -> str:
    """A card of this dataset with the declaration of its columns, which cards of earlier releases lack.

    The text below the front matter stays, with what people added to it.
    """
    before, opening, rest = content.partition("---\n")
    front, closing, body = rest.partition("\n---\n")
    if before or not opening or not closing:
        return f"---\n{_front_text(description)}---\n\n{content}"
    return content if f"\n{FEATURES}:" in front else f"---\n{_front_text(description)}---\n{body}"


def stamp(description: Description) -> str:
    """A comment that ties the card to its dataset. While it fits, the card stays, with what people added to it."""
    tars = [name for names in description.tars.values() for name in names]
    sources = [list(source.values()) for source in description.sources if source["licence"] or source["homepage"]]
    parts = (description.summary["recipe"], description.summary["samples"], tars, *sources)
    return f"<!-- of {DATASET_JSON} {hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]} -->"


def front_matter(description: Description) -> dict[str, Any]:
    """The metadata of the card. The data files of both splits are the tars: a card can name one kind of file only."""
    summary = description.summary
    return {
        "pretty_name": summary["name"],
        **_licence(description),
        "language": ["en"],
        "task_categories": ["image-to-text", "zero-shot-image-classification"],
        "tags": ["image-text", "long-captions", "webdataset"],
        "size_categories": [_size_category(summary["samples"])],
        FEATURES: {"features": features(summary)},
        "configs": configs(description.tars),
    }


def configs(paths: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The front matter's list of the files of each split that has files."""
    files = [{"split": split, "path": names} for split, names in paths.items() if names]
    return [{"config_name": "default", "data_files": files}]


def features(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the tars of the dataset that a dataset.json describes, as `datasets` declares them.

    Without them, `datasets` infers the types from five samples, and fails on later texts if these samples have none.
    """
    return [
        {"name": schema.IMAGE_EXTENSION, "dtype": "image"},
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": columns(summary)},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def columns(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the Parquet files of the dataset that a dataset.json describes, as `datasets` declares them."""
    return [_feature(column) for column in schema.dataset_of(summary)]


def _feature(column: pa.Field) -> dict[str, Any]:
    if pa.types.is_list(column.type):
        return {"name": column.name, "list": _dtype(column.type.value_type)}
    return {"name": column.name, "dtype": _dtype(column.type)}


def _dtype(column_type: pa.DataType) -> str:
    """The name that `datasets` has for a type: Arrow's own, except for floating-point numbers."""
    return {"float": "float32", "double": "float64"}.get(str(column_type), str(column_type))


def _size_category(samples: int) -> str:
    return _SIZE_CATEGORIES[min(len(_SIZE_CATEGORIES) - 1, max(0, len(str(samples)) - 3))]


def _licence(description: Description) -> dict[str, str]:
    """The hub's `other` with a name if every source states a licence, which is free text; else `unknown`."""
    if all(source["licence"] for source in description.sources):
        return {"license": "other", "license_name": "by-source"}
    return {"license": "unknown"}


def _body(description: Description) -> str:
    summary = description.summary
    sections = [
        _overview(summary),
        splits(description),
        _captioners(summary),
        _left_out(summary),
        _sources(description),
    ]
    return "".join("\n".join(lines) + "\n\n" for lines in sections)


def _overview(summary: dict[str, Any]) -> list[str]:
    return [
        f"# {summary['name']}",
        "",
        f"{count(summary['samples'], 'image')}, each with the raw texts of its sources and long texts by "
        f"{count(len(summary['captioners']), 'captioner')}. Written by lotlip-data. dataset.json lists size, "
        "sha256 and counts of every file, and the origin of the dataset.",
    ]


def splits(description: Description) -> list[str]:
    """The lines of the card that list the tars of each split."""
    lines = ["| split | images | shards | for webdataset and open_clip |", "|---|---|---|---|"]
    for split, tars in description.tars.items():
        if tars:
            counts = description.summary["splits"][split]
            lines.append(f"| {split} | {counts['samples']:,} | {counts['shards']:,} | `{braces(tars)}` |")
    return lines


def _captioners(summary: dict[str, Any]) -> list[str]:
    settings = summary["manifest"]["shard"] | summary["manifest"]["clean"]
    changed = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, False, 0, []))
    counts = summary["long_texts"]
    rows = [f"| {name} | `{id}` | {counts[name]:,} |" for name, id in summary["captioners"].items()]
    table = ["| captioner | id | long texts |", "|---|---|---|", *rows, ""] if rows else []
    return [*table, f"Settings: {changed}."]


def _left_out(summary: dict[str, Any]) -> list[str]:
    counts_by_kind = {"sample": summary["dropped"]} | summary["dropped_texts"]
    rows = [
        f"| {kind} | {reason} | {number:,} |"
        for kind, counts in counts_by_kind.items()
        for reason, number in counts.items()
    ]
    images = count(summary["fetched"], "image")
    if not rows:
        return ["## Left out", "", f"Nothing: of {images}, all are in the dataset with all their texts."]
    return ["## Left out", "", f"Of {images}:", "", "| what | reason | count |", "|---|---|---|", *rows]


def _sources(description: Description) -> list[str]:
    return [
        "## Sources and licences",
        "",
        "The images and the raw texts belong to those who published them.",
        "",
        "| source | licence | homepage |",
        "|---|---|---|",
        *(f"| {' | '.join(map(_cell, source.values()))} |" for source in description.sources),
    ]


def _cell(value: str | None) -> str:
    """A value as a cell of a Markdown table."""
    return " ".join((value or "not stated").split()).replace("|", "\\|")


def braces(names: list[str]) -> str:
    """The names as a webdataset pattern: `train-{00000..00041}.tar`; several patterns are joined with `::`."""
    patterns = []
    names_by_form = groupby(sorted(map(_split_number, names), key=lambda part: part[1:]), key=lambda part: part[1:])
    for (head, tail, width), group in names_by_form:
        numbers = sorted(number for number, *_ in group)
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            consecutive = [number for _, number in run]
            first, last = (f"{number:0{width}d}" for number in (consecutive[0], consecutive[-1]))
            patterns.append(f"{head}{first if first == last else f'{{{first}..{last}}}'}{tail}")
    return "::".join(patterns)


def _split_number(name: str) -> tuple[int, str, str, int]:
    """The first number in the name, the texts before and after it, and its number of digits."""
    match = _NUMBER.search(name)
    assert match is not None, "the names of the dataset's files have a number"
    return int(match[0]), name[: match.start()], name[match.end() :], len(match[0])
