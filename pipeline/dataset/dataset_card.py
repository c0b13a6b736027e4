"""The dataset card: README.md with the YAML front matter that the Hugging Face hub and `datasets` read."""

import hashlib
import json
import re
from itertools import groupby
from typing import Any

import yaml

from lotlip_data.manifests.dataset_index import DATASET_JSON
from lotlip_data.pipeline.dataset.metadata import Description

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_NUMBER = re.compile(r"\d+")


def card(described: Description) -> str:
    """The content of README.md for the dataset that is described."""
    front = yaml.safe_dump(front_matter(described), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(described)}{stamp(described)}\n"


def stamp(described: Description) -> str:
    """A comment in the card that tells which dataset it is of. While it fits, what people wrote around it stays."""
    names = [name for few in described.tars.values() for name in few]
    told = [source for source in described.sources if source["licence"] or source["homepage"]]
    parts = (described.head["recipe"], described.head["samples"], names, *map(list, map(dict.values, told)))
    return f"<!-- of {DATASET_JSON} {hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]} -->"


def front_matter(described: Description) -> dict[str, Any]:
    """With the tars as the data files of both splits: a card can have files of one kind only."""
    return {
        "pretty_name": described.head["name"],
        **_licence(described),
        "language": ["en"],
        "task_categories": ["image-to-text", "zero-shot-image-classification"],
        "tags": ["image-text", "long-captions", "webdataset"],
        "size_categories": [_SIZES[min(len(_SIZES) - 1, max(0, len(str(described.head["samples"])) - 3))]],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": names} for split, names in described.tars.items() if names],
            }
        ],
    }


def _licence(described: Description) -> dict[str, str]:
    """Each source has its own, in words; the hub knows `other`, with a name for it, and `unknown`."""
    if all(source["licence"] for source in described.sources):
        return {"license": "other", "license_name": "by-source"}
    return {"license": "unknown"}


def _body(described: Description) -> str:
    description = described.head
    asked = description["manifest"]["shard"] | description["manifest"]["clean"]
    settings = ", ".join(f"{name} {value}" for name, value in asked.items() if value not in (None, False, 0, []))
    lines = [
        f"# {description['name']}",
        "",
        f"{description['samples']:,} images, each with the raw texts that its sources give it and long texts by "
        f"{len(description['captioners'])} captioners. Written by lotlip-data; dataset.json has the sha256, bytes and "
        "counts of every file, and where everything comes from.",
        "",
        "| split | images | shards | for webdataset and open_clip |",
        "|---|---|---|---|",
    ]
    for split, names in described.tars.items():
        if names:
            figures = description["splits"][split]
            lines.append(f"| {split} | {figures['samples']:,} | {figures['shards']:,} | `{braces(names)}` |")
    lines += ["", "| captioner | id | long texts |", "|---|---|---|"]
    counts = description["long_texts"]
    lines += [f"| {name} | `{id}` | {counts[name]:,} |" for name, id in description["captioners"].items()]
    lines += ["", f"Made with: {settings}.", ""]
    lines += [
        "## Left out",
        "",
        f"Of {description['fetched']:,} images:",
        "",
        "| what | reason | count |",
        "|---|---|---|",
    ]
    left_out = {"sample": description["dropped"]} | description["dropped_texts"]
    lines += [f"| {what} | {reason} | {count:,} |" for what, few in left_out.items() for reason, count in few.items()]
    lines += [
        "",
        "## Sources and licences",
        "",
        "The images and the raw texts belong to those who published them.",
        "",
        "| source | licence | homepage |",
        "|---|---|---|",
    ]
    lines += [f"| {' | '.join(map(_cell, source.values()))} |" for source in described.sources]
    lines.append("")
    return "\n".join([*lines, ""])


def _cell(value: str | None) -> str:
    """A value in a row of a table, in which it may not end."""
    return " ".join((value or "not told").split()).replace("|", "\\|")


def braces(names: list[str]) -> str:
    """The names as one pattern of webdataset's: `train-{00000..00041}.tar`, several joined with `::`."""
    patterns = []
    for (head, tail, width), group in groupby(
        sorted(map(_parts, names), key=lambda part: part[1:]), key=lambda part: part[1:]
    ):
        numbers = sorted(number for number, *_ in group)
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            few = [number for _, number in run]
            first, last = (f"{number:0{width}d}" for number in (few[0], few[-1]))
            patterns.append(f"{head}{first if first == last else f'{{{first}..{last}}}'}{tail}")
    return "::".join(patterns)


def _parts(name: str) -> tuple[int, str, str, int]:
    """The first number in the name, what is before and after it, and its width."""
    found = _NUMBER.search(name)
    assert found is not None, "names of the dataset are numbered"
    return int(found[0]), name[: found.start()], name[found.end() :], len(found[0])
