"""The card and the metadata of a repository are those of what it holds, and other tools read it by them."""

import json
from pathlib import Path

import pytest
import yaml

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.hub import layout
from lotlip_data.pipeline.hub.publication import publish
from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import sample_scene
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.hub.conftest import IMAGES, NAME, SHARDS, VIEW_NAMES, shard_names, write_dataset
from tests.support.fake_dataset_hub import FakeDatasetHub


def test_captions_only_leaves_the_images_out_and_says_so(hub: FakeDatasetHub, run: Run) -> None:
    publish(run, NAME, images=False)
    files = hub.repositories[NAME].files()
    assert set(files) == shard_names(run, (".parquet",)) | VIEW_NAMES
    card = files["README.md"].decode()
    assert "## Without images" in card and ".tar`" not in card and "Sources and licences" in card
    assert "train-{00000..00002}.parquet" in card
    croissant = json.loads(files["croissant.json"])
    included = [name for file_set in croissant["distribution"] for name in file_set["includes"]]
    assert set(included) == shard_names(run, (".parquet",))
    assert not publish(run, NAME, images=False).has_changes


def test_text_that_people_added_to_the_card_is_published(hub: FakeDatasetHub, run: Run) -> None:
    card = Path(run.dataset_file("README.md"))
    edited = (
        card.read_text().replace("## Sources", "Made by the lab.\n\n## Sources").replace("language:", "x: y\nlanguage:")
    )
    card.write_text(edited)
    publish(run, NAME)
    assert hub.repositories[NAME].files()["README.md"].decode() == edited
    publish(run, NAME, images=False)
    published = hub.repositories[NAME].files()["README.md"].decode()
    card.write_bytes(b"\xef\xbb\xbf" + edited.replace("\n", "\r\n").encode())  # as an editor on Windows saves it
    assert not publish(run, NAME, images=False).has_changes
    assert "Made by the lab." in published and "## Without images" in published
    assert yaml.safe_load(published.split("---\n")[1])["x"] == "y"


@pytest.mark.parametrize("images", [True, False])
def test_a_card_that_is_not_in_utf8_is_named_before_anything_is_uploaded(
    hub: FakeDatasetHub, run: Run, images: bool
) -> None:
    card = Path(run.shards, "README.md")
    card.write_bytes(card.read_bytes() + b"\ncaf\xe9\n")
    line = len(card.read_bytes().splitlines())
    with pytest.raises(UserError, match=rf"README\.md: line {line} is not in UTF-8\. Save the card in UTF-8"):
        publish(run, NAME, images=images)
    assert hub.requests == []


def test_a_card_of_an_earlier_release_declares_the_columns_when_it_is_published(hub: FakeDatasetHub, run: Run) -> None:
    card = Path(run.dataset_file("README.md"))
    written = card.read_text()
    front = yaml.safe_load(written.split("---\n")[1])
    del front["dataset_info"]
    card.write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n" + written.split("---\n", 2)[2])
    publish(run, NAME)
    assert hub.repositories[NAME].files()["README.md"].decode() == written


def test_the_shards_of_a_large_dataset_lie_in_folders(
    hub: FakeDatasetHub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub refuses a folder with more than 10,000 files."""
    monkeypatch.setattr(layout, "MOST_FILES_BESIDE_CARD", 4)
    monkeypatch.setattr(layout, "SHARDS_PER_FOLDER", 2)
    publish(run, NAME)
    files = hub.repositories[NAME].files()
    folders = {name: f"0000{int(name.split('-')[1][:5]) // 2 * 2}" for name in shard_names(run)}
    expected = {f"{first}-0000{int(first) + 1}/{name}" for name, first in folders.items()}
    assert set(files) == expected | VIEW_NAMES
    assert "00000-00001/train-{00000..00001}.tar::00002-00003/train-00002.tar" in files["README.md"].decode()
    assert set(load(hub.write(tmp_path / "clone", NAME))) == urls()
    assert not publish(run, NAME).has_changes


def urls() -> set[str]:
    return {f"http://images.test/{seed}.jpg" for seed in fake_run.SPLITS["images"][: SHARDS * IMAGES]}


def load(folder: Path) -> list[str]:
    """The URLs of all samples that `datasets` reads from a clone."""
    from datasets import load_dataset

    splits = load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))
    samples = [sample.get("json", sample) for split in splits.values() for sample in split]
    for sample in samples:
        seed = int(sample["url"].rsplit("/", 1)[-1].removesuffix(".jpg"))
        assert all(sample[name] in (None, long_text(sample_scene(seed), name)) for name in WRITERS)
    return [sample["url"] for sample in samples]


@pytest.mark.parametrize("images", [True, False])
def test_datasets_reads_a_published_repository_with_the_declared_types(
    hub: FakeDatasetHub, tmp_path: Path, images: bool
) -> None:
    """The first shard has no text by one captioner, from which `datasets` would guess a type that fits no other."""
    from datasets import load_dataset_builder

    fake = fake_run.make(tmp_path / "run", shards=SHARDS, images=IMAGES, validation=0.3)
    rows = [row | {"text": None, "error": "poison"} for row in fake_run.captions_of(fake.run, "llava", 0)]
    fake_run.write_captions(fake.run, "llava", 0, rows)
    write_dataset(fake.run, fake.manifest)
    publish(fake.run, NAME, images=images)
    clone = hub.write(tmp_path / "clone", NAME)
    assert sorted(load(clone)) == sorted(urls())
    features = load_dataset_builder(str(clone)).info.features
    columns = features["json"] if images else features
    assert list(columns) == schema.dataset(WRITERS).names
    assert columns["llava"].dtype == "string" and columns["width"].dtype == "int32"
    assert columns["llava_sub"].feature.dtype == "string"
