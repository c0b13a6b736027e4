"""The dataset describes itself in the forms that other tools read: the card, Croissant and the dataset format page."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lotlip_data.manifests.formats import dataset_index, schema
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import dataset_card, metadata
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import sample_scene
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import ROOT

FORMAT_PAGE = ROOT / "docs" / "reference" / "dataset-format.md"


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, Manifest, metadata.Recipe, list[dataset_index.ShardRecord]]:
    """A published dataset: its run and manifest, and what it was published from."""
    folder = tmp_path_factory.mktemp("a run")
    fake = fake_run.make(folder, images=20, validation=0.3, clean={"max_words": 6})
    recipe = metadata.Recipe({name: f"{name}@1" for name in WRITERS}, Filters.of(fake.manifest))
    records = [fake_run.build(fake.run, recipe, number) for number in range(2)]
    manifest = with_licence(fake.manifest, "CC0,\nthe texts | too", "https://web.example/lists")
    publish(fake.run, manifest, recipe, records)
    return fake.run, manifest, recipe, records


def with_licence(manifest: Manifest, licence: str | None, homepage: str | None) -> Manifest:
    """The manifest with a licence and a homepage for its source."""
    (source,) = manifest.sources
    return manifest.model_copy(
        update={"sources": (source.model_copy(update={"licence": licence, "homepage": homepage}),)}
    )


@pytest.fixture
def run(published: tuple[Run, Manifest, metadata.Recipe, list[dataset_index.ShardRecord]]) -> Run:
    return published[0]


def test_mlcroissant_validates_the_metadata_and_reads_every_record(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    import mlcroissant

    loaded = mlcroissant.Dataset(jsonld=f"{run.shards}/croissant.json")
    assert loaded.metadata.ctx.issues.errors == set()
    assert loaded.metadata.license == ["web: CC0,\nthe texts | too"]
    croissant = json.loads(Path(run.shards, "croissant.json").read_text())
    assert croissant["isBasedOn"] == ["https://web.example/lists"]
    content = dataset_index.read_index(run)
    assert [records.name for records in loaded.metadata.record_sets] == ["train", "validation"]
    for split in dataset_index.SPLITS:
        rows = list(loaded.records(split))
        assert len(rows) == content["splits"][split]["samples"] > 0
        for row in rows:
            seed = int(re.findall(r"(\d+)\.jpg", row[f"{split}/url"].decode())[0])
            assert row[f"{split}/llava"].decode() == long_text(sample_scene(seed), "llava")


def test_datasets_reads_the_folder_by_its_card(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(run.shards, cache_dir=str(tmp_path))
    splits = dataset_index.read_index(run)["splits"]
    assert {split: len(loaded[split]) for split in loaded} == {split: splits[split]["samples"] for split in splits}
    urls = {row["json"]["url"] for split in loaded for row in loaded[split]}
    assert len(urls) == dataset_index.read_index(run)["samples"]


def test_the_hub_accepts_the_cards_front_matter(run: Run) -> None:
    from huggingface_hub import DatasetCard

    text = Path(run.shards, "README.md").read_text()
    loaded = DatasetCard(text)
    assert loaded.data.pretty_name == "fake" and loaded.data.size_categories == ["n<1K"]
    assert (loaded.data.license, loaded.data["license_name"]) == ("other", "by-source")
    assert "| web | CC0, the texts \\| too | https://web.example/lists |" in text
    front = yaml.safe_load(text.split("---")[1])
    (config,) = front["configs"]
    assert [files["split"] for files in config["data_files"]] == ["train", "validation"]
    assert "`train-{00000..00001}.tar`" in text and "too_many_words" in text


def test_additions_to_a_card_stay_and_damaged_metadata_is_written_again(
    published: tuple[Run, Manifest, metadata.Recipe, list[dataset_index.ShardRecord]],
) -> None:
    run = published[0]
    readme, croissant = (Path(run.shards, name) for name in ("README.md", "croissant.json"))
    edited = readme.read_text() + "\nLicence: ours.\n"
    readme.write_text(edited)
    assert verify(run) == [] and not publish(*published)
    assert readme.read_text() == edited
    text = croissant.read_text()
    croissant.write_text(text.replace("train-00000", "train-00007"))
    (problem,) = verify(run)
    assert problem.where == str(croissant) and "not of the dataset" in problem.what
    assert publish(*published) and croissant.read_text() == text and verify(run) == []


def test_a_card_of_an_earlier_release_gets_the_declaration_of_the_columns_and_keeps_additions(
    published: tuple[Run, Manifest, metadata.Recipe, list[dataset_index.ShardRecord]],
) -> None:
    readme = Path(published[0].shards, "README.md")
    current = readme.read_text()
    front = yaml.safe_load(current.split("---\n")[1])
    del front["dataset_info"]
    body = current.split("---\n", 2)[2] + "\nAn addition.\n"
    readme.write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{body}")
    assert verify(published[0]) == []
    publish(*published)
    assert readme.read_text() == current + "\nAn addition.\n"
    readme.write_text(current)


def test_what_people_added_stays_however_their_editor_saved_the_card(
    published: tuple[Run, Manifest, metadata.Recipe, list[dataset_index.ShardRecord]],
) -> None:
    readme = Path(published[0].shards, "README.md")
    current = readme.read_bytes()
    edited = current + b"\nAn addition.\n"
    try:
        for content in (edited.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + edited, edited + b"caf\xe9\n"):
            readme.write_bytes(content)
            assert not publish(*published)
            assert readme.read_bytes() == content
        body = edited.split(b"---\n", 2)[2]
        readme.write_bytes(body)  # the front matter is made again
        publish(*published)
        assert readme.read_bytes().endswith(body) and b"\ndataset_info:" in readme.read_bytes()
    finally:
        readme.write_bytes(current)


def test_a_licence_that_is_added_later_changes_the_card_and_the_metadata(
    published: tuple[Run, Manifest, metadata.Recipe, list[dataset_index.ShardRecord]],
) -> None:
    import mlcroissant

    run, manifest, recipe, records = published
    try:
        assert publish(run, with_licence(manifest, None, None), recipe, records)
        text = Path(run.shards, "README.md").read_text()
        assert "license: unknown" in text and "| web | not stated | not stated |" in text and verify(run) == []
        loaded = mlcroissant.Dataset(jsonld=f"{run.shards}/croissant.json")
        assert loaded.metadata.ctx.issues.errors == set() and not loaded.metadata.license
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
    scores = [
        (column.name, str(column.type).replace("element: ", "").replace("item: ", ""), column.meaning)
        for scorers in (("<captioner>", "texts"), ("", "images"))
        for column in schema.score_columns(filter(None, scorers[:1]), {"<scorer>": scorers[1]})
    ]
    assert rows[len(columns)][0] == "<captioner>_<key>"
    assert rows[len(columns) + 1 :][: len(scores)] == scores
    assert [row[0] for row in rows[len(columns) + 1 + len(scores) :]] == schema.DROPPED.names
    content = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    assert content.keys() >= {"schema_version", "shards", "validation", "inputs", "replaced"}


def test_the_format_page_describes_the_keys_of_dataset_json(run: Run) -> None:
    text = FORMAT_PAGE.read_text()
    example = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    content = dataset_index.read_index(run)
    assert list(example) == list(content)
    for name in ("shards", "validation", "inputs"):
        assert example[name][0].keys() == content[name][0].keys()
