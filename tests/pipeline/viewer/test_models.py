"""Searching by a text ranks as the models themselves do, as far as it has come; maps are drawn for every model."""

import html
import io
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import DecompressionBombError
from starlette.testclient import TestClient

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer import models as view_models
from lotlip_data.pipeline.viewer.app import View, create_app
from lotlip_data.pipeline.viewer.models import SIDE, Models, names_of, overlay
from lotlip_data.pipeline.viewer.samples import Samples, open_samples
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.pipeline.viewer import dataset_fixture as view_run
from tests.training.run_fixture import write_towers

TEXT = "A large red circle is at the top left."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models of equal image towers, and different text towers."""
    folder = tmp_path_factory.mktemp("train")
    towers = write_towers(folder / "towers")
    urls = [str(folder / name / "model") for name in ("lit", "lotlip")]
    for seed, url in enumerate(urls):
        torch.manual_seed(seed)
        load_model(make_config(**towers, context_length=24)).save(url)
    return urls


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three shards of 20 scenes."""
    return view_run.make(tmp_path / "run", samples=20, picture=lambda number: render(sample_scene(number), 96))


@pytest.fixture
def samples(run: Run) -> Samples:
    return open_samples(run)


def expected(checkpoint: str) -> list[tuple[int, float]]:
    """The numbers of all scenes, the most alike first, with their similarities; by the model alone."""
    model = LoTLIP.load(checkpoint)
    images = [Image.open(io.BytesIO(view_run.jpeg(render(sample_scene(number), 96)))) for number in range(60)]
    scores = (model.embed_images(images) @ model.embed_texts([TEXT]).T).squeeze(1).numpy()
    return [(int(number), float(scores[number])) for number in np.argsort(-scores)]


def computed(run: Run, checkpoints: list[str]) -> Models:
    models = Models(checkpoints)
    for one in models.features(run, open_samples(run)):
        one.compute()
        while one.computing:
            time.sleep(0.01)
        assert one.failed == [] and one.missing() == []
    return models


def test_the_ranking_is_the_models_own(run: Run, samples: Samples, checkpoints: list[str]) -> None:
    models = computed(run, checkpoints)
    first, second = models.features(run, samples)
    assert first is second  # equal image towers share their features
    for model, url in zip(models.all, checkpoints, strict=True):
        found, wanted = model.rank(TEXT, first, 60.0), expected(url)[: view_models.BEST]
        assert (found.searched, found.ready, found.shards, found.cut) == (3, 3, 3, False)
        assert [score for score, _ in found.best] == pytest.approx([score for _, score in wanted], abs=2e-3)
        scores = dict(expected(url))
        for score, (shard, row) in found.best:  # of float16 features: neighbours may change places
            assert score == pytest.approx(scores[shard * 20 + row], abs=2e-3)


def test_a_search_without_time_goes_on_where_it_was(run: Run, samples: Samples, checkpoints: list[str]) -> None:
    models = computed(run, checkpoints[:1])
    (features,) = models.features(run, samples)
    parts = [models.all[0].rank(TEXT, features, 0) for _ in range(4)]
    assert [part.searched for part in parts] == [1, 2, 3, 3]
    whole = Models(checkpoints[:1]).all[0].rank(TEXT, features, 60.0)
    assert parts[-1].best == whole.best
    assert {place.file for _, place in parts[0].best} == {0}


def asks_again(page: str) -> bool:
    return 'http-equiv="refresh"' in page


def test_what_has_not_looked_everywhere_goes_on_in_a_frame(run: Run, checkpoints: list[str]) -> None:
    web = TestClient(create_app(View(run, computed(run, checkpoints), seconds=0)), base_url="http://localhost")
    page = web.get("/search", params={"text": TEXT}).text
    (frame,) = re.findall(r'<iframe src="([^"]+)"', page)
    assert page.count("2 are left") == 2 and not asks_again(page)  # or what one types would be lost
    frames = [web.get(html.unescape(frame)) for _ in range(3)]
    assert [asks_again(one.text) for one in frames] == [True, False, False]
    assert "lotlip has searched 2 of 3 shards" in frames[0].text and "look again" in frames[1].text
    assert "<iframe" not in web.get("/search", params={"text": TEXT}).text
    policies = [one.headers["content-security-policy"] for one in (web.get("/search"), frames[0])]
    assert [policy.partition("frame-ancestors ")[2] for policy in policies] == ["'none'", "'self'"]


