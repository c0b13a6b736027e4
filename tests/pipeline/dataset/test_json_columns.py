"""Keys of JSON texts as columns of the dataset: typed, null where a text is no JSON, and known to every reader."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.formats import dataset_index, schema
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.dataset.metadata import Recipe, recipe_changes
from lotlip_data.pipeline.dataset.publish import publish, published
from lotlip_data.pipeline.dataset.recipe import recipe_of
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.pipeline.viewer.samples import open_samples
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun

SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "count": {"type": "integer"},
        "score": {"type": "number"},
        "is_photo": {"type": "boolean"},
    },
}
ENTRY = {"name": "facts", "kind": "vlm", "model": "m", "structured": {"json_schema": SCHEMA}}
KEYS = list(SCHEMA["properties"])
VALUES = {"subject": "Œuvre", "tags": ["x", "y"], "count": 3, "score": 0.5, "is_photo": True}


def make(folder: Path, columns: list[str]) -> FakeRun:
    """A run with a captioner of JSON objects. The second of each shard's texts is cut, the third lacks a key."""
    fake = fake_run.make(folder, shards=2, images=4, writers=["llava"])
    config = CaptionerConfig.from_dict(ENTRY | {"structured": {"json_schema": SCHEMA, "columns": columns}})
    record = artifacts.encode_json({"id": config.id, **config.to_dict()})
    storage.create(fake.run.captioner_settings("facts"), record)
    for shard in range(2):
        whole, cut, partial, last = fake_run.fetched_rows(fake.run, shard)
        text = json.dumps(VALUES, ensure_ascii=False)
        rows = [
            fake_run.caption(whole, text),
            fake_run.caption(cut, text[:20], ["truncated", "invalid_json"]),
            fake_run.caption(partial, '{"subject": "a"}'),
            fake_run.caption(last, text),
        ]
        fake_run.write_captions(fake.run, "facts", shard, rows)
    return fake


def build(fake: FakeRun, recipe: Recipe) -> pa.Table:
    publish(fake.run, fake.manifest, recipe, [fake_run.build(fake.run, recipe, shard) for shard in range(2)])
    files = dataset_index.shard_files(fake.run, dataset_index.read_index(fake.run))
    return pa.concat_tables([pq.read_table(file.parquet_url) for file in files])


def test_keys_are_typed_columns_with_nulls_where_the_text_is_flagged_or_lacks_them(tmp_path: Path) -> None:
    fake = make(tmp_path / "run", KEYS)
    recipe = recipe_of(fake.run, fake.manifest)
    table = build(fake, recipe)
    types = {name: table.schema.field(f"facts_{name}").type for name in KEYS}
    assert list(types.values()) == [pa.string(), pa.list_(pa.string()), pa.int64(), pa.float64(), pa.bool_()]
    rows = [{name: row[f"facts_{name}"] for name in KEYS} for row in sorted(table.to_pylist(), key=lambda r: r["key"])]
    nothing = dict.fromkeys(KEYS)
    assert rows == [VALUES, nothing, nothing | {"subject": "a"}, VALUES] * 2
    assert verify(fake.run) == []
    assert open_samples(fake.run).columns.equals(table.schema)
    content = dataset_index.read_index(fake.run)
    assert content["columns"] == table.column_names and content["json_columns"] == recipe.json_columns
    tar = storage.read_bytes(dataset_index.shard_files(fake.run, content)[0].tar_url)
    assert '"facts_subject": "Œuvre"'.encode() in tar and b'"facts_tags": ["x", "y"]' in tar


def test_hugging_face_datasets_and_croissant_know_the_types(tmp_path: Path) -> None:
    import datasets
    import mlcroissant

    fake = make(tmp_path / "run", KEYS)
    build(fake, recipe_of(fake.run, fake.manifest))
    loaded = datasets.load_dataset(fake.run.shards, split="train", cache_dir=str(tmp_path / "cache"))
    values = sorted((row["facts_subject"] or "", row["facts_score"]) for row in loaded["json"])
    assert values == [("", None)] * 2 + [("a", None)] * 2 + [("Œuvre", 0.5)] * 4
    features = loaded.features["json"]
    assert [str(features[f"facts_{name}"].dtype) for name in ("count", "score", "is_photo")] == [
        "int64",
        "float64",
        "bool",
    ]
    mlcroissant.Dataset(jsonld=json.loads(storage.read_bytes(fake.run.dataset_file("croissant.json"))))


def test_columns_of_the_manifest_count_without_new_texts_while_the_form_is_the_same(tmp_path: Path) -> None:
    fake = make(tmp_path / "run", [])
    before = recipe_of(fake.run, fake.manifest)
    assert before.json_columns == {} and "facts_subject" not in build(fake, before).column_names

    def with_columns(**structured: Any) -> Manifest:
        entry = ENTRY | {"structured": structured}
        return Manifest.parse(fake.manifest.model_dump(mode="json") | {"captioners": [entry]})

    after = recipe_of(fake.run, with_columns(json_schema=SCHEMA, columns=["subject"]))
    assert after.json_columns == {"facts": {"subject": "string"}} and after.id != before.id
    earlier = published(fake.run)
    assert earlier is not None
    assert recipe_changes(earlier, after) == ["json_columns was {}, is {'facts': {'subject': 'string'}}"]
    table = build(fake, after)
    assert table["facts_subject"].null_count == 2 and verify(fake.run) == []
    other = SCHEMA | {"required": ["subject"]}
    assert recipe_of(fake.run, with_columns(json_schema=other, columns=["tags"])).json_columns == {}


def test_a_column_whose_name_is_taken_is_refused_and_datasets_without_such_columns_keep_their_recipe(
    tmp_path: Path,
) -> None:
    fake = make(tmp_path / "run", ["subject"])
    fake_run.claim_captioner(fake.run, "facts_subject")
    with pytest.raises(ValueError, match="captioner 'facts_subject': the dataset has a column 'facts_subject' already"):
        recipe_of(fake.run, fake.manifest, ["facts", "facts_subject"])
    plain = recipe_of(fake.run, fake.manifest, ["llava"])
    assert "json_columns" not in plain.to_dict()
    assert schema.dataset(["llava"]).equals(plain.columns)
