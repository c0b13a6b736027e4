"""A text's score is the number of images that have it, for any number of shards and buckets, in flat memory."""

import itertools
import pathlib
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.score_file import FrequentText
from lotlip_data.pipeline.core import spilled_rows
from lotlip_data.pipeline.scoring import repetition
from lotlip_data.pipeline.scoring.base import RAW, ImageScores, ScoredImage, TextScore
from lotlip_data.pipeline.scoring.repetition import (
    Repetition,
    RepetitionOptions,
    normalised,
    read_frequent,
)
from tests.pipeline.scoring.dataset_scorers import Shards, image_with_texts, peak_mib, score_shards

TEXTS = ("A dog.", "a  DOG", "The image is a photograph.", "Red", "red!", "", " ... ", "No other objects", "Ünï ﬁsh")
EXACT = Repetition(None, RepetitionOptions())
NEAR = Repetition(None, RepetitionOptions(near=True))


def count_naively(shards: Shards) -> dict[int, list[ImageScores]]:
    """The expected scores: by role and normalised text, the images that have it."""
    having: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
    for shard, images in shards.items():
        for row, image in enumerate(images):
            for text in image.texts:
                having["raw" if text.name == RAW else "long", normalised(text.text)].add((shard, row))
                for piece in text.pieces:
                    having["piece", normalised(piece)].add((shard, row))

    def score(role: str, text: str) -> float | None:
        return float(len(having[role, normalised(text)])) if normalised(text) else None

    def scores(image: ScoredImage) -> ImageScores:
        return ImageScores(
            texts=tuple(
                TextScore(
                    score("raw" if text.name == RAW else "long", text.text),
                    tuple(score("piece", piece) for piece in text.pieces),
                )
                for text in image.texts
            )
        )

    return {shard: list(map(scores, images)) for shard, images in shards.items()}


texts = st.lists(st.sampled_from(TEXTS), max_size=3)
images = st.builds(lambda raw, a, b: image_with_texts("", raw, a=a, b=b), texts, texts, texts)
runs = st.dictionaries(st.integers(0, 2**32 - 1), st.lists(images, max_size=6), max_size=5)


@settings(max_examples=60, deadline=None)
@given(shards=runs, bucket=st.sampled_from([2, 100_000]), batch=st.sampled_from([1, 2, 256]))
def test_scores_equal_a_naive_count(
    tmp_path_factory: pytest.TempPathFactory, shards: Shards, bucket: int, batch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilled_rows, "ROWS_PER_BUCKET", bucket)
        patch.setattr(repetition, "_IMAGES_AT_A_TIME", batch)
        assert score_shards(EXACT, shards, tmp_path_factory.mktemp("scores")) == count_naively(shards)


def test_case_white_space_and_punctuation_do_not_matter_and_words_do() -> None:
    assert normalised("  The “image”,\tis a\u00a0PHOTO-graph!\n") == "the image is a photo graph"
    assert normalised("ﬁne Ｗｉｄｅ STRASSE straße") == "fine wide strasse strasse"
    assert normalised("C++ costs $5") == "c++ costs $5"
    assert normalised("हिन्दी") == "हिन्दी", "vowel signs are part of a word"
    assert normalised("\u200b… -- ") == ""
    assert normalised("\ud800 x") == "x"


def test_an_image_that_says_the_same_twice_counts_once_and_roles_are_apart(tmp_path: pathlib.Path) -> None:
    shards = {
        0: [image_with_texts("a", ["A cat."], one=["A cat.", "a cat"], two=["A cat!"])],
        7: [image_with_texts("b", ["dog"], one=["A cat", "It sits."])],
    }
    first, second = score_shards(EXACT, shards, tmp_path)[0][0], score_shards(EXACT, shards, tmp_path / "again")[7][0]
    assert first.texts == (TextScore(1), TextScore(1, (2, 2)), TextScore(1, (2,)))
    assert second.texts == (TextScore(1), TextScore(1, (2, 1)))


