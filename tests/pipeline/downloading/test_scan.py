"""A container of existing images becomes a shard like a downloaded one: same checks and rows, images where they lie."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import EXISTING_IMAGES, SUCCESS
from lotlip_data.manifests.manifest import Manifest, with_absolute_paths
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit, remove_orphans
from lotlip_data.pipeline.downloading.reader import ShardUnreadable, fetched_images, fetched_rows
from lotlip_data.pipeline.existing_images import rows
from lotlip_data.pipeline.existing_images.partition import ExistingImages
from lotlip_data.pipeline.url_lists.partition import partition
from lotlip_data.pipeline.viewer.downloaded_images import DownloadedImages
from tests.pipeline import existing_fixture, run_fixture
from tests.pipeline.existing_fixture import encoded, jpeg, oriented_jpeg, picture, write_tar

URL = "http://images.test/b.jpg"


def manifest(folder: Path, *sources: dict[str, Any], **settings: Any) -> Manifest:
    """A manifest of these sources, whose files are in `folder`."""
    content = {"name": "mine", "sources": list(sources), "captioners": [], **settings}
    return with_absolute_paths(Manifest.model_validate(content), str(folder))


def scanned(made: Manifest, folder: Path) -> tuple[Run, list[int]]:
    """A run of the manifest with all its containers scanned, without Ray, and its shards."""
    run = Run.at(str(folder / "run"))
    parts = partition(made, run, ExistingImages)
    for shard in range(parts.shards):
        fetch_and_commit(DownloadTask(run, shard, parts.samples_per_shard, made.download, sources=made.sources))
    return run, list(range(parts.shards))


def rows_of(run: Run, shard: int) -> dict[str, dict[str, Any]]:
    """The rows of a shard by the name of their image in the container."""
    table = fetched_rows(run, shard, ledger.read_image_stats(run, shard), None)
    assert table.schema.equals(EXISTING_IMAGES)
    return {row["member"]: row for row in table.to_pylist()}


def every_kind(folder: Path) -> dict[str, bytes]:
    """A tar with plain images, images that have to be converted, and what is no usable image."""
    content = {
        "plain.jpg": jpeg(1),
        "grey.jpg": encoded(picture(2, "L")),
        "png.png": encoded(picture(3), "PNG"),
        "clear.png": encoded(picture(4, "RGBA"), "PNG"),
        "side.jpg": oriented_jpeg(5),
        "wrong.png": jpeg(6),
        "cut.jpg": jpeg(7)[:-300],
        "text.jpg": b"<html>not found</html>",
        "bomb.png": existing_fixture.bomb(),
        "empty.jpg": b"",
        "twin.jpg": jpeg(1),
    }
    texts = {f"{name.split('.')[0]}.txt": f"text of {name}" for name in content}
    write_tar(folder / "a.tar", {name: data for pair in zip(content, texts, strict=True) for name, data in
                                 ((pair[0], content[pair[0]]), (pair[1], texts[pair[1]]))})  # fmt: skip
    return content


@pytest.mark.parametrize("images", ["reference", "copy"])
def test_a_container_has_the_checks_and_the_rows_of_a_download(tmp_path: Path, images: str) -> None:
    content = every_kind(tmp_path)
    run, shards = scanned(manifest(tmp_path, {"name": "tars", "files": ["a.tar"], "images": images}), tmp_path)
    assert shards == [0]
    rows, marker = rows_of(run, 0), ledger.read_image_stats(run, 0)
    used = ["plain.jpg", "grey.jpg", "png.png", "clear.png", "side.jpg", "wrong.png"]
    assert [name for name, row in rows.items() if row["status"] == SUCCESS] == used
    reasons = {name: failures.split_message(row["error_message"])[0] for name, row in rows.items() if name not in used}
    assert reasons == {
        "cut.jpg": failures.TRUNCATED,
        "text.jpg": failures.NOT_AN_IMAGE,
        "bomb.png": failures.TOO_MANY_PIXELS,
        "empty.jpg": failures.EMPTY,
        "twin.jpg": failures.REPEATED,
    }
    assert (marker["count"], marker["successes"]) == (11, 6)
    for name in used:
        row, sha256 = rows[name], hashlib.sha256(content[name]).hexdigest()
        assert (row["sha256"], row["uid"]) == (sha256, sha256[:32])
        assert (row["texts"], row["sources"], row["url"]) == ([f"text of {name}"], ["tars"], None)
        upright = (PIXELS := existing_fixture.PIXELS, PIXELS + 8) if name != "side.jpg" else (PIXELS + 8, PIXELS)
        assert (row["original_width"], row["original_height"]) == upright
    assert len({row["uid"] for row in rows.values()}) == len(rows)
    assert list(run_quarantine(run)) == [name for name in rows if name not in used]
    read = {image.meta["member"]: image for image in fetched_images(run, 0)}
    assert list(read) == used
    for name, image in read.items():
        assert (image.uid, image.key) == (rows[name]["uid"], rows[name]["key"])
        with Image.open(io.BytesIO(image.image)) as decoded:
            assert (decoded.format, decoded.size) == ("JPEG", (rows[name]["width"], rows[name]["height"]))
        is_as_it_is = images == "reference" and name in ("plain.jpg", "grey.jpg", "wrong.png")
        assert (image.image == content[name]) == is_as_it_is
        assert DownloadedImages(run).image(0, image.key) == image.image
    assert ("tar" in marker) == (images == "copy")


def run_quarantine(run: Run) -> list[str]:
    """The images of shard 0 in the quarantine."""
    table = pq.read_table(run.quarantine("images", "00000.parquet"))
    assert all(table["reason"].to_pylist()) and set(table["container"].to_pylist()) != {None}
    return list(table["member"].to_pylist())


@pytest.mark.parametrize("images", ["reference", "copy"])
def test_tars_tables_and_folders_of_the_same_images_give_the_same_images(tmp_path: Path, images: str) -> None:
    content = {name: data for name, data in every_kind(tmp_path).items() if name != "twin.jpg"}
    cells = [{"bytes": data, "path": name} for name, data in content.items()]
    pq.write_table(
        pa.table({"image": cells, "caption": [f"text of {name}" for name in content]}), tmp_path / "t.parquet"
    )
    (tmp_path / "photos").mkdir()
    for name, data in content.items():
        (tmp_path / "photos" / name).write_bytes(data)
        (tmp_path / "photos" / name).with_suffix(".txt").write_text(f"text of {name}")
    forms: dict[str, dict[str, Any]] = {
        "tar": {"files": ["a.tar"]},
        "table": {"files": ["t.parquet"], "format": "image-table"},
        "folder": {"files": ["photos"], "format": "image-folder"},
    }
    read = {}
    for form, source in forms.items():
        (tmp_path / form).mkdir()
        run, shards = scanned(manifest(tmp_path, {"name": "mine", "images": images, **source}), tmp_path / form)
        assert shards == [0]
        viewer, stored = DownloadedImages(run), list(fetched_images(run, 0))
        assert [viewer.image(0, image.key) for image in stored] == [image.image for image in stored]
        read[form] = {image.uid: (image.image, image.meta["texts"], image.meta["width"]) for image in stored}
        failed = [row["error_message"] for row in rows_of(run, 0).values() if row["status"] != SUCCESS]
        assert sum(failures.split_message(text)[0] != failures.REPEATED for text in failed) == 4, failed
    assert len(read["tar"]) == 6 and read["tar"] == read["table"] == read["folder"]


def test_every_reason_of_a_row_is_in_the_vocabulary() -> None:
    """So that failures are counted by reason."""
    texts = {name: value for name, value in vars(rows).items() if name.isupper() and isinstance(value, str)}
    reasons = {text for name, text in texts.items() if name != "GARBLED"}
    assert len(reasons) > 10 and reasons <= failures.VOCABULARY


def test_a_url_identifies_an_image_and_stands_once_in_a_container(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(1), "a.json": {"url": URL, "n": 1}, "b.jpg": jpeg(2), "b.json": {"url": URL, "n": 2}}
    write_tar(tmp_path / "a.tar", {**members, "c.jpg": jpeg(3), "c.json": {"n": 3}})
    source = {"name": "tars", "files": ["a.tar"], "url": "json.url", "text": None}
    run, _ = scanned(manifest(tmp_path, source), tmp_path)
    rows = rows_of(run, 0)
    assert rows["a.jpg"]["uid"] == uid_from_url(URL) and rows["a.jpg"]["url"] == URL
    assert "a.jpg" in rows["b.jpg"]["error_message"] and rows["b.jpg"]["error_message"].startswith(failures.REPEATED)
    assert rows["c.jpg"]["uid"] == rows["c.jpg"]["sha256"][:32]


def test_filter_and_samples_are_exact_over_all_containers(tmp_path: Path) -> None:
    numbers = range(24)
    for tar in range(4):
        own = {f"{n}.{ending}": value for n in numbers if n % 4 == tar for ending, value in
               (("jpg", jpeg(n)), ("json", {"n": n, "good": n >= 4}))}  # fmt: skip
        write_tar(tmp_path / f"{tar}.tar", own)
    source = {"name": "tars", "files": ["*.tar"], "text": None, "filter": 'col("json.good")'}
    everything, shards = scanned(manifest(tmp_path, source), tmp_path)
    names = [name for shard in shards for name in rows_of(everything, shard)]
    assert sorted(names) == sorted(f"{n}.jpg" for n in numbers if n >= 4)
    stats = [ledger.read_image_stats(everything, shard) for shard in shards]
    assert sum(sum(marker["filtered"].values()) for marker in stats) == 4
    drawn = {}
    for place, settings in {"own": (source | {"sample": 7}, {}), "all": (source, {"sample": 7})}.items():
        (tmp_path / place).mkdir()
        made = manifest(tmp_path, settings[0], **settings[1])
        run, shards = scanned(made, tmp_path / place)
        drawn[place] = sorted(name for shard in shards for name in rows_of(run, shard))
        assert len(drawn[place]) == 7 and set(drawn[place]) < set(names)
        marks = [ledger.read_image_stats(run, shard) for shard in shards]
        assert sum(marker["count"] + marker["not_drawn"] + sum(marker["filtered"].values()) for marker in marks) <= 24
    assert drawn["own"] != drawn["all"]


def test_a_changed_container_is_one_error_with_its_remedy(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(1), "a.txt": "one", "b.jpg": jpeg(2), "b.txt": "two"}
    tar = write_tar(tmp_path / "a.tar", members)
    run, _ = scanned(manifest(tmp_path, {"name": "tars", "files": ["a.tar"]}), tmp_path)
    assert len(list(fetched_images(run, 0))) == 2
    changes: list[dict[str, Any]] = [
        members | {"b.jpg": jpeg(9)},
        members | {"b.txt": "other"},
        {name: members[name] for name in ("a.jpg", "a.txt")},
        members | {"c.jpg": jpeg(3)},
    ]
    for changed in changes:
        write_tar(tar, changed)
        with pytest.raises(ShardUnreadable, match=r"a\.tar.*remove .*00000_stats.json"):
            list(fetched_images(run, 0))
    tar.unlink()
    with pytest.raises(ShardUnreadable, match=r"a\.tar: is missing"):
        list(fetched_images(run, 0))


def test_images_that_are_scanned_anew_keep_no_captions_and_no_quarantine_of_others(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "c.jpg": b"no image"}
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, members)
    made = manifest(tmp_path, {"name": "tars", "files": ["a.tar", "b.tar"], "text": None})
    run, shards = scanned(made, tmp_path)
    run_fixture.claim_captioner(run, "llava")
    for shard in shards:
        run_fixture.write_captions(
            run, "llava", shard, [run_fixture.caption(image, "text") for image in run_fixture.fetched_rows(run, shard)]
        )
        ledger.record(run.caption_ledger("llava"), shard, ledger.WorkRecord(2, 0, 2, 1, 2))
    changed = int(ledger.read_image_stats(run, 1)["container"].url.endswith("b.tar"))
    write_tar(tmp_path / "b.tar", {"0.jpg": jpeg(9), "a.jpg": jpeg(1)})  # as many images, another one
    for shard in shards:
        storage.remove(run.image_stats(shard))  # as the error about a changed container says
        fetch_and_commit(DownloadTask(run, shard, made.samples_per_shard, made.download, sources=made.sources))
    removed = [ledger.read_image_stats(run, shard).get("removed_captions", []) for shard in (changed, 1 - changed)]
    assert removed == [["llava"], []]
    assert ledger.captioned_shards(run, "llava") == [1 - changed]  # images that are the same keep their captions
    assert list(ledger.recorded(run.caption_ledger("llava"))) == [1 - changed]
    assert ledger.caption_progress(run, "llava").left == (changed,)
    assert storage.list_names(run.quarantine("images")) == [f"0000{1 - changed}.parquet"]
    _, kept = run_fixture.fetched_rows(run, changed)
    folder = run.caption_parts("llava", changed)
    (part,) = storage.list_names(folder)
    (row,) = pq.read_table(storage.join(folder, part)).to_pylist()
    assert row["text"] == "text" and all(row[name] == kept[name] for name in ("key", "uid", "sha256"))


def test_a_damaged_container_is_pending_until_its_failure_is_accepted(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    tar.write_bytes(tar.read_bytes()[:3000])
    made, run = manifest(tmp_path, {"name": "tars", "files": ["a.tar"], "text": None}), Run.at(str(tmp_path / "run"))
    partition(made, run, ExistingImages)
    task = DownloadTask(run, 0, made.samples_per_shard, made.download, sources=made.sources)
    with pytest.raises(UserError, match=r"a\.tar: .*Restore it .*--accept-failures"):
        fetch_and_commit(task)
    assert storage.list_names(run.images) == []
    marker = fetch_and_commit(replace(task, accept=True))
    assert marker["status_dict"] == {SUCCESS: 0, failures.UNUSABLE_CONTAINER: 1}
    assert list(fetched_images(run, 0)) == []


def test_a_second_attempt_at_a_container_leaves_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(1)})
    made = manifest(tmp_path, {"name": "tars", "files": ["a.tar"], "text": None})
    run, _ = scanned(made, tmp_path)
    first = storage.list_names(run.images)
    storage.create(run.image_file("00000-abcdefabcdef.parquet"), b"of a killed attempt")
    fetch_and_commit(DownloadTask(run, 0, made.samples_per_shard, made.download, sources=made.sources))
    remove_orphans(run, {0})
    assert storage.list_names(run.images) == first
    assert json.loads(storage.read_bytes(run.image_stats(0)))["container"]["url"].endswith("a.tar")
