"""`search` finds the images that a model holds for the most similar, and never answers from stale features."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.main import app
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training import embed
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.search import search_images
from tests.training.evaluation.tiny_clips import write_clip, write_open_clip
from tests.training.export.tiny_models import write_model
from tests.training.run_fixture import write_run

TEXT = "A red square is left of a blue circle. The ground is green."


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "ours")
    return folder


@pytest.fixture(scope="module")
def model(models):
    return load_embedder(str(models / "ours"), "cpu")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed in range(8):
        render(sample_scene(seed), 96).save(folder / f"{'more/' if seed > 4 else ''}{seed}.jpg", quality=100)
    (folder / "notes.txt").write_text("not an image")
    return folder


def expected(model, images: dict[str, object], count: int) -> list[str]:
    features = model.embed_images(images.values()).numpy()
    similarity = features @ model.embed_texts([TEXT]).features[0].numpy()
    return [list(images)[row] for row in np.argsort(-similarity)[:count]]


def scenes(names: dict[str, int]) -> dict[str, object]:
    return {name: render(sample_scene(seed), 96) for name, seed in names.items()}


@pytest.mark.parametrize("kind", ["ours", "open_clip", "clip"])
def test_every_model_that_eval_loads_finds_its_nearest_images(kind, models, photos, tmp_path):
    name = {
        "ours": lambda: str(models / "ours"),
        "open_clip": lambda: f"open_clip:{write_open_clip(tmp_path / 'open_clip')}",
        "clip": lambda: f"clip:{write_clip(tmp_path / 'clip')}",
    }[kind]()
    model = load_embedder(name, "cpu")
    result = search_images(model, str(photos), TEXT, top=3)
    from PIL import Image

    images = {file.relative_to(photos).as_posix(): Image.open(file) for file in sorted(photos.rglob("*.jpg"))}
    assert [each for each, _ in result.nearest] == expected(model, images, 3)
    assert (result.searched, result.indexed, result.unreadable) == (8, 8, 0)
    again = search_images(model, str(photos), TEXT, top=3)
    assert again.nearest == result.nearest and again.indexed == 0


def test_changed_new_and_removed_images_are_noticed(model, photos):
    first = search_images(model, str(photos), TEXT, top=8)
    best = first.nearest[0][0]
    (photos / best).unlink()
    (photos / "9.png").write_bytes(b"half an image")
    changed = first.nearest[1][0]
    render(sample_scene(20), 96).save(photos / changed)
    result = search_images(model, str(photos), TEXT, top=9)
    assert best not in dict(result.nearest) and dict(result.nearest)[changed] != dict(first.nearest)[changed]
    assert (result.searched, result.indexed, result.unreadable) == (7, 1, 1)
    assert result.unreadable_names == [("9.png", "is not an image, or its format is not supported")]
    assert search_images(model, str(photos), TEXT).unreadable == 1


def test_another_image_tower_gets_features_of_its_own_and_another_text_tower_does_not(model, models, photos, tmp_path):
    search_images(model, str(photos), TEXT)
    shutil.copytree(models / "ours", tmp_path / "other-text")
    write_model(tmp_path / "other-image", image_size=64)
    assert search_images(load_embedder(str(tmp_path / "other-text"), "cpu"), str(photos), TEXT).indexed == 0
    assert search_images(load_embedder(str(tmp_path / "other-image"), "cpu"), str(photos), TEXT).indexed == 8


def test_the_samples_of_a_run_are_searched(model, tmp_path):
    run = write_run(tmp_path / "run", (6, 4))
    result = search_images(model, run, TEXT, top=10)
    names = [f"train-{shard:05d}/{shard:05d}{index:04d}" for shard, count in ((0, 6), (1, 4)) for index in range(count)]
    assert sorted(name for name, _ in result.nearest) == names and result.searched == 10
    seeds = dict(zip(names, list(SPLITS["images"])[:10], strict=True))
    similarity = dict(result.nearest)
    fresh = model.embed_images(scenes(seeds).values()).numpy() @ model.embed_texts([TEXT]).features[0].numpy()
    np.testing.assert_allclose([similarity[name] for name in names], fresh, atol=0.05)  # JPEG


def test_a_file_of_features_is_searched_with_its_own_model_only(model, photos, tmp_path):
    embed.embed_images(model, str(photos), str(tmp_path / "photos.parquet"))
    in_file = search_images(model, str(tmp_path / "photos.parquet"), TEXT, top=8)
    in_folder = search_images(model, str(photos), TEXT, top=8)
    assert [name for name, _ in in_file.nearest] == [name for name, _ in in_folder.nearest]
    other = load_embedder(f"clip:{write_clip(tmp_path / 'clip')}", "cpu")
    with pytest.raises(UserError, match="features of another model"):
        search_images(other, str(tmp_path / "photos.parquet"), TEXT)
    (tmp_path / "texts.txt").write_text("a\n")
    embed.embed_texts(model, str(tmp_path / "texts.txt"), str(tmp_path / "texts.parquet"))
    for name, message in (
        ("texts.parquet", "has no columns name and feature"),
        ("nowhere.parquet", "there is no such file"),
        ("broken.parquet", "is damaged, or no Parquet file"),
    ):
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 broken")
        with pytest.raises(UserError, match=message):
            search_images(model, str(tmp_path / name), TEXT)


def test_a_text_that_is_too_long_is_searched_with_a_warning(model, photos, caplog):
    search_images(model, str(photos), "A red square. " * 100)
    assert "the model reads the first 40" in caplog.text


def test_places_without_images_are_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        with pytest.raises(UserError, match="has no images"):
            search_images(model, str(tmp_path / name), TEXT)
    with pytest.raises(UserError, match="name a folder for its features with --index"):
        search_images(model, "memory://photos", TEXT)


def test_a_killed_search_continues_where_it_was(models, photos, tmp_path):
    """SIGKILL after the first committed batch; what was committed is not computed again."""
    script = """