def test_a_run_without_texts_has_no_scores(tmp_path: pathlib.Path) -> None:
    blank = image_with_texts("b", [" "])
    assert score_shards(EXACT, {}, tmp_path / "none") == {}
    assert score_shards(NEAR, {3: [], 4: [image_with_texts("a"), blank]}, tmp_path / "blank") == {
        3: [],
        4: [ImageScores(), ImageScores(texts=(TextScore(None),))],
    }
    assert read_frequent(tmp_path / "blank") == []


def sentences(seed: int, count: int, length: int) -> list[list[str]]:
    """Sentences of different random words."""
    rng = np.random.default_rng(seed)
    return [[f"w{word}" for word in rng.integers(0, 10**9, length)] for _ in range(count)]


def score_near(kept: list[list[str]], scorer: Repetition, folder: pathlib.Path) -> list[float | None]:
    """The scores of sentences, each of which is the sub-caption of an image of its own."""
    images = [image_with_texts(str(row), own=[" ".join(words)]) for row, words in enumerate(kept)]
    shards = {shard: images[shard::3] for shard in range(3)}
    scores = score_shards(scorer, shards, folder)
    return [scores[row % 3][row // 3].texts[0].pieces[0] for row in range(len(images))]


def test_near_texts_share_a_key_as_often_as_the_docstring_says(tmp_path: pathlib.Path) -> None:
    """600 pairs of sentences of 25 words; in the second, the last words are others. s is known, the rest follows."""
    for changed in (1, 4, 10):
        first, other = sentences(1, 600, 25), sentences(2, 600, 25)
        second = [mine[:-changed] + new[:changed] for mine, new in zip(first, other, strict=True)]
        same, similarity = 24 - changed, (24 - changed) / (24 + changed)
        assert same + 2 * changed == 24 + changed  # bigrams in one or both
        scores = score_near(first + second, NEAR, tmp_path / str(changed))
        assert set(scores) <= {1.0, 2.0}
        assert scores[:600] == scores[600:], "sharing is mutual"
        expected = 1 - (1 - similarity**5) ** 4
        assert abs(np.mean(np.array(scores[:600], float) == 2) - expected) < 0.08


def test_near_counts_are_never_below_exact_ones_and_equal_them_among_unlike_texts(tmp_path: pathlib.Path) -> None:
    distinct = sentences(3, 300, 12)
    repeated = [distinct[index] for index in np.random.default_rng(0).integers(0, 300, 1500)]
    exact = score_near(repeated, EXACT, tmp_path / "exact")
    assert score_near(repeated, NEAR, tmp_path / "near") == exact
    assert max(score or 0 for score in exact) > 5


def test_near_counts_images_once_however_many_near_texts_they_have(tmp_path: pathlib.Path) -> None:
    words = sentences(4, 1, 30)[0]
    near = [" ".join([*words[:-1], f"end{number}"]) for number in range(20)]
    shards = {0: [image_with_texts("a", one=near[:10], two=near[10:])], 1: [image_with_texts("b", one=near)]}
    scores = score_shards(NEAR, shards, tmp_path)
    pieces = [piece for of_shard in scores.values() for text in of_shard[0].texts for piece in text.pieces]
    assert set(pieces) == {2.0}


def test_single_words_and_short_texts_have_near_scores(tmp_path: pathlib.Path) -> None:
    scores = score_near([["dog"], ["dog"], ["cat"]], Repetition(None, RepetitionOptions(near=True, words=4)), tmp_path)
    assert scores == [2, 2, 1]


def test_the_listing_has_the_most_frequent_texts_with_an_example(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", 3)
    monkeypatch.setattr(repetition, "LISTED", 2)
    shards = {
        5: [image_with_texts("a", ["Logo"], one=["It is red.", "A rare thing."])],
        9: [image_with_texts(f"b{i}", ["logo"], one=["It is a photo.", "it is red"][: i + 1]) for i in range(3)],
        11: [
            image_with_texts("c", ["LOGO"], one=["Twice."], two=["It is a photo"]),
            image_with_texts("d", x=["Twice"]),
        ],
    }
    score_shards(EXACT, shards, tmp_path)
    read: list[int] = []

    def read_shard(shard: int) -> list[ScoredImage]:
        read.append(shard)
        return list(shards[shard])

    found = EXACT.frequent_texts(read_frequent(tmp_path), read_shard)
    texts = [text for text in found if text.role == "text"]
    assert [text.images for text in texts] == [2, 2], "two of three"
    assert [text for text in found if text not in texts] == [
        FrequentText("raw", "Logo", 5, RAW, "a"),
        FrequentText("sub_caption", "It is a photo.", 4, "one", "b0"),
        FrequentText("sub_caption", "It is red.", 3, "one", "a"),
    ]
    assert [text.images for text in found] == sorted((text.images for text in found), reverse=True)
    assert read[:2] == [5, 9]


def test_the_listing_of_near_texts_has_each_text_once(tmp_path: pathlib.Path) -> None:
    near = [" ".join([*sentences(5, 1, 30)[0][:-1], f"end{number}"]) for number in range(20)]
    shards = {0: [image_with_texts(str(number), own=[text, text]) for number, text in enumerate(near)]}
    score_shards(NEAR, shards, tmp_path)
    found = NEAR.frequent_texts(read_frequent(tmp_path), lambda shard: shards[shard])
    pieces = [text for text in found if text.role == "sub_caption"]
    assert pieces[0].text in near and pieces[0].images > 10
    assert len({text.text for text in pieces}) == len(pieces)


def test_listing_keeps_the_most_frequent_of_many_buckets(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", 50)
    counts = {f"text number {number}": 1 + number % 37 for number in range(400)}
    images: list[list[str]] = [[] for _ in range(37)]
    for text, count in counts.items():
        for number in range(count):
            images[number].append(text)
    shards = {0: [image_with_texts(str(number), raw=raw) for number, raw in enumerate(images)]}
    score_shards(EXACT, shards, tmp_path)
    listed = EXACT.frequent_texts(read_frequent(tmp_path), lambda shard: shards[shard])
    assert [text.images for text in listed] == sorted(counts.values(), reverse=True)[: repetition.LISTED]
    assert all(counts[text.text] == text.images for text in listed)


def test_numbers_of_other_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="the texts have 1 keys, but there are 2 numbers"):
        list(EXACT.assign([image_with_texts("a", ["x"])], [1, 2]))


def test_options_of_near_texts_need_near() -> None:
    with pytest.raises(UserError, match="`bands` is for nearly equal texts; add `near: true` or leave it out"):
        RepetitionOptions.parse({"bands": 3})
    identities = [NEAR.identity, EXACT.identity, Repetition(None, RepetitionOptions(near=True, bands=2)).identity]
    assert all(a != b for a, b in itertools.combinations(identities, 2))


_PEAK = """
import pathlib, sys
import numpy as np
from lotlip_data.pipeline.scoring.base import Survey
from lotlip_data.pipeline.scoring.repetition import Repetition, RepetitionOptions
from tests.pipeline.peak_memory import peak_memory_bytes

PER_SHARD, COMMON = 100_000, 1000
shards = int(sys.argv[2])
common = np.sort(np.random.default_rng(0).integers(0, 2**64, COMMON, dtype=np.uint64))

def surveys():
    for shard in range(shards):
        own = np.random.default_rng(shard + 1).integers(0, 2**64, PER_SHARD - COMMON, dtype=np.uint64)
        keys = np.sort(np.concatenate([common, own]))
        yield shard, Survey((keys, np.full(PER_SHARD, 2, np.uint64)))

scorer, seen = Repetition(None, RepetitionOptions()), 0
for shard, numbers in scorer.combine(surveys(), shards * PER_SHARD, pathlib.Path(sys.argv[1])):
    assert (numbers == 2 * shards).sum() == COMMON and (numbers == 2).sum() == PER_SHARD - COMMON
    seen += 1
assert seen == shards
print(peak_memory_bytes() >> 20)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_texts(tmp_path: pathlib.Path) -> None:
    """The second run has four times as many rows: 20 million, 320 MB."""
    few, many = peak_mib(_PEAK, tmp_path / "few", 50), peak_mib(_PEAK, tmp_path / "many", 200)
    assert many < few + 40
    assert many < 420
