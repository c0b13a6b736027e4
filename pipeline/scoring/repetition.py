"""Counts on how many images a text stands: `repetition`, which finds boilerplate such as "The image is a photograph".

The score of a text is the number of images of the run that have it, itself included. Raw texts are compared with raw
texts, long texts with long texts, and sub-captions with sub-captions, of all captioners. An image that has a text twice
counts once. Two texts are the same if they are equal after Unicode normalisation (NFKC) without regard to case, white
space and punctuation. A text without a letter, digit or symbol has no score.

With `near`, the score of a text is the largest number of images that share one of its keys. A text has `bands` keys.
Each is a hash of `band_size` MinHashes of the set of its sequences of `words` words (Broder, 1997). If the sets of two
texts have the Jaccard similarity s, they share a given key with probability s^band_size, and at least one key with
1 - (1 - s^band_size)^bands. Equal texts share all keys, so the number is never below the exact one. Nothing is linked
through a third text.

Texts are compared by 62 bits of a hash. Of 2 billion different texts, 0.43 pairs are expected to have the same one (the
odds of any such pair are 1 in 3), and such a text counts the images of two.

Each shard is reduced to its distinct keys with the number of its images that have each. So a text that all images have
is one row per shard. The driver sorts the rows by key, adds them up, and gathers the sums by shard. A row takes 16
bytes on disk in each of the two steps, and the files of the first are removed while those of the second grow. For 100
million images, each with a raw text, 3 long texts and 21 sub-captions, there are at most 2.5 billion rows: 40 GB of
disk, or 160 GB with the 4 bands of `near`. The surveys themselves have as much.
Measured: 240 million rows took 128 s of one core, 372 MiB of memory and 3.9 GB of disk; 5 million took 346 MiB.
"""

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from lotlip_data.manifests.formats.score_file import FrequentText, ScoreSummary
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.settings.base import Settings
from lotlip_data.pipeline.core.spilled_rows import SpilledRows
from lotlip_data.pipeline.scoring.base import RAW, ImageScores, ScoredImage, Survey, TextScore
from lotlip_data.pipeline.scoring.by_shard import BUFFER_BYTES, NumbersByShard, mix, pack, stable_hash, unpack

Role = Literal["raw", "text", "sub_caption"]
ROLES: tuple[Role, ...] = ("raw", "text", "sub_caption")
"""Texts of one role are compared. The last two bits of a key are the number of the role."""
FREQUENT = "frequent.json"
"""The most frequent keys, in the folder of `combine`."""
LISTED = 100
"""The most texts of each role that the listing has."""

_IMAGES_AT_A_TIME = 256
_ROLE_BITS = np.uint64(3)
_SEPARATORS = "PZC"
"""Unicode categories of punctuation, separators and control characters. Marks and symbols belong to a word."""


class RepetitionOptions(Settings):
    """Options of the kind `repetition`."""

    near: bool = False
    """Whether nearly equal texts count, too."""
    words: Annotated[int, Field(ge=1, le=8)] = 2
    """With `near`: the number of words in a sequence. A shorter text is one sequence."""
    bands: Annotated[int, Field(ge=1, le=16)] = 4
    """With `near`: the number of keys of a text. Disk and time grow with it."""
    band_size: Annotated[int, Field(ge=1, le=16)] = 5
    """With `near`: the number of MinHashes in a key. The higher, the more alike texts must be."""

    @model_validator(mode="after")
    def _check_near(self) -> "RepetitionOptions":
        if not self.near and (unread := sorted(self.model_fields_set - {"near"})):
            raise ValueError(f"`{unread[0]}` is for nearly equal texts; add `near: true` or leave it out")
        return self


@dataclass(frozen=True)
class FrequentKey:
    """A key that many images have."""

    role: Role
    key: int
    images: int
    """How many images have it."""
    shard: int
    """The first shard that has it."""


