"""A JPEG that is reduced while it is decoded is stored as from its full decode: size, picture and failures."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images import jpeg, reduced
from lotlip_data.pipeline.downloading.images.conversion import convert
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings, Converted
from tests.pipeline.downloading.images.icc import ADOBE_RGB
from tests.pipeline.downloading.images.test_conversion import encoded
from tests.support.paths import ROOT

MIN_PSNR = 37.0
PHOTOGRAPHS = sorted((ROOT / "tests/photographs").glob("*.jpg"))


def stored(data: bytes, size: int, full: bool = False) -> Converted:
    return convert(data, ConversionSettings(image_size=size, full_decode=full), lambda memory: None)


def psnr(image: Converted, other: Converted) -> float:
    pixels = [np.asarray(Image.open(io.BytesIO(each.body)).convert("RGB"), float) for each in (image, other)]
    return float(10 * np.log10(255**2 / max(1e-9, np.square(pixels[0] - pixels[1]).mean())))


def outcome(data: bytes, size: int, full: bool) -> str:
    try:
        stored(data, size, full)
    except FetchError as error:
        return str(error)
    return "stored"


def smooth(width: int, height: int) -> Image.Image:
    """A picture without fine detail, and without symmetry."""
    grains = np.random.default_rng(0).integers(40, 220, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    return Image.fromarray(grains).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def reductions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The factors by which images were reduced and then stored so."""
    used, resize = list[int](), reduced.resize

    def record(means: np.ndarray, size: reduced.Size, target: reduced.Size, factor: int, method: int) -> np.ndarray:
        used.append(factor)
        return resize(means, size, target, factor, method)

    monkeypatch.setattr(reduced, "resize", record)
    return used


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_photographs_are_stored_as_from_their_full_decode(photograph: Path, reductions: list[int]) -> None:
    """From the least shrink by which one is reduced on, whole and odd factors among them."""
    original = photograph.read_bytes()
    grey = encoded(Image.open(io.BytesIO(original)).convert("L"), "JPEG", quality=90)
    for data in (original, grey):
        for shrink in (2, 2.01, 2.3, 2.7, 3, 3.9, 5, 8, 9, 16):
            size = int(min(Image.open(io.BytesIO(data)).size) / shrink)
            image, full = stored(data, size), stored(data, size, full=True)
            assert (image.width, image.height) == (full.width, full.height)
            assert (image.original_width, image.original_height) == (full.original_width, full.original_height)
            assert psnr(image, full) >= MIN_PSNR, (photograph.stem, shrink)
    assert set(reductions) >= {2, 4}


def test_detail_that_would_get_lost_is_decoded_in_full(reductions: list[int]) -> None:
    """Noise, and lines of a few pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    lines = np.indices((600, 800)).sum(0) % 5 * 60
    for pixels in (noise, np.repeat(lines.astype(np.uint8)[..., None], 3, 2)):
        data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
        for size in (290, 200, 130):
            assert stored(data, size).body == stored(data, size, full=True).body
    assert not reductions


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_scale_is_that_of_the_image_whatever_its_size(mode: str, reductions: list[int]) -> None:
    """The last squares may extend beyond the image. That must neither shift nor stretch the picture."""
    for width in range(401, 418):
        for height in (300, 307):
            data = encoded(smooth(width, height).convert(mode), "JPEG", quality=95)
            for size in (150, 131, 101, 74, 37, 18):
                image, full = stored(data, size), stored(data, size, full=True)
                assert (image.width, image.height) == (full.width, full.height)
                assert psnr(image, full) > (42 if mode == "L" else MIN_PSNR)
                assert Image.open(io.BytesIO(image.body)).mode == mode
    assert set(reductions) == {2, 4, 8}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_missing_rows_are_found_as_in_the_full_decode(
    mode: str, options: dict[str, int], reductions: list[int]
) -> None:
    """Cut after any part of the scans, with an end mark or without."""
    data = encoded(smooth(310, 230).convert(mode), "JPEG", quality=90, **options)
    assert outcome(data, 100, full=False) == "stored"
    cuts = [*range(len(data) // 8, len(data), len(data) // 24), len(data) - 40, len(data) - 9, len(data) - 2]
    for cut in cuts:
        for end in (b"", jpeg.END):
            assert outcome(data[:cut] + end, 100, full=False) == outcome(data[:cut] + end, 100, full=True)
    assert {outcome(data[:cut], 100, full=False) for cut in cuts[:8]} == {"truncated"}
    assert outcome(data[:-2], 100, full=False) == "stored"
    assert reductions


def test_a_grey_corner_of_a_whole_image_does_not_count_as_missing(reductions: list[int]) -> None:
    image = smooth(310, 230)
    image.paste((128, 128, 128), (150, 110, 310, 230))
    assert outcome(encoded(image, "JPEG", quality=90), 100, full=False) == "stored"
    assert reductions == [2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_profile_are_applied(orientation: int, reductions: list[int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(310, 230), "JPEG", quality=92, exif=exif, icc_profile=ADOBE_RGB)
    image, full = stored(data, 100), stored(data, 100, full=True)
    assert (image.width, image.height) == (full.width, full.height)
    assert psnr(image, full) > 42
    assert reductions == [2]


def test_an_image_that_shrinks_by_less_than_two_is_not_reduced(reductions: list[int]) -> None:
    data = encoded(smooth(310, 230), "JPEG")
    assert stored(data, 116).body == stored(data, 116, full=True).body
    assert not reductions
    assert reduced.factor_for((1027, 1024), (514, 512)) == 1  # one side shrinks by a little less
    factors = [reduced.factor_for((side, side), (512, 512)) for side in (1023, 1024, 4096, 8192, 60_000)]
    assert factors == [1, 2, 4, 8, 8]


def test_the_means_are_those_of_squares_of_pixels() -> None:
    """What the expected difference relies on: libjpeg's reduced decode is the mean of the pixels."""
    pixels = np.asarray(Image.open(PHOTOGRAPHS[0]).convert("L"))
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    full = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    for factor in (2, 4, 8):
        means = cv2.imdecode(np.frombuffer(data, np.uint8), reduced.decoding_flags(factor, is_grey=True))
        height, width = (side // factor * factor for side in full.shape)
        squares = full[:height, :width].reshape(height // factor, factor, width // factor, factor).mean((1, 3))
        assert np.abs(means[: squares.shape[0], : squares.shape[1]] - squares).mean() < 1