import sys
from lotlip_data.training import embed
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.search import index, search_images
embed.BATCH_SIZE = 3
add = index.ImageIndex.add
def add_then_wait(self, *batch):
    add(self, *batch)
    print("committed", flush=True)
    sys.stdin.read()
index.ImageIndex.add = add_then_wait
search_images(load_embedder(sys.argv[1], "cpu"), sys.argv[2], "a red square")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(models / "ours"), str(photos)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "committed\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = search_images(load_embedder(str(models / "ours"), "cpu"), str(photos), TEXT)
    assert (result.searched, result.indexed) == (8, 5)


def test_the_command_prints_names_and_similarities(models, photos, tmp_path):
    arguments = ["search", str(photos), "--model", str(models / "ours"), "--top", "2", "--device", "cpu"]
    (photos / "broken.jpg").write_bytes(b"")
    ended = CliRunner().invoke(app, [*arguments, TEXT, "--json"])
    assert ended.exit_code == 0
    figures = json.loads(ended.stdout)
    assert (figures["searched"], figures["indexed"], figures["unreadable"]) == (8, 8, 1)
    assert len(figures["results"]) == 2 and figures["results"][0]["similarity"] >= figures["results"][1]["similarity"]
    (tmp_path / "text.txt").write_text(TEXT)
    for more, given in ((["--text-file", str(tmp_path / "text.txt")], None), (["-"], TEXT)):
        ended = CliRunner().invoke(app, [*arguments, *more], input=given)
        assert ended.exit_code == 0 and figures["results"][0]["name"] in ended.output.splitlines()[0]
        assert "broken.jpg: is not an image" in ended.output
    for more, message in (([], "give either TEXT or --text-file"), (["  "], "the text is empty")):
        ended = CliRunner().invoke(app, [*arguments, *more])
        assert ended.exit_code == 2 and message in ended.output