class Repetition:
    """Scores texts by the number of images that have them."""

    scores: ClassVar[Literal["texts", "images"]] = "texts"
    reads_images: ClassVar[bool] = False
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    needs_model: ClassVar[bool] = False
    settings_type: ClassVar[type[Settings]] = RepetitionOptions

    def __init__(self, model: str | None, options: RepetitionOptions, device: str | None = None) -> None:
        self.options = options

    @property
    def identity(self) -> dict[str, Any]:
        settings = self.options.model_dump() if self.options.near else {"near": False}
        return {"version": 1, **settings}

    def survey(self, images: Iterable[ScoredImage]) -> Survey:
        """The distinct keys of the shard in ascending order, and for each the number of images that have it."""
        distinct = [np.unique(keys[has_words]) for _, keys, has_words in self._keyed(images)]
        keys, counts = np.unique(_concatenated(distinct), return_counts=True)
        return Survey((keys, counts.astype(np.uint64)))

    def combine(
        self, surveys: Iterable[tuple[int, Survey]], rows: int, folder: Path
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See DatasetScorer. From the first shard on, `read_frequent` reads the most frequent keys from `folder`."""
        table = SpilledRows(folder / "keys", rows, "packed", buffer_bytes=BUFFER_BYTES)
        for shard, survey in surveys:
            table.add(survey.columns[0], pack(shard, survey.columns[1]))
        sums = NumbersByShard(folder / "sums", rows)
        frequent = _MostFrequent(LISTED * self._key_count)
        for keys, packed in table.drain():
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
            shards, images = unpack(packed[order])
            totals = np.add.reduceat(images, starts)
            frequent.add(keys[starts], totals, np.minimum.reduceat(shards, starts))
            # A survey is in the order of the keys, as the buckets and this sum are; so no row needs its number.
            sums.add(pack(shards, np.repeat(totals, np.diff(starts, append=len(keys)))))
        (folder / FREQUENT).write_text(json.dumps([dataclasses.asdict(key) for key in frequent.listing()]))
        for shard, (values,) in sums:
            yield shard, values.astype(np.float64)

    def assign(self, images: Iterable[ScoredImage], numbers: Sequence[float]) -> Iterator[ImageScores]:
        """The scores of each image, from the numbers of the shard's distinct keys."""
        shapes, all_keys, all_words = [], [], []
        for image, keys, has_words in self._keyed(images):
            shapes.append([len(text.pieces) for text in image.texts])
            all_keys.append(keys)
            all_words.append(has_words)
        distinct = np.unique(_concatenated([k[words] for k, words in zip(all_keys, all_words, strict=True)]))
        if len(distinct) != len(numbers):
            raise ValueError(f"the texts have {len(distinct):,} keys, but there are {len(numbers):,} numbers")
        by_key = np.asarray(numbers, np.float64)
        for shape, keys, has_words in zip(shapes, all_keys, all_words, strict=True):
            scores: list[float | None] = [None] * len(keys)
            best = by_key[np.searchsorted(distinct, keys[has_words])].max(axis=1, initial=0)
            for index, score in zip(np.flatnonzero(has_words).tolist(), best.tolist(), strict=True):
                scores[index] = score
            values = iter(scores)
            yield ImageScores(
                texts=tuple(TextScore(next(values), tuple(next(values) for _ in range(pieces))) for pieces in shape)
            )

    def summarise(self, folder: Path, read_shard: Callable[[int], Iterable[ScoredImage]]) -> ScoreSummary:
        """The most frequent texts."""
        return ScoreSummary(self.frequent_texts(read_frequent(folder), read_shard))

    def frequent_texts(
        self, keys: Sequence[FrequentKey], read_shard: Callable[[int], Iterable[ScoredImage]]
    ) -> list[FrequentText]:
        """Find the texts of the most frequent keys, the most frequent first, at most `LISTED` of each role.

        Args:
            keys: What `read_frequent` returned.
            read_shard: The images of a shard with their texts. Each shard that has a first occurrence is read once, up
                to the last text that is looked for. Frequent texts are in the first shards, so few are read.
        """
        found: dict[int, FrequentText] = {}
        for shard in sorted({key.shard for key in keys}):
            wanted = {key.key: key for key in keys if key.shard == shard}
            for image, image_keys, has_words in self._keyed(read_shard(shard)):
                hits = np.isin(image_keys, np.array(list(wanted), np.uint64)) & has_words[:, None]
                for row, column in zip(*np.nonzero(hits), strict=True):
                    if key := wanted.pop(int(image_keys[row, column]), None):
                        name, text = [(name, text) for _, name, text in _texts(image)][row]
                        found[key.key] = FrequentText(key.role, text, key.images, name, image.uid)
                if not wanted:
                    break
        return _one_per_text(found[key.key] for key in keys if key.key in found)

    @property
    def _key_count(self) -> int:
        return self.options.bands if self.options.near else 1

    def _keyed(self, images: Iterable[ScoredImage]) -> Iterator[tuple[ScoredImage, np.ndarray, np.ndarray]]:
        """Each image, the keys of its texts and pieces (uint64 [n, keys]), and which of these have words (bool [n])."""
        for batch in batched(images, _IMAGES_AT_A_TIME):
            texts = [[(role, normalised(text)) for role, _, text in _texts(image)] for image in batch]
            flat = [text for of_image in texts for _, text in of_image]
            roles = np.array([role for of_image in texts for role, _ in of_image], np.uint64)
            keys = self._near_keys(flat) if self.options.near else _exact_keys(flat)
            keys = (keys & ~_ROLE_BITS) | roles[:, None]
            has_words = np.array([bool(text) for text in flat], bool)
            ends = np.cumsum([len(of_image) for of_image in texts])[:-1]
            yield from zip(batch, np.split(keys, ends), np.split(has_words, ends), strict=True)

    def _near_keys(self, texts: Sequence[str]) -> np.ndarray:
        """The keys of normalised texts, from MinHashes of their words: uint64 [n, bands]."""
        grams, starts = _grams(texts, self.options.words)
        keys = np.zeros((len(texts), self.options.bands), np.uint64)
        if len(texts):
            for band in range(self.options.bands):
                for number in range(band * self.options.band_size, (band + 1) * self.options.band_size):
                    minima = np.minimum.reduceat(mix(grams ^ _seed(number)), starts)
                    keys[:, band] = mix(keys[:, band] ^ minima)
                keys[:, band] = mix(keys[:, band] ^ _seed(-1 - band))
        return keys


def read_frequent(folder: Path) -> list[FrequentKey]:
    """The most frequent keys of more than one image, the most frequent first, from the folder of `combine`."""
    return [FrequentKey(**key) for key in json.loads((folder / FREQUENT).read_text())]


def normalised(text: str) -> str:
    """The words of a text in lower case, with one space between them; empty if it has none."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_SEPARATED).split())


class _Separated(dict[int, str]):
    """Translates separating characters to a space. It knows those that it has met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = " " if unicodedata.category(character)[0] in _SEPARATORS else character
        return self[code]


_SEPARATED = _Separated()


def _texts(image: ScoredImage) -> Iterator[tuple[int, str, str]]:
    """Number of the role, name, and text: of each text of the image, followed by its pieces."""
    for text in image.texts:
        yield (0 if text.name == RAW else 1), text.name, text.text
        for piece in text.pieces:
            yield 2, text.name, piece


_word_hash = lru_cache(1 << 16)(stable_hash)


def _exact_keys(texts: Sequence[str]) -> np.ndarray:
    """One key per normalised text: uint64 [n, 1]."""
    return np.fromiter(map(stable_hash, texts), np.uint64, len(texts))[:, None]


def _grams(texts: Sequence[str], words: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all sequences of words of n texts, one text after another, and where each text starts.

    A text has at least one sequence: one with fewer words is filled up.
    """
    hashes: list[int] = []
    lengths = []
    for text in texts:
        own = list(map(_word_hash, text.split()))
        own += [0] * (words - len(own))
        hashes += own
        lengths.append(len(own))
    flat = np.array(hashes, np.uint64)
    sizes = np.array(lengths, np.int64) - (words - 1)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    # Sequence i of a text begins at word i of the text; each text before it has words - 1 words more than sequences.
    begins = np.arange(int(sizes.sum())) + np.repeat(np.arange(len(texts)) * (words - 1), sizes)
    grams = np.zeros(len(begins), np.uint64)
    for offset in range(words):
        grams = mix(grams ^ flat[begins + offset])
    return grams, starts


def _seed(number: int) -> np.uint64:
    return np.uint64(stable_hash(f"seed {number}"))


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *(part.ravel() for part in parts)])


class _MostFrequent:
    """The most frequent keys of each role so far. Of equally frequent ones, those of the lowest keys."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._columns = [[np.empty(0, np.uint64)] * 3 for _ in ROLES]

    def add(self, keys: np.ndarray, images: np.ndarray, shards: np.ndarray) -> None:
        for role, kept in enumerate(self._columns):
            # A new key is higher than those before it, so it replaces one of them only if more images have it.
            least = kept[1][-1] if len(kept[1]) == self._limit else np.uint64(1)
            new = np.flatnonzero((images > least) & ((keys & _ROLE_BITS) == role))
            if len(new):
                pairs = zip(kept, (keys, images, shards), strict=True)
                merged = [np.concatenate([old, column[new]]) for old, column in pairs]
                best = np.lexsort((merged[0], -merged[1].astype(np.int64)))[: self._limit]
                self._columns[role] = [column[best] for column in merged]

    def listing(self) -> list[FrequentKey]:
        listed = [
            FrequentKey(ROLES[role], *row)
            for role, columns in enumerate(self._columns)
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return sorted(listed, key=lambda each: (-each.images, each.key))


def _one_per_text(texts: Iterable[FrequentText]) -> list[FrequentText]:
    """Texts without those that equal an earlier one, at most LISTED of a role: a text can have several keys."""
    seen: dict[Role, set[str]] = {role: set() for role in ROLES}
    kept = []
    for text in texts:
        known, words = seen[text.role], normalised(text.text)
        if words not in known and len(known) < LISTED:
            known.add(words)
            kept.append(text)
    return kept
