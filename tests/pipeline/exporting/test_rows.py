"""Rows have the key by which the owner of an image knows it, and images and captions are joined one to one."""

from typing import Any

import pyarrow as pa
import pytest

from lotlip_data.manifests.formats.schema import CAPTIONS
from lotlip_data.pipeline.dataset.join import Captions, JoinError
from lotlip_data.pipeline.exporting.rows import NO_REASON, join, original_key


def image(number: int, **values: Any) -> dict[str, Any]:
    texts = {"texts": [" ", "raw"], "sources": ["first", "second"]}
    return (
        {"key": f"00000{number:04d}", "uid": f"{number:032x}", "sha256": f"{number:064x}", "url": None} | texts | values
    )


def captions(images: list[dict[str, Any]], *texts: str | None) -> Captions:
    rows = [
        {name: image[name] for name in ("key", "uid", "sha256")} | {"text": text, "flags": []}
        for image, text in zip(images, texts, strict=True)
    ]
    return Captions(pa.Table.from_pylist(rows, schema=CAPTIONS), "captions", lambda: "Remove it.")


@pytest.mark.parametrize(
    "container, member, key",
    [
        (None, None, None),
        ("s3://bucket/a.tar", "00012.jpg", "00012"),
        ("s3://bucket/a.tar", "./train/00012.seg.png", "./train/00012"),
        ("/data/a.TGZ", "x.jpg", "x"),
        ("/data/images", "cats/one.jpeg", "cats/one"),
        ("/data/images", "cats/one.v2.jpeg", None),
        ("/data/table.parquet", "coco_17", "coco_17"),
        ("/data/table.parquet", "17", "17"),
        ("/data/a.tar", "/etc/passwd.jpg", None),
        ("/data/a.tar", "../up.jpg", None),
        ("/data/a.tar", ".jpg", None),
        ("/data/images", "__cats__/one.jpg", None),  # the webdataset library would leave the sample out
        ("/data/images", "cats/__one__.jpg", "cats/__one__"),
    ],
)
def test_the_key_is_that_of_the_image_in_its_container(
    container: str | None, member: str | None, key: str | None
) -> None:
    existing = image(3, container=container, member=member)
    assert original_key(existing) == key
    (row,) = join([existing], {}, {})
    assert (row["key"], row["container"], row["member"]) == (key or existing["key"], container, member)


def test_two_images_of_one_key_stay_two_samples() -> None:
    images = [image(number, container="a.tar", member=f"x.{ending}") for number, ending in enumerate(("jpg", "png"))]
    assert [row["key"] for row in join(images, {}, {})] == ["x", f"x-{images[1]['uid']}"]


def test_an_image_without_a_raw_text_has_null_and_blank_ones_are_skipped() -> None:
    (none,) = join([image(1, texts=[], sources=[])], {}, {})
    assert (none["raw"], none["raws"], none["sources"]) == (None, [], [])
    (blank,) = join([image(1, texts=[""], sources=["web"])], {}, {})
    assert (blank["raw"], blank["raws"], blank["source"]) == (None, [""], "web")
    (second,) = join([image(2)], {}, {})
    assert (second["raw"], second["source"], second["raws"]) == ("raw", "second", [" ", "raw"])


def test_a_missing_text_has_a_reason_and_a_blank_one_is_a_text() -> None:
    images = [image(1), image(2)]
    rows = list(join(images, {"a": captions(images, None, "")}, {"a": "text"}))
    assert [(row["text"], row["text_reason"]) for row in rows] == [(None, NO_REASON), ("", "")]


def test_images_and_captions_that_do_not_belong_together_are_an_error() -> None:
    images = [image(1), image(2)]
    with pytest.raises(JoinError, match=r"captions: 1 captions have no image"):
        list(join(images[:1], {"a": captions(images, "x", "y")}, {"a": "a"}))
    with pytest.raises(JoinError, match=r"captions has no row for image 000000002"):
        list(join(images, {"a": captions(images[:1], "x")}, {"a": "a"}))
    with pytest.raises(JoinError, match="occurs twice in this shard"):
        list(join([images[0], images[0]], {}, {}))
