"""An image's score is the number of URLs of its host with an equal picture, as counted over all pairs."""

import hashlib
import io
import pathlib
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core import spilled_rows
from lotlip_data.pipeline.scoring import placeholders
from lotlip_data.pipeline.scoring.base import ScoredImage
from lotlip_data.pipeline.scoring.placeholders import Placeholder, PlaceholderOptions
from tests.pipeline.scoring.dataset_scorers import Shards, peak_mib, score_shards
from tests.support.paths import ROOT

HOSTS = ("https://a.test/1", "http://A.test:8080/2?q", "http://b.test/", "", "http://[broken")


def scorer(**options: object) -> Placeholder:
    return Placeholder(None, PlaceholderOptions.parse(options))


def image(content: bytes, url: str = "") -> ScoredImage:
    return ScoredImage("", hashlib.sha256(content).hexdigest(), content, (), url=url)


def hashed(picture: int | None, url: str) -> ScoredImage:
    """An image whose content is its perceptual hash."""
    return image(b"damaged" if picture is None else str(picture).encode(), url)


def hash_of(content: bytes) -> int | None:
    return None if content == b"damaged" else int(content)


def count_all_pairs(shards: Shards, distance: int | None, within: str) -> dict[int, list[float]]:
    def host(each: ScoredImage) -> str:
        return "" if within == "run" or "broken" in each.url else urlsplit(each.url).hostname or ""

    def is_equal(one: ScoredImage, other: ScoredImage) -> bool:
        if host(one) != host(other):
            return False
        a, b = hash_of(one.content), hash_of(other.content)
        if distance is None or a is None or b is None:
            return one.sha256 == other.sha256
        return (a ^ b).bit_count() <= distance

    everything = [each for images in shards.values() for each in images]
    return {
        shard: [float(sum(is_equal(each, other) for other in everything)) for each in images]
        for shard, images in shards.items()
    }


@st.composite
def pictures(draw: st.DrawFn) -> int | None:
    """Hashes near two centres, so that distances on both sides of a limit occur."""
    if draw(st.integers(0, 9)) == 0:
        return None
    value = draw(st.sampled_from([0, 0x0F0F_3C3C_5A5A_9669]))
    for bit in draw(st.lists(st.integers(0, 63), max_size=5)):
        value ^= 1 << bit
    return value


runs = st.dictionaries(
    st.integers(0, 2**32 - 1), st.lists(st.builds(hashed, pictures(), st.sampled_from(HOSTS)), max_size=8), max_size=4
)


@settings(max_examples=60, deadline=None)
@given(
    shards=runs,
    bucket=st.sampled_from([2, 100_000]),
    distance=st.sampled_from([None, 0, 1, 4, 8]),
    within=st.sampled_from(["host", "run"]),
)
def test_scores_equal_a_count_over_all_pairs(
    tmp_path_factory: pytest.TempPathFactory, shards: Shards, bucket: int, distance: int | None, within: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilled_rows, "ROWS_PER_BUCKET", bucket)
        patch.setattr(placeholders, "perceptual_hash", hash_of)
        scores = score_shards(scorer(distance=distance, within=within), shards, tmp_path_factory.mktemp("scores"))
    values = {shard: [each.image for each in of_shard] for shard, of_shard in scores.items()}
    assert values == count_all_pairs(shards, distance, within)


def test_many_near_pictures_of_a_few_hosts_equal_a_count_over_all_pairs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", 50)
    monkeypatch.setattr(placeholders, "perceptual_hash", hash_of)
    rng = np.random.default_rng(0)
    values = rng.choice(rng.integers(0, 2**64, 8, dtype=np.uint64), 600)
    for _ in range(6):
        flips = np.uint64(1) << rng.integers(0, 64, 600, dtype=np.uint64)
        values = np.where(rng.random(600) < 0.4, values ^ flips, values)
    images = [hashed(value, HOSTS[index % 3]) for index, value in enumerate(values.tolist())]
    shards = {shard: images[shard::5] for shard in range(5)}
    scores = score_shards(scorer(), shards, tmp_path)
    assert {s: [each.image for each in of_shard] for s, of_shard in scores.items()} == count_all_pairs(
        shards, 4, "host"
    )


def picture(text: str, quality: int = 90, size: int = 200, kind: str = "JPEG") -> bytes:
    canvas = Image.new("L", (200, 200), "white")
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((20, 40, 90, 150), fill=100)
    draw.ellipse((90, 60, 180, 170), outline="black", width=8)
    draw.text((30, 10), text, fill="black", font_size=24)
    file = io.BytesIO()
    canvas.resize((size, size)).save(file, kind, quality=quality)
    return file.getvalue()


def test_a_placeholder_counts_in_all_its_sizes_and_a_photo_of_many_hosts_does_not(tmp_path: pathlib.Path) -> None:
    photo = (ROOT / "tests" / "photographs").rglob("*.jpg")
    content = next(photo).read_bytes()
    missing = [picture("not available", quality, size) for quality, size in ((90, 200), (60, 200), (80, 320))]
    shards = {
        0: [image(each, f"https://shop.test/{number}") for number, each in enumerate(missing)],
        1: [image(content, f"https://host{number}.test/photo.jpg") for number in range(3)],
    }
    scores = score_shards(scorer(), shards, tmp_path / "host")
    assert [[each.image for each in scores[shard]] for shard in (0, 1)] == [[3, 3, 3], [1, 1, 1]]
    scores = score_shards(scorer(within="run"), shards, tmp_path / "run")
    assert [[each.image for each in scores[shard]] for shard in (0, 1)] == [[3, 3, 3], [3, 3, 3]]
    scores = score_shards(scorer(distance=None), shards, tmp_path / "bytes")
    assert [each.image for each in scores[0]] == [1, 1, 1]


def test_a_wrong_distance_is_refused_and_identities_differ() -> None:
    with pytest.raises(UserError, match="`distance`"):
        scorer(distance=9)
    assert scorer().identity != scorer(distance=3).identity != scorer(distance=3, within="run").identity


_PEAK = """
import pathlib, sys
import numpy as np
from lotlip_data.pipeline.scoring.base import Survey
from lotlip_data.pipeline.scoring.placeholders import Placeholder, PlaceholderOptions
from tests.pipeline.peak_memory import peak_memory_bytes

PER_SHARD, COMMON = 20_000, 10_000
shards = int(sys.argv[2])

def surveys():
    for shard in range(shards):
        rng = np.random.default_rng(shard)
        own = rng.integers(0, 2**64, PER_SHARD - COMMON, dtype=np.uint64)
        pictures = np.concatenate([np.full(COMMON, 12345, np.uint64), own])
        hosts = np.concatenate([np.full(COMMON, 1, np.uint64), rng.integers(0, 50, len(own), dtype=np.uint64)])
        yield shard, Survey((pictures, hosts))

scorer, seen = Placeholder(None, PlaceholderOptions(distance=1)), 0
for shard, numbers in scorer.combine(surveys(), shards * PER_SHARD, pathlib.Path(sys.argv[1])):
    assert (numbers[:COMMON] == shards * COMMON).all() and (numbers[COMMON:] < 100).all()
    seen += 1
assert seen == shards
print(peak_memory_bytes() >> 20)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: pathlib.Path) -> None:
    """Half of the images show one placeholder; the runs have 4 and 16 million images."""
    few, many = peak_mib(_PEAK, tmp_path / "few", 200), peak_mib(_PEAK, tmp_path / "many", 800)
    assert many < few + 40
    assert many < 420
