"""What stands in for parts of img2dataset gives what they would give."""

import io
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.progress import progress_bar
from lotlip_data.pipeline.downloading.images.isolation import Converter
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings, Converted
from lotlip_data.pipeline.downloading.img2dataset_adapter import Failure, IsolatedResizer, _ShardWriter
from tests.pipeline.downloading.images.test_conversion import encoded, picture

SCHEMA = pa.schema([("key", pa.string()), ("texts", pa.list_(pa.string())), ("width", pa.int32())])
ROWS: list[tuple[bytes | None, dict[str, Any]]] = [
    (bytes(range(256)) * 600, {"key": "000000000", "texts": ["a “text”", 'with "quotes"\n'], "width": 512}),
    (b"x", {"key": "000000001", "texts": [], "width": 1}),
    (None, {"key": "000000002", "texts": ["no image"], "width": None}),
    (b"y" * 512, {"key": "000000003", "texts": ["whole blocks"], "width": 2}),
]


def write_rows(writer: Any) -> None:
    for image, row in ROWS:
        writer.write(image, row["key"], None, dict(row))
    writer.close()


def test_the_tar_of_a_shard_is_byte_for_byte_that_of_img2dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.writer import WebDatasetSampleWriter

    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    failure = Failure()
    reference = WebDatasetSampleWriter(7, str(theirs), False, 5, SCHEMA, "jpg")
    reference.tarwriter.mtime = 1_700_000_000
    write_rows(reference)
    with progress_bar("download", len(ROWS), "URL") as bar:
        write_rows(_ShardWriter(bar, failure, 7, str(ours), False, 5, SCHEMA, "jpg"))
        assert bar.done == len(ROWS)
    assert failure.error is None
    assert (ours / "00007.tar").read_bytes() == (theirs / "00007.tar").read_bytes()
    assert pq.read_table(ours / "00007.parquet").to_pylist() == [row for _, row in ROWS]


class CountingConverter(Converter):
    """Counts the images that are submitted."""

    submitted = 0

    def submit(self, data: bytes) -> Any:
        self.submitted += 1
        return super().submit(data)


def test_a_body_is_converted_once_whether_it_was_started_before_or_not() -> None:
    bodies = [encoded(picture().resize((width, 30)), "JPEG") for width in (40, 50, 60)]
    with CountingConverter(ConversionSettings()) as converter:
        resizer = IsolatedResizer(converter, Failure())
        for body in bodies[:2]:
            resizer.start(body)
        widths = [resizer(io.BytesIO(body))[1] for body in reversed(bodies)]
    assert (widths, converter.submitted) == ([60, 50, 40], 3)


def test_the_result_of_one_body_is_never_taken_for_that_of_another() -> None:
    """Equal bodies, and bodies of one byte, which Python stores once, among them."""
    good = encoded(picture(), "JPEG")
    with Converter(ConversionSettings()) as converter:
        expected = converter.convert(good)
        assert isinstance(expected, Converted)
        resizer = IsolatedResizer(converter, Failure())
        bodies = [good, bytes(bytearray(good)), b"x", b"x", b"y"]
        for body in bodies:
            resizer.start(body)
        results = [resizer(io.BytesIO(body)) for body in bodies]
    assert [body for body, *_ in results] == [expected.body, expected.body, None, None, None]
    assert [message for *_, message in results[2:]] == ["not an image: text"] * 3
