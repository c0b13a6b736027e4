"""Models of this project, of open_clip and of transformers give their own features and the lengths of texts."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lotlip_data.manifests.digests import JSON_KEY
from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from lotlip_data.training.models.open_clip_models import _needs_quick_gelu
from tests.training.evaluation.tiny_clips import CONTEXT, write_clip, write_open_clip
from tests.training.run_fixture import write_towers

IMAGES = [render(sample_scene(seed)) for seed in SPLITS["evaluation"][:5]]
TEXTS = ["a dog", "", *("a " * n for n in range(CONTEXT - 4, CONTEXT + 2))]
"""The last six have CONTEXT − 4 to CONTEXT + 1 tokens, and a start and an end token: the last three are too long."""
LENGTHS = [2, *range(CONTEXT - 2, CONTEXT + 4)]


@pytest.fixture(scope="module")
def open_clip_name(tmp_path_factory):
    pytest.importorskip("open_clip")
    return write_open_clip(tmp_path_factory.mktemp("open_clip") / "tiny")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


def _assert_close(ours, theirs):
    assert torch.allclose(ours, F.normalize(theirs, dim=-1), atol=1e-6, rtol=0)


def test_a_model_of_this_project_gives_its_features_and_the_lengths_of_texts(tmp_path):
    towers = write_towers(tmp_path / "towers")
    model = load_model(make_config(**towers, context_length=16))
    model.save(str(tmp_path / "model"))
    embedder = load_embedder(str(tmp_path / "model"))
    loaded = LoTLIP.load(str(tmp_path / "model"))
    embedded = embedder.embed_texts(["a red circle", "a red circle " * 20])
    assert embedder.context_length == 16 and embedder.text_form == "authors" and embedded.lengths == [7, 64]
    assert torch.equal(embedded.features, loaded.embed_texts(["a red circle", "a red circle " * 20]))
    assert torch.equal(embedder.embed_images(iter(IMAGES)), loaded.embed_images(IMAGES))


@torch.no_grad()
def test_an_open_clip_model_gives_the_features_of_open_clip(open_clip_name):
    import open_clip

    embedder = load_embedder(f"open_clip:{open_clip_name}", "cpu")
    name, weights = open_clip_name.split("/", 1)
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)
    embedded = embedder.embed_texts(TEXTS)
    _assert_close(
        embedder.embed_images(iter(IMAGES)), model.encode_image(torch.stack([transform(image) for image in IMAGES]))
    )
    _assert_close(embedded.features, model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS)))
    assert list(embedded.lengths)[1:] == LENGTHS and embedder.context_length == CONTEXT


@torch.no_grad()
def test_a_clip_of_transformers_gives_the_features_of_transformers(clip_folder):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    embedder = load_embedder(f"clip:{clip_folder}", "cpu")
    model = CLIPModel.from_pretrained(clip_folder)
    encoded = AutoTokenizer.from_pretrained(clip_folder)(TEXTS, padding=True, truncation=True, max_length=CONTEXT)
    ids, mask = torch.tensor(encoded["input_ids"]), torch.tensor(encoded["attention_mask"])
    pixels = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")(IMAGES, return_tensors="pt")["pixel_values"]
    theirs = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    embedded = embedder.embed_texts(TEXTS)
    _assert_close(embedded.features, theirs.text_embeds)
    _assert_close(embedder.embed_images(iter(IMAGES)), theirs.image_embeds)
    assert list(embedded.lengths)[1:] == LENGTHS and embedder.context_length == CONTEXT


def _set(file: Path, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _fill(folder: Path, name: str, value: float):
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _set(folder / "preprocessor_config.json", crop_size={"height": 8, "width": 8}), "match model"),
        (lambda folder: _set(folder / "preprocessor_config.json", image_mean=[0.5]), "mean must have 3 elements"),
        (lambda folder: _set(folder / "preprocessor_config.json", image_std=[1e38] * 3), "the same feature"),
        (lambda folder: _fill(folder, "visual_projection.weight", float("nan")), "features of images are zero or not"),
        (lambda folder: _fill(folder, "text_projection.weight", 0.0), "features of texts are zero or not finite"),
    ],
)
def test_a_model_that_cannot_embed_plain_images_and_texts_is_refused(clip_folder, tmp_path, damage, message):
    shutil.copytree(clip_folder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message) as error:
        load_embedder(f"clip:{tmp_path / 'model'}", "cpu")
    assert "\n" not in str(error.value)


def test_openai_weights_are_computed_with_quick_gelu_whatever_the_models_name(open_clip_name, monkeypatch):
    """The tag says with which activation the weights were trained; the weights alone do not."""
    import open_clip
    from open_clip import pretrained

    name, weights = open_clip_name.split("/", 1)
    monkeypatch.setitem(
        pretrained._PRETRAINED, name, {"openai": {"url": "file", "quick_gelu": True}, "own": {"url": "file"}}
    )
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **options: weights)
    expected = open_clip.create_model(name, pretrained=weights, force_quick_gelu=True).eval()
    tagged = load_embedder(f"open_clip:{name}/openai", "cpu")
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    _assert_close(tagged.embed_texts(TEXTS).features, expected.encode_text(tokens))
    plain = load_embedder(f"open_clip:{name}/own", "cpu")
    assert (plain.embed_texts(TEXTS).features - tagged.embed_texts(TEXTS).features).abs().max() > 1e-3
    assert plain.identity == load_embedder(f"open_clip:{open_clip_name}", "cpu").identity != tagged.identity


def test_a_file_of_weights_is_computed_as_the_configuration_beside_it_says(open_clip_name, caplog):
    plain = load_embedder(f"open_clip:{open_clip_name}", "cpu")
    assert not _needs_quick_gelu("ViT-B-16", "/none/ViT-B-16.pt")
    assert "computed with GELU; OpenAI's weights need ViT-B-16-quickgelu" in caplog.text
    config = Path(open_clip_name.split("/", 1)[1]).with_name("open_clip_config.json")
    config.write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    quick = load_embedder(f"open_clip:{open_clip_name}", "cpu")
    config.unlink()
    assert quick.identity != plain.identity


@pytest.mark.parametrize(
    ("model", "tag", "quick"),
    [
        ("ViT-B-16", "openai", True),
        ("ViT-L-14-336", "openai", True),
        ("RN50", "yfcc15m", True),
        ("ViT-B-32", "metaclip_400m", True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
        ("ViT-B-16-quickgelu", "openai", False),  # it computes QuickGELU by itself
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", False),
    ],
)
def test_the_activation_of_published_weights_is_known_by_their_tag(model, tag, quick):
    pytest.importorskip("open_clip")
    assert _needs_quick_gelu(model, tag) == quick


def test_the_identity_changes_with_the_weights(open_clip_name, clip_folder, tmp_path):
    from transformers import CLIPModel

    assert load_embedder(f"clip:{clip_folder}").identity == load_embedder(f"clip:{clip_folder}").identity
    other = write_clip(tmp_path / "other")
    assert load_embedder(f"clip:{other}").identity == load_embedder(f"clip:{clip_folder}").identity
    model = CLIPModel.from_pretrained(other)
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1
    model.save_pretrained(other)
    assert load_embedder(f"clip:{other}").identity != load_embedder(f"clip:{clip_folder}").identity
    assert load_embedder(f"open_clip:{open_clip_name}").identity != load_embedder(f"clip:{clip_folder}").identity


def test_the_identity_of_a_model_of_this_project_changes_with_the_tokenizer(tmp_path):
    towers = write_towers(tmp_path / "towers")
    folder = tmp_path / "model"
    load_model(make_config(**towers, context_length=16)).save(str(folder))
    before = load_embedder(str(folder)).identity
    (folder / "README.md").write_text("The features do not depend on the card.")
    assert load_embedder(str(folder)).identity == before
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer\.json: is damaged"):
        load_embedder(str(folder))
    config = json.loads((folder / "config.json").read_text())
    del config[JSON_KEY], config["files"]  # as a model of an earlier release
    (folder / "config.json").write_text(json.dumps(config))
    assert load_embedder(str(folder)).identity != before


def _replace_weights(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def _damage_tokenizer(file):
    file.write_text(file.read_text().replace('"model"', '"modem"', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _without_text_encoder(folder / "model.safetensors"), "weights of a CLIPModel are missing"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "tokenizer"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "cannot be loaded"),
        (lambda folder: _replace_weights(folder, pickle.dumps(print)), "cannot be loaded"),
        (lambda folder: _replace_weights(folder, b"PK\x03\x04 and no archive"), "cannot be loaded"),
        (lambda folder: _damage_tokenizer(folder / "tokenizer.json"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip", "text_config": 3}'), "cannot be"),
    ],
)
def test_an_incomplete_clip_is_an_error(tmp_path, damage, message):
    """Missing weights would be random, and a tokenizer without its files has no vocabulary."""
    folder = write_clip(tmp_path / "clip")
    damage(tmp_path / "clip")
    with pytest.raises(UserError, match=message):
        load_embedder(f"clip:{folder}", "cpu")


def _without_text_encoder(path):
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "text_model.encoder" not in name}, path)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "tape"])
def test_a_device_that_does_not_exist_is_an_error(clip_folder, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=f"device '{device}': cannot be used"):
        load_embedder(f"clip:{clip_folder}", device)


def test_a_file_that_is_not_weights_is_an_error(open_clip_name, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_embedder(f"open_clip:{open_clip_name.split('/')[0]}/{tmp_path / 'x.pt'}", "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-16", "names no weights"),
        ("open_clip:no-such-model/openai", "cannot be loaded"),
        ("open_clip:ViT-B-32/no-such-tag", "cannot be loaded"),
        ("clip:/no/such/folder", "/no/such/folder: is neither a folder here nor the id of a model"),
        ("/no/such/folder", "so it is not a model"),
    ],
)
def test_a_model_that_does_not_exist_is_an_error(name, message):
    if name.startswith("open_clip:"):
        pytest.importorskip("open_clip")
    with pytest.raises(UserError, match=message):
        load_embedder(name, "cpu")


def test_a_clip_stored_in_float16_is_evaluated_in_float32(clip_folder, tmp_path):
    from transformers import CLIPModel

    half = tmp_path / "half"
    shutil.copytree(clip_folder, half)
    CLIPModel.from_pretrained(clip_folder, dtype=torch.float16).save_pretrained(half)
    model = load_embedder(f"clip:{half}", "cpu")
    assert {weight.dtype for weight in model._model.parameters()} == {torch.float32}


def test_a_clip_whose_tokenizer_has_more_words_than_the_model_is_an_error(clip_folder, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="has the token 'zebra' with number"):
        load_embedder(f"clip:{folder}", "cpu")
