"""sDCI: DCI's test split with captions that fit into 77 tokens, of whole images and of the regions of their masks.

The files are DCI's (`dci.py`). An annotation has `summaries`, `negatives` and `clip_scores`, each by the key of an
entry: `base` is the whole image, `m-IDX-sc` the mask with that `idx`. `summaries[KEY]` is a list of captions,
`negatives[KEY]` has lists of wrong captions by kind (`swaps`, …), and `clip_scores[KEY]` has the score that CLIP gave
each of them, by KIND_INDEX.

The tests are those of facebookresearch/DCI at 8326c97 (impl.py and scripts/run_clip_dense_cap_eval.py):

all_scm, all_neg        the first caption of all entries
pick5_scm, pick5_neg    the first five captions of the entries that have as many; the worst of them counts
base_scm, base_neg      the first caption of the whole images
hardest_neg             as all_neg, with the wrong caption to which CLIP gave the highest score

`scm` (subcrop-caption matching) compares an entry with the captions of its batch: eight entries in the order of the
annotations, so mostly regions of the same image. `neg` compares it with one wrong caption, the first of `swaps`.

A mask is an entry if its bounds are 224 pixels wide and high at least. Its region is the bounds with a margin of 15% of
their width and height, cut at the edges of the image. As in the authors' code, an image is left out as a whole if it
lacks a caption, a wrong caption or the scores of an entry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lotlip_data.training.evaluation.selection import Choice
from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.dci import CHECKSUMS, ROOT, WHERE
from lotlip_data.training.evaluation.tasks.files import Entry, Folder
from lotlip_data.training.evaluation.tasks.regions import Box

MIN_SIDE = 224
"""The smallest width and height of the bounds of a mask that is an entry, in pixels."""
MARGIN = 0.15
"""The margin of a region, as a share of the width and height of the bounds."""
BATCH = 8
PICKED = 5
SWAPS = "swaps"
BASE = "base"
CATEGORIES = ("all_scm", "all_neg", "pick5_scm", "pick5_neg", "base_scm", "base_neg", "hardest_neg")
PUBLISHED_QUERIES = {"base_scm": 112, "base_neg": 112}
"""The README of the repository gives the number of base images. That of all entries is not published."""


@dataclass(frozen=True)
class _Entry:
    """An image or a region, with its captions."""

    image: str
    source: str
    box: Box | None
    captions: tuple[str, ...]
    negative: str
    hardest: str

    def record(self, choice: Choice) -> Record:
        return Record(image_paths=(self.image,), source=self.source, choice=choice, box=self.box)


def read_records(folder: Folder) -> Iterator[Record]:
    """The queries of all tests; then one record without captions for each image that no test can use."""
    splits = folder.first_existing(f"{ROOT}/splits.json", "splits.json")
    root = splits.removesuffix("splits.json")
    whole: list[_Entry] = []
    entries: list[_Entry] = []
    unused: list[Record] = []
    for name in folder.read_json(splits).field("test").items():
        source = f"{root}annotations/{name.text()}"
        if not folder.has(source):
            unused.append(Record(image_paths=(source,), source=source))
            continue
        annotation = folder.read_json(source)
        image = f"{root}photos/{annotation.field('image').text()}"
        base = _read_entry(annotation, image, BASE, None)
        regions = _read_regions(annotation, image) if base else None
        if base:
            whole.append(base)
        if base and regions is not None:
            entries += [base, *regions]
        if not base or regions is None:
            unused.append(Record(image_paths=(image,), source=source))
    picked = [entry for entry in entries if len(entry.captions) >= PICKED]
    yield from _matching("all_scm", entries, 1)
    yield from _against("all_neg", entries, 1)
    yield from _matching("pick5_scm", picked, PICKED)
    yield from _against("pick5_neg", picked, PICKED)
    yield from _matching("base_scm", whole, 1)
    yield from _against("base_neg", whole, 1)
    for entry in entries:
        yield entry.record(Choice("hardest_neg", entry.captions[:1], (entry.hardest,)))
    yield from unused


def _matching(category: str, entries: Sequence[_Entry], count: int) -> Iterator[Record]:
    """Each entry's first `count` captions against those of the other entries of its batch."""
    for start in range(0, len(entries), BATCH):
        batch = entries[start : start + BATCH]
        for entry in batch:
            others = (caption for other in batch if other is not entry for caption in other.captions[:count])
            yield entry.record(Choice(category, entry.captions[:count], tuple(others)))


def _against(category: str, entries: Sequence[_Entry], count: int) -> Iterator[Record]:
    """Each entry's first `count` captions against its wrong caption."""
    for entry in entries:
        yield entry.record(Choice(category, entry.captions[:count], (entry.negative,)))


def _read_regions(annotation: Entry, image: str) -> list[_Entry] | None:
    """The entries of the masks that are large enough; None if one of them is incomplete, or there is no mask at all."""
    if len(annotation.field("negatives").names()) == 1:
        return None
    regions = []
    for mask in annotation.field("mask_data").fields():
        corners = [
            mask.field("bounds").field(corner).field(axis).integer()
            for corner in ("topLeft", "bottomRight")
            for axis in ("x", "y")
        ]
        left, top, right, bottom = corners
        width, height = right - left, bottom - top
        if width < MIN_SIDE or height < MIN_SIDE:
            continue
        x, y = int(width * MARGIN), int(height * MARGIN)
        key = f"m-{mask.field('idx').value}-sc"
        entry = _read_entry(annotation, image, key, Box(left - x, top - y, right + x, bottom + y))
        if entry is None:
            return None
        regions.append(entry)
    return regions


def _read_entry(annotation: Entry, image: str, key: str, box: Box | None) -> _Entry | None:
    """An entry; None if the annotation lacks its captions, a wrong caption, or the scores of CLIP."""
    tables = [annotation.find(name) for name in ("summaries", "negatives", "clip_scores")]
    values = [table.find(key) if table else None for table in tables]
    summaries, negatives, scores = values
    if summaries is None or negatives is None or scores is None:
        return None
    wrong = {
        f"{kind}_{index}": text
        for kind in negatives.names()
        for index, text in enumerate(negatives.field(kind).items())
    }
    if f"{SWAPS}_0" not in wrong or any(scores.find(name) is None for name in wrong):
        return None
    captions = [summaries] if isinstance(summaries.value, str) else summaries.items()
    if not captions:
        return None
    hardest = max(reversed(wrong), key=lambda name: scores.field(name).number())  # of equal scores the last one
    return _Entry(
        image=image,
        source=f"{annotation.location}, {key}",
        box=box,
        captions=tuple(caption.text() for caption in captions),
        negative=wrong[f"{SWAPS}_0"].text(),
        hardest=wrong[hardest].text(),
    )


SDCI = Task(
    name="sdci",
    title="sDCI",
    kind="selection",
    where=WHERE,
    read_records=read_records,
    categories={category: PUBLISHED_QUERIES.get(category) for category in CATEGORIES},
    has_overall=False,
    checksums=CHECKSUMS,
    distinct_images=False,
)
