"""An image that kills its decoder, or takes too much of the machine, costs nothing but itself."""

import contextlib
import hashlib
import io
import os
import pathlib
import resource
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.downloading.failures import FetchError, is_transient
from lotlip_data.pipeline.downloading.images import isolation
from lotlip_data.pipeline.downloading.images.isolation import Converter, ConverterError
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings
from lotlip_data.pipeline.downloading.suspects import ShardSuspects
from tests.pipeline.downloading.images.test_conversion import chunk, encoded, picture

GOOD = encoded(picture(), "JPEG")

KILLED_BY = """
import os, signal
from lotlip_data.pipeline.downloading.images import converter_process as process
convert = process.convert
def hostile(data, settings, announce):
    if data.startswith(b"die "):
        announce(1 << 30)
        os.kill(os.getpid(), int(data[4:]))
    if data.startswith(b"killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.startswith(b"spin"):
        while True:
            pass
    if data.startswith(b"fill"):
        kept = []
        while True:
            kept.append(bytes(1 << 24))
    return convert(data, settings, announce)
process.convert = hostile
process.MAX_CPU_SECONDS = 1
process.main()
"""
"""The program of the process, in which certain bodies act as images that exploit a defect of a decoder would."""


@pytest.fixture
def hostile_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_PROGRAM", KILLED_BY)


def refusal(converter: Converter, data: bytes) -> FetchError:
    with pytest.raises(FetchError) as error:
        converter.convert(data)
    return error.value


@pytest.mark.parametrize("number, reason", [(signal.SIGSEGV, "cannot be decoded"), (signal.SIGKILL, "too much memory")])
def test_an_image_that_kills_the_decoder_twice_is_rejected_and_its_neighbours_are_stored(
    hostile_decoder: None, number: int, reason: str
) -> None:
    with Converter(ConversionSettings()) as converter:
        before = converter.convert(GOOD)
        error = refusal(converter, b"die %d" % number)
        assert str(error) == f"{reason}: ended the process that decodes it 2 times, last with status -{number}"
        assert not is_transient(error.reason)
        assert converter.convert(GOOD) == before


def test_an_image_that_takes_little_memory_is_not_blamed_for_kills(hostile_decoder: None) -> None:
    with Converter(ConversionSettings()) as converter, pytest.raises(ConverterError, match="memory is short"):
        converter.convert(b"killed")


def test_an_image_that_takes_too_long_is_rejected_at_once(hostile_decoder: None) -> None:
    with Converter(ConversionSettings()) as converter:
        assert refusal(converter, b"spin").reason == "cannot be decoded"
        assert converter.convert(GOOD)


def test_a_decoder_cannot_take_more_memory_than_the_budget(hostile_decoder: None) -> None:
    with Converter(ConversionSettings(max_decoded_bytes=64 << 20)) as converter:
        assert refusal(converter, b"fill")
        assert converter.convert(GOOD)


def test_messages_of_decoders_stay_out_of_the_output_and_no_descriptor_leaks(capfd: pytest.CaptureFixture[str]) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - not a folder on a disk

    def convert_damaged() -> None:
        with Converter(ConversionSettings()) as converter, contextlib.suppress(FetchError):
            converter.convert(GOOD[:300] + bytes(50) + GOOD[300:])

    convert_damaged()  # leaves an idle process
    before = count()
    for _ in range(3):
        convert_damaged()
    assert count() <= before
    assert capfd.readouterr() == ("", "")
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY, "the limit is the process's own"


def test_a_process_that_does_not_start_is_no_fault_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_PROGRAM", "raise SystemExit(3)")
    with Converter(ConversionSettings()) as converter, pytest.raises(ConverterError, match="does not start"):
        converter.convert(GOOD)


def heavy_png(side: int) -> bytes:
    """A small PNG with transparency whose pixels take 4 × side² bytes."""
    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(bytes(1 + 4 * side)) for _ in range(side)) + compressor.flush()
    header = side.to_bytes(4, "big") * 2 + b"\x08\x06\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_beyond_the_budget_is_rejected_before_it_is_decoded() -> None:
    data = heavy_png(5000)
    with Converter(ConversionSettings(max_decoded_bytes=64 << 20)) as converter:
        message = "too much memory: 5000 × 5000 png takes 119 MiB to decode; `download.max_decoded_bytes` is the limit"
        assert str(refusal(converter, data)) == message
    with Converter(ConversionSettings()) as converter:
        result = converter.convert(data)
    assert (result.width, result.original_width) == (512, 5000)
    assert np.asarray(Image.open(io.BytesIO(result.body))).min() > 250  # transparent: white


