"""The shard stage joins and writes every sample once; a second run changes nothing, and wrong inputs are refused."""

import dataclasses
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.digests import digest_of
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index, schema
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation.filters import IMAGE_CHANGED, TOO_FEW_LONG_TEXTS, Filters
from lotlip_data.pipeline.dataset.join import JoinError
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.stage import read_captions, shard
from lotlip_data.pipeline.dataset.writer import DamagedShard
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun, build

IDS = {name: f"{name}@1" for name in WRITERS}


def recipe(**rules: Any) -> Recipe:
    return Recipe(IDS, Filters(**rules))


def read_tar(path: str) -> dict[str, dict[str, bytes]]:
    """Contents by key and extension, in the order of the tar."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(path))) as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            samples.setdefault(key, {})[ending] = content.read()
    return samples


def tree(folder: str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


def quarantined(fake: FakeRun, number: int) -> list[dict[str, Any]]:
    (path,) = Path(fake.run.quarantine("shard")).glob(f"{number:05d}-*.parquet")
    return list(pq.read_table(path).to_pylist())


@pytest.mark.parametrize("mode", ["punkt", "authors"])
def test_each_image_gets_the_texts_of_its_own_scene(tmp_path: Path, mode: Any) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    record = build(fake.run, recipe(sub_captions=mode), 0)
    table = pq.read_table(f"{fake.run.shards}/train-00000.parquet")
    members = read_tar(f"{fake.run.shards}/train-00000.tar")
    assert table.schema.equals(schema.dataset(WRITERS))
    assert [row["key"] for row in table.to_pylist()] == sorted(members) == list(members)
    assert {row["uid"] for row in table.to_pylist()} == set(fake.scenes)
    images = read_tar(f"{fake.run.images}/00000-attempt.tar")
    for row in table.to_pylist():
        scene, sample = fake.scenes[row["uid"]], members[row["key"]]
        assert set(sample) == schema.EXTENSIONS
        assert sample["jpg"] == images[row["key"]]["jpg"]
        assert sample["txt"].decode() == row["raw"] == raw_text(scene)
        assert json.loads(sample["json"]) == row
        for name in WRITERS:
            assert row[name] == long_text(scene, name)
            assert row[f"{name}_sub"] == subcaptions.split(long_text(scene, name), mode)
    assert (record.fetched, record.samples, record.dropped) == (8, 8, {})
    (output,) = record.outputs
    assert (output.split, output.samples, output.long_texts) == ("train", 8, dict.fromkeys(WRITERS, 8))


def test_a_shard_is_the_same_bytes_whenever_it_is_built(tmp_path: Path) -> None:
    first, second = fake_run.make(tmp_path / "a", shards=1), fake_run.make(tmp_path / "b b", shards=1)
    assert build(first.run, recipe(), 0).outputs == build(second.run, recipe(), 0).outputs
    for ending in ("tar", "parquet"):
        contents = {Path(run.shards, f"train-00000.{ending}").read_bytes() for run in (first.run, second.run)}
        assert len(contents) == 1
    with tarfile.open(f"{first.run.shards}/train-00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)


def test_the_marker_lists_the_files_with_size_and_sha256(tmp_path: Path) -> None:
    import hashlib

    fake = fake_run.make(tmp_path, shards=1)
    record = build(fake.run, recipe(), 0)
    assert dataset_index.read_record(fake.run, 0, record.fingerprint) == record
    assert len(record.files) == 2
    for file in record.files:
        content = storage.read_bytes(f"{fake.run.shards}/{file.name}")
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("min_long_texts, kept", [(0, 8), (1, 7), (2, 6), (3, 5)])
def test_images_with_too_few_long_texts_are_left_out_counted_and_listed(
    tmp_path: Path, min_long_texts: int, kept: int
) -> None:
    """Image k of the first three lacks k + 1 of its three texts. A blank text does not count."""
    fake = fake_run.make(tmp_path, shards=1)
    for lost, name in enumerate(WRITERS):
        rows = fake_run.captions_of(fake.run, name, 0)
        for row in rows[lost : len(WRITERS)]:
            row |= {"text": None if lost else " \n", "error": "poison"}
        fake_run.write_captions(fake.run, name, 0, rows)
    record = build(fake.run, recipe(min_long_texts=min_long_texts), 0)
    assert (record.fetched, record.samples) == (8, kept)
    assert record.dropped == ({TOO_FEW_LONG_TEXTS: 8 - kept} if kept < 8 else {})
    rows = pq.read_table(f"{fake.run.shards}/train-00000.parquet").to_pylist()
    for row in rows:
        for name in WRITERS:
            assert (row[name] is None) == (row[f"{name}_sub"] == [])
    assert record.outputs[0].long_texts == {name: sum(row[name] is not None for row in rows) for name in WRITERS}
    if kept < 8:
        dropped = quarantined(fake, 0)
        assert {row["reason"] for row in dropped} == {TOO_FEW_LONG_TEXTS}
        assert {row["uid"] for row in dropped} | {row["uid"] for row in rows} == set(fake.scenes)
        assert len(dropped) + len(rows) == 8


def test_a_shard_without_samples_has_a_marker_and_no_files(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    for name in WRITERS:
        rows = [row | {"text": None, "error": "poison"} for row in fake_run.captions_of(fake.run, name, 0)]
        fake_run.write_captions(fake.run, name, 0, rows)
    record = build(fake.run, recipe(), 0)
    assert (record.fetched, record.samples, record.files) == (8, 0, [])
    assert dataset_index.done_shards(fake.run) == [(0, record.fingerprint)]
    assert storage.list_names(fake.run.shards) == [dataset_index.MARKERS]
    assert len(quarantined(fake, 0)) == 8


def test_a_shard_without_images_has_a_marker_and_needs_no_captions(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=0)
    fake_run.commit_images(fake.run, 0, [], [])
    record = build(fake.run, recipe(), 0)
    assert (record.fetched, record.samples, record.files, record.dropped) == (0, 0, [], {})


@pytest.mark.parametrize(
    "texts, raw", [(["first", "second\nline"], 0), (["", "of coyo"], 1), ([" \n", "", "of coyo"], 2), (["", " "], 0)]
)
def test_all_raw_texts_are_kept_and_raw_is_the_first_one_that_is_not_blank(
    tmp_path: Path, texts: list[str], raw: int
) -> None:
    fake = fake_run.make(tmp_path, shards=0)
    sources = ["cc3m", "web", "coyo"][-len(texts) :]
    row = fake_run.listed_row("000000000", "http://images.test/3000000.jpg", texts, sources)
    row |= {"status": "success", "sha256": "s", "width": 8, "height": 8}
    fake_run.commit_images(fake.run, 0, [row], [(row, b"image")])
    for name in WRITERS:
        fake_run.write_captions(fake.run, name, 0, fake_run.captions_of(fake.run, name, 0))
    build(fake.run, recipe(), 0)
    (sample,) = pq.read_table(f"{fake.run.shards}/train-00000.parquet").to_pylist()
    assert (sample["source"], sample["raw"]) == (sources[raw], texts[raw])
    assert (sample["sources"], sample["raws"]) == (sources, texts)
    assert read_tar(f"{fake.run.shards}/train-00000.tar")["000000000"]["txt"].decode() == texts[raw]


@pytest.mark.parametrize("min_long_texts, kept", [(2, 8), (3, 7)])
def test_only_the_caption_of_other_bytes_is_left_out_and_listed(tmp_path: Path, min_long_texts: int, kept: int) -> None:
    """Its flags are left out with it. The sample stays if it has enough other texts."""
    fake = fake_run.make(tmp_path, shards=1)
    rows = fake_run.captions_of(fake.run, "llava", 0)
    rows[3] |= {"sha256": "f" * 64, "flags": ["repetition"]}
    fake_run.write_captions(fake.run, "llava", 0, rows)
    image = fake_run.fetched_rows(fake.run, 0)[3]
    record = build(fake.run, recipe(min_long_texts=min_long_texts), 0)
    assert (record.fetched, record.samples) == (8, kept)
    assert record.dropped == ({} if kept == 8 else {TOO_FEW_LONG_TEXTS: 1})
    assert record.dropped_texts == {"llava": {IMAGE_CHANGED: 1}}
    samples = {row["uid"]: row for row in pq.read_table(f"{fake.run.shards}/train-00000.parquet").to_pylist()}
    assert all((row["llava"] is None) == (uid == image["uid"]) for uid, row in samples.items())
    if kept == 8:
        assert (samples[image["uid"]]["llava_sub"], samples[image["uid"]]["llava_flags"]) == ([], "")
    else:
        assert image["uid"] not in samples
    (listed,) = (row for row in quarantined(fake, 0) if row["what"] == "llava")
    assert (listed["uid"], listed["sha256"], listed["reason"], listed["detail"]) == (
        image["uid"], image["sha256"], IMAGE_CHANGED, rows[3]["text"]
    )  # fmt: skip


@pytest.mark.parametrize("kind, command", [("llava", "recaption {}"), ("imported", "import` of the same table")])
def test_the_error_for_unusable_captions_names_file_and_command(tmp_path: Path, kind: str, command: str) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    url = fake.run.caption_shard("llava", 0)
    storage.replace(fake.run.captioner_settings("llava"), json.dumps({"id": "llava@1", "kind": kind}).encode())
    remedy = f"Remove {url}, and run `lotlip-data {command.format(fake.run.url)}"
    fake_run.write_captions(fake.run, "llava", 0, fake_run.captions_of(fake.run, "llava", 0)[1:])
    with pytest.raises(JoinError) as error:
        build(fake.run, recipe(), 0)
    assert remedy in str(error.value)
    Path(url).write_bytes(Path(url).read_bytes()[:-9])
    with pytest.raises(UserError, match="does not match its recorded sha256") as damaged:
        build(fake.run, recipe(), 0)
    assert str(damaged.value).startswith(f"{url}: cannot be read") and remedy in str(damaged.value)


@pytest.mark.parametrize("change, message", [("lost", "has no row for image"), ("twice", "9 captions of 8 images"),
                                          ("foreign", "1 captions have no image")])  # fmt: skip
def test_every_image_has_exactly_one_caption_and_every_caption_its_image(
    tmp_path: Path, change: str, message: str
) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    rows = fake_run.captions_of(fake.run, "llava", 0)
    changed = {"lost": rows[1:], "twice": [*rows, rows[0]], "foreign": [*rows, rows[0] | {"uid": "0" * 32}]}
    fake_run.write_captions(fake.run, "llava", 0, changed[change])
    with pytest.raises(JoinError, match=message):
        build(fake.run, recipe(), 0)


def test_a_uid_that_occurs_twice_in_a_shard_is_an_error(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=0)
    rows = [fake_run.listed_row(f"00000000{n}", f"http://images.test/3000000.jpg#{n}", ["a"], ["web"]) for n in (0, 1)]
    fake_run.commit_images(fake.run, 0, rows, [(row, b"image") for row in rows])
    for name in WRITERS:
        fake_run.write_captions(fake.run, name, 0, [fake_run.caption(rows[0], "A text.")])
    with pytest.raises(JoinError, match=f"uid {rows[0]['uid']} occurs twice"):
        build(fake.run, recipe(), 0)


def test_a_storage_error_is_not_reported_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions are intact, so the error must not advise to remove them."""

    def out_of_reach(url: str) -> bytes:
        raise ConnectionError(f"{url}: no answer")

    fake = fake_run.make(tmp_path, shards=1)
    monkeypatch.setattr(storage, "read_bytes", out_of_reach)
    with pytest.raises(ConnectionError, match="no answer"):
        read_captions(fake.run, "llava", 0)


