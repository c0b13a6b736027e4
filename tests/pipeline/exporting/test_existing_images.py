"""Captions of images that existed before the run go back to where the images lie: by container, name and key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from lotlip_data.manifests import manifest
from lotlip_data.manifests.manifest import Manifest, with_absolute_paths
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.builds import plan_builds
from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit
from lotlip_data.pipeline.downloading.reader import fetched_images
from lotlip_data.pipeline.existing_images.partition import ExistingImages
from lotlip_data.pipeline.exporting.stage import ExportTask, describe, export_shard
from lotlip_data.pipeline.url_lists.partition import partition
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.existing_fixture import encoded, jpeg, picture, write_tar

SETTINGS: dict[str, Any] = {"name": "mine", "samples_per_shard": 3, "captioners": []}


def write_sources(folder: Path) -> list[dict[str, Any]]:
    """A tar with a PNG and an image without a text, a table with names, and a folder."""
    members = {"one.jpg": jpeg(1), "one.txt": "text of one", "b/two.png": encoded(picture(2), "PNG"), "b/two.txt": "2"}
    write_tar(folder / "a.tar", members | {"three.jpg": jpeg(3)})
    images = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in (4, 5)]
    pq.write_table(pa.table({"image": images, "title": ["t 4", "t 5"]}), folder / "table.parquet")
    (folder / "photos" / "cats").mkdir(parents=True)
    (folder / "photos" / "cats" / "six.jpg").write_bytes(jpeg(6))
    (folder / "photos" / "cats" / "six.v2.jpg").write_bytes(jpeg(7))
    return [
        {"name": "tars", "files": ["a.tar"]},
        {"name": "table", "files": ["table.parquet"], "format": "image-table", "text": "title"},
        {"name": "folder", "files": ["photos"], "format": "image-folder"},
    ]


@pytest.fixture(params=["reference", "copy"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """A captioned run of these sources."""
    sources = [source | {"images": request.param} for source in write_sources(tmp_path)]
    made = with_absolute_paths(Manifest.model_validate(SETTINGS | {"sources": sources}), str(tmp_path))
    run = Run.at(str(tmp_path / "run"))
    manifest.freeze(made, run)
    parts = partition(made, run, ExistingImages)
    fake_run.claim_captioner(run, "llava")
    for shard in range(parts.shards):
        fetch_and_commit(DownloadTask(run, shard, parts.samples_per_shard, made.download, sources=made.sources))
        rows = [fake_run.caption(image, f"caption of {image['member']}") for image in fake_run.fetched_rows(run, shard)]
        fake_run.write_captions(run, "llava", shard, rows)
    return run


def exported(run: Run, out: Path, file_format: str) -> Iterator[Path]:
    content = describe(manifest.frozen(run), run, str(out), file_format)
    for build in plan_builds(run, content, range(3)):
        assert export_shard(content, ExportTask(build, ())).file is not None
        yield Path(content.folder.file(build.shard))


def test_captions_have_the_container_the_name_and_the_key_of_their_image(run: Run, tmp_path: Path) -> None:
    rows = [row for file in exported(run, tmp_path / "out", "parquet") for row in pq.read_table(file).to_pylist()]
    assert all(row["llava"] == f"caption of {row['member']}" and row["url"] is None for row in rows)
    places = {row["member"]: (Path(row["container"]).name, row["key"], row["raw"]) for row in rows}
    assert len(rows) == len(places) == 7
    assert places.pop("cats/six.v2.jpg")[1].isdigit()  # the key of the run: readers of tars would end it at the dot
    assert places == {
        "0": ("table.parquet", "0", "t 4"),
        "1": ("table.parquet", "1", "t 5"),
        "one.jpg": ("a.tar", "one", "text of one"),
        "b/two.png": ("a.tar", "b/two", "2"),
        "three.jpg": ("a.tar", "three", None),
        "cats/six.jpg": ("photos", "cats/six", None),
    }


def test_new_tars_have_the_images_as_jpeg_under_their_own_keys(run: Run, tmp_path: Path) -> None:
    samples = {
        sample["__key__"]: sample
        for file in exported(run, tmp_path / "out", "webdataset")
        for sample in webdataset.WebDataset(str(file), shardshuffle=False)
    }
    assert len(samples) == 7 and {"one", "b/two", "three", "cats/six"} < samples.keys()
    stored = {image.uid: image.image for shard in range(3) for image in fetched_images(run, shard)}
    for sample in samples.values():
        meta = json.loads(sample["json"])
        assert sample["jpg"] == stored[meta["uid"]] and sample["jpg"].startswith(b"\xff\xd8\xff")
        assert meta["llava"] == f"caption of {meta['member']}"
        assert sample.get("txt", b"").decode() == (meta["raw"] or "")