def test_an_image_with_which_two_attempts_at_its_shard_died_is_rejected(tmp_path: pathlib.Path) -> None:
    run, data = Run(str(tmp_path)), heavy_png(5000)
    sha256 = hashlib.sha256(data).hexdigest()
    blocks = []
    for death in range(2):
        suspects = ShardSuspects(run, 7)
        assert suspects.deaths(sha256) == death
        blocks.append(suspects.decoding(sha256))
        blocks[-1].__enter__()  # never left: the process died inside
    suspects = ShardSuspects(run, 7)
    with Converter(ConversionSettings(), suspects) as converter:
        message = "too much memory: 2 attempts at its shard ended while they decoded it, which takes 119 MiB"
        assert str(refusal(converter, data)) == message
        assert converter.convert(GOOD)
        assert converter.convert(heavy_png(4999)).width == 512
    with Converter(ConversionSettings(), ShardSuspects(run, 8)) as converter:
        assert converter.convert(data).width == 512, "the names of a shard concern no other shard"
    assert len(os.listdir(run.image_suspects)) == 2  # noqa: PTH208
    suspects.clear()
    assert os.listdir(run.image_suspects) == []  # noqa: PTH208


def process_of(converter: Converter) -> int:
    """The id of the process that converts."""
    assert converter.convert(GOOD)
    return converter._process.pid


def test_the_next_shard_of_a_worker_uses_the_same_process_with_its_own_settings() -> None:
    with Converter(ConversionSettings()) as converter:
        first = process_of(converter)
    with Converter(ConversionSettings()) as converter:
        assert process_of(converter) == first
    with Converter(ConversionSettings(image_size=16)) as converter:
        assert process_of(converter) != first
        assert min(converter.convert(GOOD).width, converter.convert(GOOD).height) == 16
    assert not pathlib.Path(f"/proc/{first}").exists()


def test_a_process_that_the_kernel_ends_between_two_shards_is_replaced() -> None:
    with Converter(ConversionSettings()) as converter:
        first = process_of(converter)
    os.kill(first, signal.SIGKILL)
    with Converter(ConversionSettings()) as converter:
        assert process_of(converter) != first


def test_a_process_that_has_converted_many_images_ends_with_its_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "MAX_IMAGES", 2)
    with Converter(ConversionSettings(quality=94)) as converter:
        first = process_of(converter)
        assert process_of(converter) == first
    assert not pathlib.Path(f"/proc/{first}").exists()


def test_images_submitted_ahead_of_one_that_kills_the_decoder_are_stored(hostile_decoder: None) -> None:
    bodies = [encoded(picture().resize((width, 30)), "JPEG") for width in (40, 50, 60, 70)]
    with Converter(ConversionSettings()) as converter:
        before = [converter.submit(body) for body in bodies[:2]]
        hostile = [converter.submit(b"die %d" % signal.SIGSEGV), converter.submit(b"spin")]
        after = [converter.submit(body) for body in bodies[2:]]
        assert [conversion.result().width for conversion in (*before, *after)] == [40, 50, 60, 70]
        assert [isinstance(conversion.exception(), FetchError) for conversion in hostile] == [True, True]


class BrokenStorage(isolation.NoSuspects):
    """A memory of earlier attempts that cannot be reached."""

    def decoding(self, sha256: str) -> contextlib.AbstractContextManager[None]:
        raise ConnectionResetError("storage")


def test_a_failure_of_the_storage_is_not_blamed_on_the_image_and_spoils_no_later_one() -> None:
    with Converter(ConversionSettings(), BrokenStorage()) as converter:
        with pytest.raises(ConnectionResetError, match="storage"):
            converter.convert(heavy_png(5000))
        assert converter.convert(GOOD) == converter.convert(GOOD)


def test_the_process_that_converts_images_does_not_load_pyarrow() -> None:
    code = "import sys, lotlip_data.pipeline.downloading.images.converter_process; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_the_worker_nor_a_light_install_needs_opencv_to_read_a_run() -> None:
    code = "import sys, lotlip_data.pipeline.downloading.stage; sys.exit('cv2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
