"""The JSON schema of a manifest accepts the manifests that lotlip-data accepts, and finds typos in an editor."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from lotlip_data.manifests.json_schema import DIALECT, manifest_schema
from lotlip_data.manifests.manifest import dump, parse
from lotlip_data.pipeline.cli.main import app
from tests.support.paths import ROOT

START = {"name": "x", "sources": [{"name": "a", "files": "a.csv"}]}
SCHEMA = manifest_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def _manifests_in(path: Path) -> list[dict[str, Any]]:
    """The manifests of a YAML file or of a page's YAML blocks, and its parts of manifests, each made whole."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```ya?ml\n(.*?)^```", text, re.M | re.S) if path.suffix == ".md" else [text]
    contents = [yaml.safe_load(block) for block in blocks]
    whole = [content for content in contents if isinstance(content, dict) and set(content) <= set(SCHEMA["properties"])]
    return [({"name": "x"} if {"sources", "scale"} & set(content) else START) | content for content in whole]


SHIPPED = [
    pytest.param(content, id=f"{path.relative_to(ROOT)}:{number}")
    for path in sorted([*ROOT.glob("examples/*.yaml"), ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
    for number, content in enumerate(_manifests_in(path))
]


def problems(content: dict[str, Any]) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(content)]


def test_the_command_prints_a_valid_schema_of_the_draft_it_names() -> None:
    answer = CliRunner().invoke(app, ["manifest-schema"])
    assert answer.exit_code == 0 and json.loads(answer.stdout) == SCHEMA
    assert SCHEMA["$schema"] == DIALECT == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMA)


def test_manifests_are_found_among_the_examples_and_in_the_docs() -> None:
    names = {str(case.id).partition(":")[0] for case in SHIPPED}
    assert {"examples/8x80gb.yaml", "examples/endpoint.yaml", "docs/guides/editor.md"} <= names


@pytest.mark.parametrize("content", SHIPPED)
def test_every_shipped_manifest_is_valid(content: dict[str, Any]) -> None:
    assert problems(content) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.name)
def test_a_manifest_as_a_run_keeps_it_is_valid_too(path: Path) -> None:
    for content in _manifests_in(path):
        assert problems(yaml.safe_load(dump(parse(yaml.safe_dump(content), path.name)))) == []


@pytest.mark.parametrize(
    "section",
    [
        {"sources": [{"use": "cc3m", "files": "a.tsv"}]},
        {"sources": [{"name": "a", "files": ["a.csv", "b.csv"], "hash": {"md5_of_image": "md5"}, "filter": None}]},
        {"captioners": []},
        {"captioners": ["llava", {"name": "b", "kind": "of-another-package", "model": "m"}]},
        {"captioners": [{"preset": "llava", "pool": None, "temperature": 1}]},
        {"train": [{"long_texts": "all", "betas": [0.9, 0.95], "ray": {"workers": 4}}]},
        {"evaluate": ["synthetic", {"task": "dci", "data": "/d"}]},
        {"evaluate": ["world"]},
    ],
)
def test_what_the_code_accepts_the_schema_accepts(section: dict[str, Any]) -> None:
    parse(yaml.safe_dump(START | section), "m")
    assert problems(START | section) == []


def test_a_scale_with_its_files_stands_for_sources() -> None:
    manifest = {"name": "x", "scale": "30M", "files": {"cc3m": "a.tsv", "cc12m": ["b.tsv"]}}
    manifest["files"] |= {"yfcc15m": {"files": "c.csv", "url": "downloadurl", "text": "title"}}
    parse(yaml.safe_dump(manifest), "m")
    assert problems(manifest) == []
    assert problems(manifest | {"sources": START["sources"]}) and problems({"name": "x", "scale": "30M"})


@pytest.mark.parametrize(
    "content",
    [
        {"name": "x"},
        {"name": "My Images", "sources": START["sources"]},
        START | {"sede": 1},
        START | {"sources": [{"files": "a.csv"}]},
        START | {"sources": [{"use": "cc2m", "files": "a.csv"}]},
        START | {"download": {"quality": 101}},
        START | {"captioners": ["lava"]},
        START | {"captioners": [{"kind": "openai"}]},
        START | {"captioners": [{"preset": "llava", "pool": {"max_actor": 1}}]},
        START | {"train": [{"method": "lotlp"}]},
        START | {"train": [{"batchsize": 8}]},
        START | {"evaluate": ["dcii"]},
    ],
)
def test_what_the_code_refuses_an_editor_marks(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse(yaml.safe_dump(content), "m")
    assert problems(content)


def test_every_setting_has_a_title_and_a_description() -> None:
    for name, definition in [("Manifest", SCHEMA), *SCHEMA["$defs"].items()]:
        mapping = next((option for option in definition.get("anyOf", ()) if "properties" in option), definition)
        lacking = [key for key, value in mapping["properties"].items() if not value.get("description")]
        assert (name, lacking) == (name, [])
        assert mapping["title"] and mapping["description"]
