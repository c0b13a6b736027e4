"""A classifier's scores are those of its network over the model's features; wrong files are one clear error."""

import io
import pathlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.scoring import classifier
from lotlip_data.pipeline.scoring.base import ImageScores, ScoredImage
from lotlip_data.pipeline.scoring.classifier import Classifier, ClassifierOptions
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.evaluation.models import load_embedder
from tests.training.evaluation.tiny_clips import write_clip

IMAGES = [render(sample_scene(seed)) for seed in SPLITS["evaluation"][:5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"clip:{write_clip(tmp_path_factory.mktemp('clip') / 'tiny')}"


@pytest.fixture(scope="module")
def features(model: str) -> torch.Tensor:
    return load_embedder(model, "cpu").embed_images(image.convert("RGB") for image in IMAGES)


def scored(image: Image.Image) -> ScoredImage:
    file = io.BytesIO()
    image.save(file, "PNG")
    return ScoredImage("", "", file.getvalue(), ())


def make(model: str, head: pathlib.Path, output: int | None = None) -> Classifier:
    return Classifier(model, ClassifierOptions(head=str(head), output=output))


def write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@torch.no_grad()
def test_scores_are_the_sigmoid_of_a_network_that_torch_saved(
    tmp_path: pathlib.Path, model: str, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "BATCH_SIZE", 2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(features.shape[1], 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
    save_file(network.state_dict(), tmp_path / "head.safetensors")
    expected = torch.sigmoid(network(features))[:, 0]
    scorer = make(model, tmp_path / "head.safetensors")
    scores = [score.image for score in scorer.score(map(scored, IMAGES))]
    assert np.allclose(scores, expected.numpy(), atol=1e-6, rtol=0)
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy._loaded is None and copy.identity == scorer.identity
    assert [score.image for score in copy.score(map(scored, IMAGES))] == scores
    assert list(scorer.score([])) == []


@torch.no_grad()
def test_of_several_outputs_one_is_named(tmp_path: pathlib.Path, model: str, features: torch.Tensor) -> None:
    network = nn.Linear(features.shape[1], 3)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    head = write_npz(tmp_path / "head.npz", arrays)
    scores = [score.image for score in make(model, head, 2).score(map(scored, IMAGES))]
    assert np.allclose(scores, torch.softmax(network(features), dim=1)[:, 2].numpy(), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r"has 3 outputs; name one with `output`, from 0 to 2"):
        make(model, head).identity  # noqa: B018
    with pytest.raises(UserError, match=r"`output: 3`: the last output is 2"):
        make(model, head, 3).identity  # noqa: B018
    identities = [make(model, head, output).identity for output in (0, 1)]
    write_npz(head, {**arrays, "bias": arrays["bias"] + 1})
    assert make(model, head, 0).identity != identities[0] != identities[1]


def test_images_without_a_score_have_a_reason_and_cost_no_other_image(
    tmp_path: pathlib.Path, model: str, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = write_npz(tmp_path / "h.npz", {"weight": np.zeros((1, features.shape[1])), "bias": np.zeros(1)})
    scorer = make(model, head)
    images = [scored(IMAGES[0]), ScoredImage("", "", b"no image", ()), ScoredImage("", "", b"", ()), scored(IMAGES[1])]
    scores = list(scorer.score(images))
    assert [score.image for score in scores] == [0.5, None, None, 0.5]
    assert all((score.error or "").startswith("cannot be decoded: cannot identify") for score in scores[1:3])
    broken = features.numpy()[:2].copy()
    broken[1] = np.nan
    monkeypatch.setattr(scorer._loaded[0], "image_features", lambda images: torch.from_numpy(broken))
    assert list(scorer.score(map(scored, IMAGES[:2]))) == [
        ImageScores(image=0.5),
        ImageScores(error="its features are not finite numbers"),
    ]


ONE = {"weight": np.ones((1, 4)), "bias": np.ones(1)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no layers"),
        ({"weight": ONE["weight"]}, "has no `bias`"),
        ({"0.weight": ONE["weight"], "1.bias": ONE["bias"]}, "has no `0.bias`"),
        ({**ONE, "mean": np.ones(4)}, "has an array 'mean'; expected `weight` and `bias`, or `0.weight`"),
        ({**ONE, "0.weight": ONE["weight"], "0.bias": ONE["bias"]}, "layers with and without a number"),
        (
            {**ONE, "bias": np.ones(2)},
            r"`weight` has the shape \[1, 4\] and `bias` \[2\]; expected \[outputs, inputs\]",
        ),
        ({**ONE, "weight": np.ones(4)}, r"`weight` has the shape \[4\]"),
        ({"weight": np.ones((0, 4)), "bias": np.ones(0)}, r"the shape \[0, 4\]"),
        ({**ONE, "bias": np.array([np.nan])}, "values that are not finite numbers"),
        ({**ONE, "bias": np.array(["x"])}, "values that are not finite numbers"),
        ({**ONE, "bias": np.array([{}], object)}, "is damaged or no such file"),
        (
            {"0.weight": np.ones((3, 4)), "0.bias": np.ones(3), "2.weight": np.ones((1, 4)), "2.bias": np.ones(1)},
            "`2.weight` reads 4 values, but the layer before it has 3",
        ),
        (ONE, "reads 4 features, but clip:.* has [0-9]+; name the model that the head was trained with"),
    ],
)
def test_a_wrong_network_is_one_clear_error(
    tmp_path: pathlib.Path, model: str, arrays: dict[str, np.ndarray], message: str
) -> None:
    head = write_npz(tmp_path / "head.npz", arrays)
    with pytest.raises(UserError, match=rf"^{head}: .*{message}"):
        make(model, head).identity  # noqa: B018


@pytest.mark.parametrize("name", ["head.npz", "head.safetensors", "head.pt"])
@pytest.mark.parametrize("content", [None, b"", b"<!doctype html>", b"PK\x03\x04 and no archive"])
def test_a_file_that_is_missing_damaged_or_of_another_format_is_one_clear_error(
    tmp_path: pathlib.Path, model: str, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    reason = "cannot be read" if content is None else "must be a .safetensors" if ".pt" in name else "is damaged"
    with pytest.raises(UserError, match=f"^{tmp_path / name}: .*{reason}"):
        list(make(model, tmp_path / name).score([scored(IMAGES[0])]))