def test_without_features_the_page_offers_to_compute_them(run: Run, checkpoints: list[str]) -> None:
    models = Models(checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    page = web.get("/search", params={"text": TEXT}).text
    assert "3 of 3 shards have no image features yet" in page and "<figure>" not in page
    answer = web.post(
        "/features", params={"text": TEXT}, headers={"origin": "http://localhost"}, follow_redirects=False
    )
    assert answer.status_code == 303 and answer.headers["location"].startswith("/search?text=A+large")
    while models.features(run, open_samples(run))[0].computing:
        time.sleep(0.01)
    page = web.get("/search", params={"text": TEXT}).text
    assert page.count("<figure>") == 2 * view_models.BEST and "no image features" not in page
    assert "<iframe" not in page
    number, score = expected(checkpoints[0])[0]
    assert f"<b>{score:.3f}</b>"[:8] in page and f'href="/sample/{number // 20}/{number % 20}"' in page


def test_a_shard_that_cannot_be_computed_or_read_is_told(run: Run, samples: Samples, checkpoints: list[str]) -> None:
    Path(samples.files[1].tar).write_bytes(b"no tar")
    models = Models(checkpoints[:1])
    (features,) = models.features(run, samples)
    features.compute()
    while features.computing:
        time.sleep(0.01)
    assert len(features.failed) == 1 and "train-00001.tar" in features.failed[0] and features.missing() == [1]
    name = storage.list_names(features.folder)[0]
    storage.replace(storage.join(features.folder, name), b"no features")
    found = models.all[0].rank(TEXT, features, 60.0)
    assert len(found.damaged) == 1 and name in found.damaged[0] and len({at.file for _, at in found.best}) == 1


@pytest.mark.parametrize(
    ("error", "told", "calls"),
    [(DecompressionBombError("too large"), "train-00002.tar: too large", 3), (RuntimeError("no memory"), "ended", 1)],
)
def test_why_features_are_missing_is_told_whatever_happened(
    run: Run, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, calls: int
) -> None:
    called: list[int] = []

    def fail(cache: FeatureCache, index: int) -> None:
        called.append(index)
        raise error

    monkeypatch.setattr(FeatureCache, "compute", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    models = Models(checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    assert web.post("/features", headers={"origin": "http://localhost"}).status_code == 200
    while models.features(run, open_samples(run))[0].computing:
        time.sleep(0.01)
    page = web.get("/search").text
    assert told in page and str(error) in page and "Compute them here" in page and len(called) == calls


def test_a_shard_that_is_lost_costs_a_search_its_own_images_and_no_others(run: Run, checkpoints: list[str]) -> None:
    web = TestClient(create_app(View(run, computed(run, checkpoints), seconds=60.0)), base_url="http://localhost")
    best = [[number // 20 for number, _ in expected(url)[: view_models.BEST]] for url in checkpoints]
    lost = best[0][0]
    Path(run.shards, f"train-{lost:05d}.parquet").unlink()
    answer = web.get("/search", params={"text": TEXT})
    assert answer.status_code == 200
    shown = [part.count("<figure>") for part in answer.text.split("<h2>")[1:]]
    assert shown == pytest.approx([sum(shard != lost for shard in one) for one in best], abs=1)  # float16 features
    assert 0 < sum(shown) < 2 * view_models.BEST
    assert answer.text.count(f"train-{lost:05d}.parquet: cannot be read") == 2  # once for each model


def test_a_sample_has_a_map_of_the_chosen_text_for_each_model(run: Run, checkpoints: list[str]) -> None:
    models = Models(checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    differ = []
    for asked in ("of=raw", "of=llava", "of=sharegpt4v&sub=2", "text=a+red+ring", "of=llava&text=a+red+ring"):
        page = web.get(f"/sample/1/3?{asked}").text
        pictures = [web.get(f"/map/{model}/1/3?{asked}") for model in (0, 1)]
        assert page.count('alt="map of the text by ') == 2
        for picture in pictures:
            assert picture.headers["content-type"] == "image/png"
            assert Image.open(io.BytesIO(picture.content)).size == (SIDE, SIDE)
        differ.append(pictures[0].content != pictures[1].content)
    assert any(differ)  # of a tower of nine patches a map may be nothing
    assert 'value="It is number 23."' in web.get("/sample/1/3?of=sharegpt4v&sub=2").text
    similarity = dict(expected(checkpoints[1]))[23]
    assert f"<b>lotlip</b>, similarity {similarity:.3f}" in web.get("/sample/1/3", params={"text": TEXT}).text
    assert "is cut" in web.get("/sample/1/3", params={"text": TEXT * 5}).text
    for asked in ("", "of=gpt", "of=llava&sub=9", "of=llava&sub=x"):
        assert "Choose a text above" in web.get(f"/sample/1/3?{asked}").text
        assert web.get(f"/map/0/1/3?{asked}").status_code == 404
    assert web.get("/map/2/1/3?of=raw").status_code == 404


def test_a_map_that_cannot_be_drawn_is_told_in_its_place_beside_all_else(run: Run, checkpoints: list[str]) -> None:
    models = computed(run, checkpoints)
    Path(run.shards, "train-00001.tar").unlink()
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    plain, answer = web.get("/sample/1/3"), web.get("/sample/1/3?of=sharegpt4v&sub=2")
    assert (plain.status_code, answer.status_code) == (200, 200)
    texts, maps = answer.text.split('<h2 id="maps">')
    assert "It is number 23." in texts and "train-00001.tar: is missing" in texts and "<th>sha256</th>" in maps
    assert maps.count("train-00001.tar: cannot be read") == 1 and "<figure>" not in maps  # once for both models
    assert 'value="It is number 23."' in maps and "Choose a text" not in maps
    for sub in ("2", "9" * 5000):
        assert web.get(f"/map/0/1/3?of=sharegpt4v&sub={sub}").status_code == 404
    found = web.get("/search", params={"text": TEXT})
    assert found.status_code == 200 and found.text.count("train-00001.tar: is missing") == 1


def test_a_model_that_draws_no_map_leaves_those_of_others(
    run: Run, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: bytes, text: str) -> None:
        raise UserError("no memory left")

    models = Models(checkpoints)
    monkeypatch.setattr(models.all[0], "map", full)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    answer = web.get("/sample/1/3?of=raw")
    assert answer.status_code == 200 and answer.text.count("no memory left") == 1
    [number] = re.findall(r'<img src="/map/(\d)/[^"]*" alt="map of the text by lotlip"', answer.text)
    assert number == "1" and "map of the text by lit" not in answer.text.replace("by lotlip", "")
    assert web.get(f"/map/{number}/1/3?of=raw").status_code == 200


def test_a_gpu_without_memory_costs_one_map_or_search_and_says_what_to_do(
    run: Run, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no GPU here: what torch raises then is raised in its place."""

    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has no more.")

    models = computed(run, checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    with monkeypatch.context() as patch:
        patch.setattr(view_models, "saliency", full)
        answer = web.get("/map/0/0/0", params={"text": TEXT})
        assert answer.status_code == 400 and "CUDA out of memory" in answer.text and "on the CPU" in answer.text
        patch.setattr(LoTLIP, "embed_tokens", full)
        answer = web.get("/search", params={"text": "A ring."})
        assert answer.status_code == 400 and "CUDA out of memory" in answer.text
    assert web.get("/map/0/0/0", params={"text": TEXT}).status_code == 200
    assert web.get("/search", params={"text": "A ring."}).status_code == 200


def test_the_brightest_place_of_an_overlay_is_that_of_the_map() -> None:
    patches = np.zeros((6, 6), np.float32)
    patches[1, 4] = 0.003
    drawn = np.asarray(Image.open(io.BytesIO(overlay(Image.new("RGB", (96, 96), "gray"), patches))), np.float32)
    cells = drawn.sum(axis=2)[: SIDE // 6 * 6, : SIDE // 6 * 6].reshape(6, SIDE // 6, 6, SIDE // 6).mean(axis=(1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 4)
    nothing = np.asarray(Image.open(io.BytesIO(overlay(Image.new("RGB", (96, 96), "gray"), patches * 0))))
    assert len(np.unique(nothing)) == 1


def test_a_model_without_its_tokenizer_is_told_in_one_line(checkpoints: list[str], tmp_path: Path) -> None:
    shutil.copytree(checkpoints[0], tmp_path / "model", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    with pytest.raises(UserError, match="has no tokenizer that can be read") as told:
        Models([str(tmp_path / "model")])
    assert str(tmp_path / "model") in str(told.value) and "\n" not in str(told.value)


def test_a_trainings_folder_in_place_of_its_models_is_told(checkpoints: list[str]) -> None:
    training = checkpoints[0].removesuffix("/model")
    with pytest.raises(UserError, match=f"{training}: there is no .* of a model, .*; name {training}/model$"):
        Models([training])


def test_names_of_models_are_short_and_different() -> None:
    assert names_of(["/a/train/lit/model", "/a/train/lotlip/model"]) == ["lit", "lotlip"]
    assert names_of(["/a/lit/model", "/b/lit/model", "/c/mine"]) == ["/a/lit/model", "/b/lit/model", "mine"]
