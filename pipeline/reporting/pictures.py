"""The pictures of the report: small copies of a few images with their texts, inside the page, so bounded in size."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset.tar_images import TarImages
from lotlip_data.pipeline.downloading.reader import FetchedImage, fetched_images

PICTURES = 24
"""Maximum number of pictures."""
SIDE_PIXELS = 224
"""Longer side of a picture."""
QUALITIES = (80, 60, 40, 20)
"""JPEG qualities, the first of which gives at most PICTURE_BYTES."""
PICTURE_BYTES = 24_000
RAW_CHARACTERS, LONG_CHARACTERS = 100, 160
"""Longest raw and long texts shown."""
ROWS_FROM_START = 200
"""The pictures of a tar are among its first images, because an image deep in a remote tar is slow to read."""


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with its raw text and the text of one captioner. The texts come from the web."""

    data_url: str
    width: int
    height: int
    uid: str
    raw: str
    captioner: str
    """Empty if there is no long text."""
    long: str


def pick_pictures(run: Run) -> tuple[list[CaptionedPicture], list[str]]:
    """Return at most PICTURES pictures of a run, and the problems of files that cannot be read.

    They are from the dataset, evenly spaced over its shards; without a dataset, from the downloaded images.
    """
    pictures, problems = [], dict[str, None]()
    candidates = _from_dataset(run) if storage.exists(run.dataset) else _from_images(run)
    for candidate in candidates:
        if isinstance(candidate, CaptionedPicture):
            pictures.append(candidate)
        else:
            problems[candidate] = None
    return pictures, list(problems)


def make_thumbnail(content: bytes, side: int = SIDE_PIXELS, most: int = PICTURE_BYTES) -> tuple[str, int, int]:
    """Return an image as a `data:` URL of at most about `most` · 4/3 bytes, with its width and height.

    Args:
        content: The image file.
        side: The longer side of the picture.
        most: The size for which its quality is lowered.

    Raises:
        ValueError: The image cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (side, side))
            small = image.convert("RGB")
        small.thumbnail((side, side))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded ({error})") from error
    encoded = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        encoded = buffer.getvalue()
        if len(encoded) <= most:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}", small.width, small.height


def _from_dataset(run: Run) -> Iterator[CaptionedPicture | str]:
    """Yield pictures of samples; for a file that cannot be read, the reason."""
    try:
        content = dataset_index.read_index(run)
        captioners = list(content["captioners"])
        files = [file for file in dataset_index.shard_files(run, content) if file.samples]
    except (UserError, KeyError, TypeError, AttributeError):
        return  # the report names the problem of dataset.json itself
    chosen = evenly(files, PICTURES)
    tars = TarImages(open_tars=1)
    number = 0
    for file, count in zip(chosen, _shares(len(chosen)), strict=True):
        rows = evenly(list(range(min(file.samples, ROWS_FROM_START))), count)
        try:
            for row, texts in read_rows(file, rows, ["uid", "raw", *captioners]):
                picture = make_thumbnail(tars.image(file.tar_url, row))
                yield _captioned(picture, texts, captioners, number)
                number += 1
        except UserError as error:
            yield str(error)
        except ValueError as error:
            yield f"{file.tar_url}: an image {error}"


def _shares(files: int) -> list[int]:
    """Return how many of the PICTURES come from each of some files."""
    return [PICTURES // files + (number < PICTURES % files) for number in range(files)] if files else []


def read_rows(file: ShardFile, rows: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a Parquet file of the dataset, in ascending order, with their numbers."""
    names = list(columns)
    with artifacts.open_parquet(file.parquet_url, "Run `lotlip-data verify` on the run.") as content:
        first = 0
        for group in range(content.num_row_groups):
            end = first + content.metadata.row_group(group).num_rows
            wanted = [row - first for row in rows if first <= row < end]
            if wanted:
                table = content.read_row_group(group, columns=names).select(names).take(wanted)
                yield from zip((first + row for row in wanted), table.to_pylist(), strict=True)
            first = end


def _captioned(
    picture: tuple[str, int, int], texts: Mapping[str, Any], captioners: list[str], number: int
) -> CaptionedPicture:
    """Return a picture with the text of one captioner: of another one for each picture, as far as there are texts."""
    names = [name for name in captioners if texts.get(name)]
    name = names[number % len(names)] if names else ""
    raw, long = shortened(texts.get("raw"), RAW_CHARACTERS), shortened(texts.get(name) if name else "", LONG_CHARACTERS)
    return CaptionedPicture(*picture, str(texts["uid"]), raw, name, long)


def _from_images(run: Run) -> Iterator[CaptionedPicture | str]:
    """Yield pictures of downloaded images with their raw texts; for a shard that cannot be read, the reason."""
    shards = evenly(ledger.fetched_shards(run), PICTURES)
    for shard, count in zip(shards, _shares(len(shards)), strict=True):
        try:
            for image in _first_images(run, shard, count):
                texts = image.meta.get("texts")
                raw = next((text for text in texts if text), "") if isinstance(texts, list) else ""
                yield _captioned(make_thumbnail(image.image), {"uid": image.uid, "raw": raw}, [], 0)
        except UserError as error:
            yield str(error)
        except (OSError, ValueError) as error:
            yield f"images of shard {shard}: {error}"


def _first_images(run: Run, shard: int, count: int) -> Iterator[FetchedImage]:
    for _, image in zip(range(count), fetched_images(run, shard), strict=False):
        yield image


def shortened(text: Any, characters: int) -> str:
    """A text without the white space at its ends, of at most this many characters."""
    words = str(text or "").strip()
    return words if len(words) <= characters else words[: characters - 1].rstrip() + "…"