def test_a_truncated_or_missing_image_tar_is_an_error(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    path = Path(fake.run.images, "00000-attempt.tar")
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-2].offset
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:end])
    again = re.escape(f"Remove {fake.run.image_stats(0)} and run `lotlip-data download` again.")
    with pytest.raises(DamagedShard, match=rf"cannot be read \(it has {end:,} bytes instead of {size:,}\). {again}"):
        build(fake.run, recipe(), 0)
    fake_run.forget_digests(fake.run, 0)
    with pytest.raises(DamagedShard, match=f"contains 7 images, but its marker says 8. {again}"):
        build(fake.run, recipe(), 0)
    path.write_bytes(path.read_bytes()[: end - 700])
    with pytest.raises(DamagedShard, match=rf"00000-attempt\.tar: cannot be read \(unexpected end of data\). {again}"):
        build(fake.run, recipe(), 0)
    path.unlink()
    with pytest.raises(DamagedShard, match=rf"00000-attempt\.tar: is missing\. {again}"):
        build(fake.run, recipe(), 0)


def test_a_captioner_cannot_be_named_like_a_column() -> None:
    with pytest.raises(ValueError, match="captioner 'raw': the dataset has a column 'raw' already"):
        Recipe({"raw": "raw@1"}, Filters())
    with pytest.raises(ValueError, match="'llava_sub' already"):
        Recipe({"llava": "llava@1", "llava_sub": "x@1"}, Filters())


