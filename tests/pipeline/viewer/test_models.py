"""A search ranks images as the model does, and continues over several requests; every model draws its maps."""

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
from lotlip_data.pipeline.viewer import models as viewer_models
from lotlip_data.pipeline.viewer.app import View, create_app
from lotlip_data.pipeline.viewer.models import MAP_PIXELS, Models, draw_overlay, short_names
from lotlip_data.pipeline.viewer.samples import Samples, open_samples
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.pipeline.viewer import dataset_fixture
from tests.training.run_fixture import write_towers

TEXT = "A large red circle is at the top left."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models with equal image towers and different text towers."""
    folder = tmp_path_factory.mktemp("train")
    towers = write_towers(folder / "towers")
    urls = [str(folder / name / "model") for name in ("lit", "lotlip")]
    for seed, url in enumerate(urls):
        torch.manual_seed(seed)
        load_model(make_config(**towers, context_length=24)).save(url)
    return urls


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three shards of 20 synthetic scenes."""
    return dataset_fixture.make(tmp_path / "run", samples=20, picture=lambda number: render(sample_scene(number), 96))


@pytest.fixture
def samples(run: Run) -> Samples:
    return open_samples(run)


def expected(checkpoint: str) -> list[tuple[int, float]]:
    """Return the numbers and similarities of all scenes, the most similar first, computed with the model alone."""
    model = LoTLIP.load(checkpoint)
    images = [Image.open(io.BytesIO(dataset_fixture.jpeg(render(sample_scene(number), 96)))) for number in range(60)]
    scores = (model.embed_images(images) @ model.embed_texts([TEXT]).T).squeeze(1).numpy()
    return [(int(number), float(scores[number])) for number in np.argsort(-scores)]


def computed(run: Run, checkpoints: list[str]) -> Models:
    models = Models(checkpoints)
    for features in models.features(run, open_samples(run)):
        features.compute()
        while features.computing:
            time.sleep(0.01)
        assert features.problems == [] and features.missing() == []
    return models


def test_the_ranking_equals_the_models(run: Run, samples: Samples, checkpoints: list[str]) -> None:
    models = computed(run, checkpoints)
    first, second = models.features(run, samples)
    assert first is second  # models with equal image towers share their features
    for model, url in zip(models.all, checkpoints, strict=True):
        ranking, best = model.rank(TEXT, first, 60.0), expected(url)[: viewer_models.TOP_IMAGES]
        assert (ranking.searched, ranking.ready, ranking.shards, ranking.cut) == (3, 3, 3, False)
        assert [score for score, _ in ranking.best] == pytest.approx([score for _, score in best], abs=2e-3)
        scores = dict(expected(url))
        for score, (shard, row) in ranking.best:  # with float16 features, neighbours may swap
            assert score == pytest.approx(scores[shard * 20 + row], abs=2e-3)


def test_a_search_with_no_time_continues_where_it_stopped(run: Run, samples: Samples, checkpoints: list[str]) -> None:
    models = computed(run, checkpoints[:1])
    (features,) = models.features(run, samples)
    parts = [models.all[0].rank(TEXT, features, 0) for _ in range(4)]
    assert [part.searched for part in parts] == [1, 2, 3, 3]
    whole = Models(checkpoints[:1]).all[0].rank(TEXT, features, 60.0)
    assert parts[-1].best == whole.best
    assert {position.file for _, position in parts[0].best} == {0}


def reloads_itself(page: str) -> bool:
    return 'http-equiv="refresh"' in page


def test_an_unfinished_search_continues_in_a_frame(run: Run, checkpoints: list[str]) -> None:
    web = TestClient(create_app(View(run, computed(run, checkpoints), seconds=0)), base_url="http://localhost")
    page = web.get("/search", params={"text": TEXT}).text
    (source,) = re.findall(r'<iframe src="([^"]+)"', page)
    assert page.count("2 shards remaining") == 2 and not reloads_itself(page)  # a reload would discard what is typed
    frames = [web.get(html.unescape(source)) for _ in range(3)]
    assert [reloads_itself(frame.text) for frame in frames] == [True, False, False]
    assert "lotlip: 2 of 3 shards searched" in frames[0].text and "Update the results" in frames[1].text
    assert "<iframe" not in web.get("/search", params={"text": TEXT}).text
    policies = [answer.headers["content-security-policy"] for answer in (web.get("/search"), frames[0])]
    assert [policy.partition("frame-ancestors ")[2] for policy in policies] == ["'none'", "'self'"]


