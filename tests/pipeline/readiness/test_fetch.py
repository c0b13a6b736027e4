"""`fetch-models` brings every model of a manifest to the machine, and later starts ask no hub."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.engines.adapters import adapter_folder
from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.fetched import fetched_folder
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core.checks import check_captioner
from lotlip_data.pipeline.core.findings import Level
from lotlip_data.pipeline.core.ledger import captioned_shards
from lotlip_data.pipeline.readiness import fetch
from lotlip_data.pipeline.readiness.fetch import Need, files_to_download, pinned
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from tests.captioners.convert import tiny_sharegpt4v
from tests.pipeline import run_fixture
from tests.support.fake_hub import FakeHub, fake_hub

MODEL, COMMIT, NEXT_COMMIT = "someone/llava", "a" * 40, "b" * 40


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one LLaVA, and an empty cache."""
    folder = tmp_path / "model"
    shutil.copytree(resolve("tiny-llava"), folder)
    (folder / "pytorch_model.bin").write_bytes(b"another format")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"another format")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with fake_hub() as running:
        running.models[MODEL] = (COMMIT, folder)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


def write_manifest(folder: Path, model: str = MODEL, revision: str = "null") -> str:
    (folder / "m.yaml").write_text(
        "name: m\nsources: [{name: web, files: list.csv}]\n"
        f"captioners: [{{name: mine, kind: llava, model: {model}, revision: {revision}}}]\n"
        "train: [{method: lotlip, preset: demo}]\n"
    )
    return str(folder / "m.yaml")