def test_other_content_under_the_name_of_a_shard_stays(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    (first,) = build(fake.run, recipe(), 0).outputs
    storage.remove(dataset_index.marker(fake.run, *dataset_index.done_shards(fake.run)[0]))
    for name in ("train-00000", f"train-00000-{recipe().id[:6]}"):
        Path(fake.run.shards, f"{name}.tar").write_bytes(b"torn")
    (again,) = build(fake.run, recipe(), 0).outputs
    assert again.tar.name not in (first.tar.name, f"train-00000-{recipe().id[:6]}.tar")
    assert dataclasses.replace(again.tar, name="") == dataclasses.replace(first.tar, name="")
    assert Path(fake.run.shards, first.tar.name).read_bytes() == b"torn"
    # The name has the digest of the content, so other content is damage.
    Path(fake.run.shards, again.tar.name).write_bytes(b"torn, too")
    storage.remove(dataset_index.marker(fake.run, *dataset_index.done_shards(fake.run)[0]))
    assert build(fake.run, recipe(), 0).outputs == (again,)
    assert digest_of(f"{fake.run.shards}/{again.tar.name}") == again.tar.digest


def test_a_second_call_builds_nothing(tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    fake = fake_run.make(tmp_path, shards=3)
    caplog.clear()
    summary = shard(fake.manifest, fake.run)
    assert (summary.built, summary.skipped, summary.samples, summary.failed) == (3, 0, 24, [])
    assert sum(message.startswith("shard 0") for message in caplog.messages) == 3
    index = dataset_index.read_index(fake.run)
    assert index["captioners"] == IDS
    assert (index["samples"], index["fetched"]) == (24, 24)
    assert index["long_texts"] == dict.fromkeys(WRITERS, 24)
    assert index["sub_captions"] == "punkt"
    assert [record.shard for record in dataset_index.read_records(fake.run, index)] == [0, 1, 2]
    assert index["bytes"] == sum(
        file.bytes for record in dataset_index.read_records(fake.run, index) for file in record.files
    )
    assert Manifest.model_validate(index["manifest"]) == fake.manifest
    before, messages = tree(fake.run.shards), len(caplog.messages)
    again = shard(fake.manifest, fake.run)
    assert again.nothing_to_do and (again.built, again.skipped) == (0, 3)
    assert tree(fake.run.shards) == before and len(caplog.messages) == messages


def test_new_shards_are_added_and_earlier_ones_stay(
    tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_run.make(tmp_path, shards=2)
    shard(fake.manifest, fake.run)
    before = tree(fake.run.shards)
    fake_run.write_images(fake.run, 2, [3_500_000])
    caplog.clear()
    waiting = shard(fake.manifest, fake.run)
    assert (waiting.built, waiting.skipped) == (0, 2)
    assert waiting.failed == caplog.messages == [
        f"missing: captions by {name} of 1 shard (00002): run `lotlip-data recaption {fake.run.url}`"
        for name in WRITERS
    ]  # fmt: skip
    assert tree(fake.run.shards) == before
    for name in WRITERS:
        fake_run.write_captions(fake.run, name, 2, fake_run.captions_of(fake.run, name, 2))
    assert (shard(fake.manifest, fake.run).built, dataset_index.read_index(fake.run)["samples"]) == (1, 17)
    after = tree(fake.run.shards)
    views = {
        str(Path(fake.run.shards, name))
        for name in (dataset_index.DATASET_JSON, dataset_index.CARD, dataset_index.CROISSANT)
    }
    assert {name: after[name] for name in before.keys() - views} == {
        name: before[name] for name in before.keys() - views
    }


def test_a_shard_that_cannot_be_built_does_not_stop_the_others(tmp_path: Path, ray_cluster: None) -> None:
    fake = fake_run.make(tmp_path, shards=3)
    fake_run.write_captions(fake.run, "llava", 1, [])
    summary = shard(fake.manifest, fake.run)
    assert summary.built == 2
    (reason,) = summary.failed
    assert reason.startswith("shard 00001: ") and "has no row for image" in reason and "Traceback" not in reason
    assert not storage.exists(fake.run.dataset)


def test_the_error_names_the_stage_that_must_run_first(tmp_path: Path) -> None:
    empty = fake_run.make(tmp_path / "empty", shards=0, writers=[])
    with pytest.raises(DatasetError, match=r"no images here yet\. Run `lotlip-data download`"):
        shard(empty.manifest, empty.run)
    bare = fake_run.make(tmp_path / "bare", writers=[])
    with pytest.raises(DatasetError, match=r"no captions yet\. Run `lotlip-data recaption`"):
        shard(bare.manifest, bare.run)
    with pytest.raises(DatasetError, match="no captions by llava yet"):
        shard(bare.manifest, bare.run, captioners=["llava"])
    strict = fake_run.make(tmp_path / "strict", writers=["llava"], min_long_texts=2)
    with pytest.raises(DatasetError, match=r"`shard\.min_long_texts` is 2, but the run has captions by 1 captioners"):
        shard(strict.manifest, strict.run)


def test_a_captioner_that_never_started_and_is_not_in_the_manifest_does_not_block_the_dataset(
    tmp_path: Path, ray_cluster: None
) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    fake_run.claim_captioner(fake.run, "tiny")
    assert shard(fake.manifest, fake.run).failed == []
    assert dataset_index.read_index(fake.run)["captioners"] == IDS


def test_an_unfinished_captioner_is_named_with_commands_that_bring_its_captions_or_leave_it_out(
    tmp_path: Path, ray_cluster: None
) -> None:
    fake = fake_run.make(tmp_path, shards=2, writers=["instructblip", "sharegpt4v"])
    fake_run.claim_captioner(fake.run, "tiny")
    fake_run.write_captions(fake.run, "tiny", 0, fake_run.captions_of(fake.run, "llava", 0))
    fake_run.claim_captioner(fake.run, "llava")  # of the manifest, and its engine did not start
    without = f"or leave it out with `lotlip-data shard {fake.run.url} --captioners instructblip,sharegpt4v`"
    recaption = f"run `lotlip-data recaption {fake.run.url}`; {without}"
    assert shard(fake.manifest, fake.run).failed == [
        f"missing: captions by llava of 2 shards (00000, 00001): {recaption}",
        f"missing: captions by tiny of 1 shard (00001): name it under `captioners` in {fake.run.manifest} again and "
        f"{recaption}",
    ]
    summary = shard(fake.manifest, fake.run, ["sharegpt4v", "instructblip"])
    assert (summary.failed, summary.built) == ([], 2)
    assert list(dataset_index.read_index(fake.run)["captioners"]) == ["sharegpt4v", "instructblip"]
    kept = fake.manifest.replace(shard=fake.manifest.shard.replace(captioners=("sharegpt4v", "instructblip")))
    assert shard(kept, fake.run).built == 0 and Manifest.parse(kept.model_dump()) == kept
    with pytest.raises(
        DatasetError, match=r"no captions by lava yet.*of the run: instructblip, llava, sharegpt4v, tiny"
    ):
        shard(fake.manifest, fake.run, ["lava"])


def test_a_shard_without_images_needs_no_captions(tmp_path: Path, ray_cluster: None) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    fake_run.write_images(fake.run, 1, [])
    assert [ledger.caption_progress(fake.run, name).left for name in WRITERS] == [()] * len(WRITERS)
    summary = shard(fake.manifest, fake.run)
    assert (summary.failed, summary.built, summary.samples) == ([], 2, 8)
    assert shard(fake.manifest, fake.run).nothing_to_do