def test_a_page_without_features_offers_to_compute_them(run: Run, checkpoints: list[str]) -> None:
    models = Models(checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    page = web.get("/search", params={"text": TEXT}).text
    assert "3 of 3 shards have no image features" in page and "<figure>" not in page
    answer = web.post(
        "/features", params={"text": TEXT}, headers={"origin": "http://localhost"}, follow_redirects=False
    )
    assert answer.status_code == 303 and answer.headers["location"].startswith("/search?text=A+large")
    while models.features(run, open_samples(run))[0].computing:
        time.sleep(0.01)
    page = web.get("/search", params={"text": TEXT}).text
    assert page.count("<figure>") == 2 * viewer_models.TOP_IMAGES and "no image features" not in page
    assert "<iframe" not in page
    number, score = expected(checkpoints[0])[0]
    assert f"<b>{score:.3f}</b>"[:8] in page and f'href="/sample/{number // 20}/{number % 20}"' in page


def test_a_shard_whose_features_cannot_be_computed_or_read_is_reported(
    run: Run, samples: Samples, checkpoints: list[str]
) -> None:
    Path(samples.files[1].tar_url).write_bytes(b"no tar")
    models = Models(checkpoints[:1])
    (features,) = models.features(run, samples)
    features.compute()
    while features.computing:
        time.sleep(0.01)
    assert len(features.problems) == 1 and "train-00001.tar" in features.problems[0] and features.missing() == [1]
    name = storage.list_names(features.folder)[0]
    storage.replace(storage.join(features.folder, name), b"no features")
    ranking = models.all[0].rank(TEXT, features, 60.0)
    assert len(ranking.damaged) == 1 and name in ranking.damaged[0]
    assert len({position.file for _, position in ranking.best}) == 1


@pytest.mark.parametrize(
    ("error", "message", "calls"),
    [(DecompressionBombError("too large"), "train-00002.tar: too large", 3), (RuntimeError("no memory"), "ended", 1)],
)
def test_any_failure_to_compute_features_is_reported(
    run: Run, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, calls: int
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
    assert message in page and str(error) in page and "Compute them now" in page and len(called) == calls


def test_a_search_leaves_out_only_the_images_of_a_missing_shard(run: Run, checkpoints: list[str]) -> None:
    web = TestClient(create_app(View(run, computed(run, checkpoints), seconds=60.0)), base_url="http://localhost")
    best = [[number // 20 for number, _ in expected(url)[: viewer_models.TOP_IMAGES]] for url in checkpoints]
    missing = best[0][0]
    Path(run.shards, f"train-{missing:05d}.parquet").unlink()
    answer = web.get("/search", params={"text": TEXT})
    assert answer.status_code == 200
    shown = [part.count("<figure>") for part in answer.text.split("<h2>")[1:]]
    assert shown == pytest.approx(
        [sum(shard != missing for shard in shards) for shards in best], abs=1
    )  # with float16 features, neighbours may swap
    assert 0 < sum(shown) < 2 * viewer_models.TOP_IMAGES
    assert answer.text.count(f"train-{missing:05d}.parquet: is missing") == 2  # once for each model


def test_a_sample_has_a_map_of_the_selected_text_for_each_model(run: Run, checkpoints: list[str]) -> None:
    models = Models(checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    differ = []
    for parameters in ("of=raw", "of=llava", "of=sharegpt4v&sub=2", "text=a+red+ring", "of=llava&text=a+red+ring"):
        page = web.get(f"/sample/1/3?{parameters}").text
        pictures = [web.get(f"/map/{model}/1/3?{parameters}") for model in (0, 1)]
        assert page.count('alt="map of the text by ') == 2
        for picture in pictures:
            assert picture.headers["content-type"] == "image/png"
            assert Image.open(io.BytesIO(picture.content)).size == (MAP_PIXELS, MAP_PIXELS)
        differ.append(pictures[0].content != pictures[1].content)
    assert any(differ)  # with nine patches, a map may be blank
    assert 'value="It is number 23."' in web.get("/sample/1/3?of=sharegpt4v&sub=2").text
    similarity = dict(expected(checkpoints[1]))[23]
    assert f"<b>lotlip</b>: cosine similarity {similarity:.3f}" in web.get("/sample/1/3", params={"text": TEXT}).text
    assert "is truncated" in web.get("/sample/1/3", params={"text": TEXT * 5}).text
    for parameters in ("", "of=gpt", "of=llava&sub=9", "of=llava&sub=x"):
        assert "Choose a text above" in web.get(f"/sample/1/3?{parameters}").text
        assert web.get(f"/map/0/1/3?{parameters}").status_code == 404
    assert web.get("/map/2/1/3?of=raw").status_code == 404


def test_a_map_that_cannot_be_drawn_is_reported_and_the_rest_of_the_page_is_shown(
    run: Run, checkpoints: list[str]
) -> None:
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
    answer = web.get("/search", params={"text": TEXT})
    assert answer.status_code == 200 and answer.text.count("train-00001.tar: is missing") == 1


def test_maps_of_other_models_are_shown_when_one_model_fails(
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


def test_a_gpu_out_of_memory_fails_one_request_with_a_remedy(
    run: Run, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test raises torch's error itself, so it needs no GPU."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has no more.")

    models = computed(run, checkpoints)
    web = TestClient(create_app(View(run, models, seconds=60.0)), base_url="http://localhost")
    with monkeypatch.context() as patch:
        patch.setattr(viewer_models, "saliency", full)
        answer = web.get("/map/0/0/0", params={"text": TEXT})
        assert answer.status_code == 400 and "CUDA out of memory" in answer.text and "on the CPU" in answer.text
        patch.setattr(LoTLIP, "embed_tokens", full)
        answer = web.get("/search", params={"text": "A ring."})
        assert answer.status_code == 400 and "CUDA out of memory" in answer.text
    assert web.get("/map/0/0/0", params={"text": TEXT}).status_code == 200
    assert web.get("/search", params={"text": "A ring."}).status_code == 200


def test_an_overlay_is_brightest_where_the_map_is_largest() -> None:
    patches = np.zeros((6, 6), np.float32)
    patches[1, 4] = 0.003
    drawn = np.asarray(Image.open(io.BytesIO(draw_overlay(Image.new("RGB", (96, 96), "gray"), patches))), np.float32)
    cells = (
        drawn.sum(axis=2)[: MAP_PIXELS // 6 * 6, : MAP_PIXELS // 6 * 6]
        .reshape(6, MAP_PIXELS // 6, 6, MAP_PIXELS // 6)
        .mean(axis=(1, 3))
    )
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 4)
    blank = np.asarray(Image.open(io.BytesIO(draw_overlay(Image.new("RGB", (96, 96), "gray"), patches * 0))))
    assert len(np.unique(blank)) == 1


def test_a_model_without_a_tokenizer_is_reported_in_one_line(checkpoints: list[str], tmp_path: Path) -> None:
    shutil.copytree(checkpoints[0], tmp_path / "model", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    with pytest.raises(UserError, match=r"tokenizer\.json: is missing") as caught:
        Models([str(tmp_path / "model")])
    assert str(tmp_path / "model") in str(caught.value) and "\n" not in str(caught.value)


def test_a_training_folder_instead_of_its_model_folder_is_reported(checkpoints: list[str]) -> None:
    training = checkpoints[0].removesuffix("/model")
    with pytest.raises(
        UserError, match=f"{training}: is not a model, but its subfolder .model. is one; give {training}/model$"
    ):
        Models([training])


def test_names_of_models_are_short_and_distinct() -> None:
    assert short_names(["/a/train/lit/model", "/a/train/lotlip/model"]) == ["lit", "lotlip"]
    assert short_names(["/a/lit/model", "/b/lit/model", "/c/mine"]) == ["/a/lit/model", "/b/lit/model", "mine"]