def test_a_model_is_downloaded_once_and_then_found_without_the_hub(served: FakeHub, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    ended = CliRunner().invoke(app, ["fetch-models", manifest, "--json"])
    assert ended.exit_code == 0, ended.output
    (mine, *towers) = json.loads(ended.stdout)["here"]
    assert (mine["commit"], mine["downloaded"]) == (COMMIT, True)
    assert mine["notes"] == [f"to use this commit in every run, set `revision: {COMMIT}`"]
    assert {tower["model"] for tower in towers} == {"tiny-vit", "tiny-bert"}
    folder = Path(mine["folder"])
    assert (folder / "model.safetensors").exists() and not (folder / "pytorch_model.bin").exists()

    served.models[MODEL] = (NEXT_COMMIT, served.models[MODEL][1])
    served.requests.clear()
    again = CliRunner().invoke(app, ["fetch-models", manifest])
    assert again.exit_code == 0 and f"at commit {COMMIT} is here" in again.output
    assert hub.find_model(MODEL) == hub.find_model(MODEL, COMMIT) == folder
    assert hub.find_commit(MODEL) == COMMIT
    assert check_captioner(CaptionerConfig(name="mine", kind="llava", model=MODEL)).level is Level.OK
    assert served.requests == []


def test_another_revision_is_another_download(served: FakeHub, tmp_path: Path) -> None:
    fetch.fetch(Need("x", MODEL))
    assert fetched_folder(MODEL, NEXT_COMMIT) is None and fetched_folder(MODEL, "v2") is None
    served.models[MODEL] = (NEXT_COMMIT, served.models[MODEL][1])
    assert fetch.fetch(Need("x", MODEL, "v2")).commit == NEXT_COMMIT
    assert fetch.fetch(Need("x", MODEL)).commit == COMMIT


def test_a_checked_model_is_not_taken_for_a_downloaded_one(served: FakeHub) -> None:
    assert check_captioner(CaptionerConfig(name="mine", kind="llava", model=MODEL)).level is Level.OK
    assert hub.find_model(MODEL) is None  # only its config.json is in the cache


def test_nodes_get_the_commit_that_the_driver_saw(served: FakeHub) -> None:
    (need,) = pinned([Need("x", MODEL)])
    assert need.commit == COMMIT
    served.models[MODEL] = (NEXT_COMMIT, served.models[MODEL][1])
    assert fetch.fetch(need).commit == COMMIT
    assert fetched_folder(MODEL) == fetched_folder(MODEL, COMMIT) is not None


def test_what_cannot_be_had_is_one_line_and_costs_no_other_model(served: FakeHub, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["fetch-models", write_manifest(tmp_path, "someone/typo")])
    assert ended.exit_code == 1
    assert "captioner 'mine': someone/typo: the hub has no such model" in ended.output
    assert "tiny-vit is here" in ended.output


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("FOLDER/empty", "has no config.json, so it is not a model; give the folder that has it"),
        ("FOLDER/empty/file", "is a file, and a model is a folder; give the folder that has config.json"),
        (
            "s3://bucket/model",
            "is a URL, and an engine reads a model from the hub or from a folder; copy it to a folder",
        ),
        ("FOLDER/none", "there is no such folder; correct the path"),
    ],
)
def test_what_is_no_folder_of_a_model_is_an_error_with_the_fix(model: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    model = model.replace("FOLDER", str(tmp_path))
    ended = CliRunner().invoke(app, ["fetch-models", write_manifest(tmp_path, model)])
    assert ended.exit_code == 1 and f"captioner 'mine': {model}: {reason}" in ended.output


def test_weights_come_in_one_format() -> None:
    published = ["config.json", "model-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.h5"]
    extra = ["onnx/model.onnx", "qformer_tokenizer/vocab.txt", "tokenizer.model", "original/params.json"]
    assert files_to_download([*published, *extra]) == [
        *("config.json", "model-1.safetensors", "model.safetensors.index.json"),
        *("qformer_tokenizer/vocab.txt", "tokenizer.model"),
    ]
    assert files_to_download(["pytorch_model.bin", "config.json"]) == ["config.json", "pytorch_model.bin"]


def test_code_of_a_model_comes_only_where_the_captioner_trusts_it() -> None:
    names = ["config.json", "model.safetensors", "modeling_mine.py"]
    assert files_to_download(names) == names[:2]
    assert files_to_download(names, with_code=True) == names


def test_an_adapter_is_downloaded_too_and_then_found_without_the_hub(served: FakeHub, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    served.models["someone/adapter"] = (NEXT_COMMIT, adapter)
    (tmp_path / "m.yaml").write_text(
        "name: m\nsources: [{name: web, files: list.csv}]\n"
        f"captioners: [{{name: mine, kind: vlm, model: {MODEL}, lora: someone/adapter}}]\n"
        "train: [{method: lotlip, preset: demo}]\n"
    )
    ended = CliRunner().invoke(app, ["fetch-models", str(tmp_path / "m.yaml")])
    assert ended.exit_code == 0, ended.output
    assert f"adapter of captioner 'mine': someone/adapter at commit {NEXT_COMMIT} downloaded" in ended.output
    served.requests.clear()
    config = CaptionerConfig(name="mine", kind="vlm", model=MODEL, lora="someone/adapter")
    assert Path(adapter_folder(config)).name == NEXT_COMMIT
    assert check_captioner(config).level is Level.OK
    assert served.requests == []


def test_an_adapter_that_the_hub_lacks_is_named_before_an_engine_starts(served: FakeHub) -> None:
    check = check_captioner(CaptionerConfig(name="mine", kind="vlm", model=MODEL, lora="someone/typo"))
    assert check.level is Level.ERROR and "someone/typo: the hub has no such model" in str(check)


def test_every_node_gets_the_models(ray_cluster: None, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["fetch-models", write_manifest(tmp_path, "tiny-llava"), "--ray", "--json"])
    assert ended.exit_code == 0, ended.output
    (models,) = json.loads(ended.stdout).values()
    assert [model["model"] for model in models] == ["tiny-llava", "tiny-vit", "tiny-bert"]


@pytest.mark.slow
def test_a_run_uses_the_fetched_commit_and_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = run_fixture.make(tmp_path / "run", shards=1, writers=[])
    entry = {"name": "mine", "kind": "llava", "model": MODEL}
    content = yaml.safe_load(storage.read_bytes(fake.run.manifest)) | {"captioners": [entry]}
    storage.replace(fake.run.manifest, yaml.safe_dump(content).encode())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> None:
        command = [sys.executable, "-m", "lotlip_data.pipeline.cli", *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.models[MODEL] = (COMMIT, Path(resolve("tiny-llava")))
        call("fetch-models", write_manifest(tmp_path))
        running.models[MODEL] = (NEXT_COMMIT, running.models[MODEL][1])
        running.requests.clear()
        call("recaption", fake.run.url, "--engine", "transformers")
        assert running.requests == []
    assert json.loads(storage.read_bytes(fake.run.model_revision("mine")))["revision"] == COMMIT
    assert captioned_shards(fake.run, "mine")


def needs(folder: Path, **entry: Any) -> Need:
    """What one captioner needs, with a cache of its own in `folder`."""
    pool = {"engine": entry.pop("engine", "auto"), "engine_options": {"cache_dir": str(folder / "cache")}}
    (job,) = resolve_captioners([{**entry, "pool": pool}])
    return Need("captioner", job.config.model, None, job)


def test_the_published_layout_of_sharegpt4v_is_converted_and_the_model_to_set_is_named(tmp_path: Path) -> None:
    published = tiny_sharegpt4v.write(tmp_path / "published")
    fetched = fetch.fetch(needs(tmp_path, preset="sharegpt4v", model=str(published)))
    (converted,) = (tmp_path / "cache" / "converted").iterdir()
    assert fetched.notes == (f"converted; set `model: {converted}` of this captioner",)
    assert check_captioner(CaptionerConfig(name="x", kind="sharegpt4v", model=str(converted))).level is Level.OK


def test_the_language_model_of_instructblip_is_exported_where_vllm_runs_it(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    assert fetch.fetch(needs(tmp_path, preset="tiny-instructblip", engine="transformers")).notes == ()
    fetched = fetch.fetch(needs(tmp_path, preset="tiny-instructblip", engine="vllm"))
    (exported,) = (tmp_path / "cache" / "language_models").iterdir()
    assert fetched.notes == (f"its language model is exported for vLLM: {exported}",)
