"""The dataset's card and Croissant metadata as a repository needs them.

A repository of tars beside the card gets both as the run has them, with what people added to the card. Without images,
or with shards in folders, the front matter and the table of files are those of the repository.
"""

from itertools import groupby
from typing import Any

import yaml

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import CARD
from lotlip_data.pipeline.dataset import croissant, dataset_card
from lotlip_data.pipeline.dataset.metadata import Description
from lotlip_data.pipeline.hub.layout import Layout

WITHOUT_IMAGES = """## Without images

This repository holds the texts without the images, which licences often forbid to publish. Each row has the `uid` and
the `sha256` of its image, and the `url` if the image has one, so such images can be downloaded again and compared.
dataset.json also lists the tars that hold the images in the original dataset; they are not here."""


def card_text(content: bytes, place: str) -> str:
    """The text of a card, which people edit.

    Args:
        content: The file.
        place: Where it is, for the message.

    Raises:
        UserError: It is not in UTF-8, which the Hub demands.
    """
    try:
        return dataset_card.text_of(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{place}: line {line} is not in UTF-8. Save the card in UTF-8.") from None


def published_card(content: str, description: Description, layout: Layout) -> str:
    """The card of a repository.

    Args:
        content: The card of the run.
        description: The dataset.
        layout: What the repository holds.

    Raises:
        UserError: The front matter of the card is no YAML.
    """
    if layout.is_plain:
        return content
    opening, front, body = _parts(content)
    summary = description.summary
    front_matter = _parse(front) if opening else dataset_card.front_matter(description)
    columns = dataset_card.features if layout.images else dataset_card.columns
    front_matter[dataset_card.FEATURES] = {"features": columns(summary)}
    front_matter["configs"] = dataset_card.configs(
        {split: [layout.path(name) for name in names] for split, names in layout.data_files(description).items()}
    )
    notice = "" if layout.images else f"{WITHOUT_IMAGES}\n\n"
    table = "\n".join(dataset_card.splits(description))
    files = "\n".join(_file_table(description, layout))
    body = body.replace(table, f"{notice}{files}") if table in body else f"\n{notice}{files}\n{body}"
    return f"---\n{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---\n{body}"


def _parts(content: str) -> tuple[str, str, str]:
    """The line that opens the front matter, the front matter and the rest of a card; no opening where it has none."""
    before, opening, rest = content.partition("---\n")
    front, closing, body = rest.partition("\n---\n")
    return (opening, front, body) if opening and closing and not before else ("", "", content)


def _parse(front: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise UserError(
            f"{CARD} of the dataset: its front matter is no YAML ({' '.join(str(error).split())}). Correct it."
        ) from None
    return content if isinstance(content, dict) else {}


def _file_table(description: Description, layout: Layout) -> list[str]:
    """The table of the splits with the patterns of their files."""
    use = "for webdataset and open_clip" if layout.images else "Parquet files"
    lines = [f"| split | images | shards | {use} |", "|---|---|---|---|"]
    for split, names in layout.data_files(description).items():
        if names:
            counts = description.summary["splits"][split]
            lines.append(f"| {split} | {counts['samples']:,} | {counts['shards']:,} | `{_pattern(names, layout)}` |")
    return lines


def _pattern(names: list[str], layout: Layout) -> str:
    by_folder = groupby(sorted(names, key=layout.path), key=layout.folder)
    patterns = [(folder, dataset_card.braces(list(group)).split("::")) for folder, group in by_folder]
    return "::".join(f"{folder}{pattern}" for folder, group in patterns for pattern in group)


def published_croissant(description: Description, layout: Layout) -> dict[str, Any]:
    """The Croissant metadata of a repository: the Parquet files where they lie in it."""
    content = croissant.croissant(description)
    for file_set in content["distribution"]:
        file_set["includes"] = [layout.path(name) for name in file_set["includes"]]
        if not layout.images:
            file_set["description"] = "One row per sample, without its image."
    return content
