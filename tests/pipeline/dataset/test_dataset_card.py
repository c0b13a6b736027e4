"""The dataset tells of itself in the forms that other tools read: card, Croissant, and the schema's description."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lotlip_data.manifests import dataset_index, schema
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import dataset_card
from lotlip_data.pipeline.dataset import metadata as dataset
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import sample_scene
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import ROOT

FORMAT_PAGE = ROOT / "docs" / "reference" / "dataset-format.md"


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, Manifest, dataset.Recipe, list[dataset_index.ShardRecord]]:
    """What a dataset is published from."""
    folder = tmp_path_factory.mktemp("a run")
    fake = fake_run.make(folder, images=20, validation=0.3, clean={"max_words": 6})
    recipe = dataset.Recipe({name: f"{name}@1" for name in WRITERS}, Filters.of(fake.manifest))
    records = [fake_run.build(fake.run, recipe, number) for number in range(2)]
    manifest = told(fake.manifest, "CC0,\nthe texts | too", "https://web.example/lists")
    publish(fake.run, manifest, recipe, records)
    return fake.run, manifest, recipe, records


def told(manifest: Manifest, licence: str | None, homepage: str | None) -> Manifest:
    """The manifest with a licence and a homepage of its source."""
    (source,) = manifest.sources
    return manifest.model_copy(
        update={"sources": (source.model_copy(update={"licence": licence, "homepage": homepage}),)}
    )


@pytest.fixture
def run(whole: tuple[Run, Manifest, dataset.Recipe, list[dataset_index.ShardRecord]]) -> Run:
    return whole[0]


def test_mlcroissant_validates_the_metadata_and_reads_every_record(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    import mlcroissant

    found = mlcroissant.Dataset(jsonld=f"{run.shards}/croissant.json")
    assert found.metadata.ctx.issues.errors == set()
    assert found.metadata.license == ["web: CC0,\nthe texts | too"]
    metadata = json.loads(Path(run.shards, "croissant.json").read_text())
    assert metadata["isBasedOn"] == ["https://web.example/lists"]
    described = dataset_index.read_index(run)
    assert [records.name for records in found.metadata.record_sets] == ["train", "validation"]
    for split in dataset_index.SPLITS:
        rows = list(found.records(split))
        assert len(rows) == described["splits"][split]["samples"] > 0
        for row in rows:
            seed = int(re.findall(r"(\d+)\.jpg", row[f"{split}/url"].decode())[0])
            assert row[f"{split}/llava"].decode() == long_text(sample_scene(seed), "llava")


def test_datasets_reads_the_folder_by_its_card(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    found = datasets.load_dataset(run.shards, cache_dir=str(tmp_path))
    splits = dataset_index.read_index(run)["splits"]
    assert {split: len(found[split]) for split in found} == {split: splits[split]["samples"] for split in splits}
    urls = {row["json"]["url"] for split in found for row in found[split]}
    assert len(urls) == dataset_index.read_index(run)["samples"]


def test_the_hub_accepts_the_cards_front_matter(run: Run) -> None:
    from huggingface_hub import DatasetCard

    text = Path(run.shards, "README.md").read_text()
    found = DatasetCard(text)
    assert found.data.pretty_name == "fake" and found.data.size_categories == ["n<1K"]
    assert (found.data.license, found.data["license_name"]) == ("other", "by-source")
    assert "| web | CC0, the texts \\| too | https://web.example/lists |" in text
    front = yaml.safe_load(text.split("---")[1])
    (config,) = front["configs"]
    assert [files["split"] for files in config["data_files"]] == ["train", "validation"]
    assert "`train-{00000..00001}.tar`" in text and "too_many_words" in text


def test_what_people_add_to_a_card_stays_and_damaged_metadata_is_mended(
    whole: tuple[Run, Manifest, dataset.Recipe, list[dataset_index.ShardRecord]],
) -> None:
    run = whole[0]
    readme, metadata = (Path(run.shards, name) for name in ("README.md", "croissant.json"))
    mine = readme.read_text() + "\nLicence: ours.\n"
    readme.write_text(mine)
    assert verify(run) == [] and not publish(*whole)
    assert readme.read_text() == mine
    text = metadata.read_text()
    metadata.write_text(text.replace("train-00000", "train-00007"))
    (problem,) = verify(run)
    assert problem.where == str(metadata) and "not of the dataset" in problem.what
    assert publish(*whole) and metadata.read_text() == text and verify(run) == []


def test_a_licence_that_is_told_later_changes_the_card_and_the_metadata(
    whole: tuple[Run, Manifest, dataset.Recipe, list[dataset_index.ShardRecord]],
) -> None:
    import mlcroissant

    run, manifest, recipe, records = whole
    try:
        assert publish(run, told(manifest, None, None), recipe, records)
        text = Path(run.shards, "README.md").read_text()
        assert "license: unknown" in text and "| web | not stated | not stated |" in text and verify(run) == []
        found = mlcroissant.Dataset(jsonld=f"{run.shards}/croissant.json")
        assert found.metadata.ctx.issues.errors == set() and not found.metadata.license
    finally:
        assert publish(run, manifest, recipe, records)
    assert "license: other" in Path(run.shards, "README.md").read_text() and verify(run) == []


@pytest.mark.parametrize(
    "names, pattern",
    [
        (["train-00000.tar"], "train-00000.tar"),
        ([f"train-{n:05d}.tar" for n in (0, 1, 2, 4)], "train-{00000..00002}.tar::train-00004.tar"),
        ([f"train-{n:05d}-ab12cd.tar" for n in range(11)], "train-{00000..00010}-ab12cd.tar"),
        (
            [f"train-0000{n}-{piece:02d}.tar" for n in (0, 1) for piece in (0, 1)],
            "train-{00000..00001}-00.tar::train-{00000..00001}-01.tar",
        ),
    ],
)
def test_the_pattern_for_webdataset_names_exactly_the_tars(names: list[str], pattern: str) -> None:
    from braceexpand import braceexpand

    assert dataset_card.braces(names) == pattern
    assert sorted(name for part in pattern.split("::") for name in braceexpand(part)) == sorted(names)


def test_the_format_page_describes_the_schema() -> None:
    text = FORMAT_PAGE.read_text()
    assert f"Schema version {schema.SCHEMA_VERSION}" in text
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| ?([^|]*?) ?\|$", text, re.MULTILINE)
    columns = schema.dataset(["<captioner>"])
    types = [str(column.type).replace("element: ", "").replace("item: ", "") for column in columns]
    meanings = [schema.meaning(name) for name in columns.names]
    assert rows[: len(columns)] == list(zip(columns.names, types, meanings, strict=True))
    assert [row[0] for row in rows[len(columns) :]] == schema.DROPPED.names
    described = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    assert described.keys() >= {"schema_version", "shards", "validation", "inputs", "replaced"}


def test_the_format_page_describes_the_keys_of_dataset_json(run: Run) -> None:
    text = FORMAT_PAGE.read_text()
    example = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    described = dataset_index.read_index(run)
    assert list(example) == list(described)
    for name in ("shards", "validation", "inputs"):
        assert example[name][0].keys() == described[name][0].keys()
