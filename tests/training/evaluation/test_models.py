"""Any model is evaluated alike: ours, open_clip's and transformers' give their own features and tell what they cut."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.training.evaluation.tiny_clips import CONTEXT, write_clip, write_open_clip
from tests.training.run_fixture import write_towers

IMAGES = [render(sample_scene(seed)) for seed in SPLITS["evaluation"][:5]]
TEXTS = ["a dog", "", *("a " * n for n in range(CONTEXT - 4, CONTEXT + 2))]
"""The last six have CONTEXT − 4 to CONTEXT + 1 tokens, and the start and the end besides: the last three do not fit."""
LENGTHS = [2, *range(CONTEXT - 2, CONTEXT + 4)]


@pytest.fixture(scope="module")
def open_clip_name(tmp_path_factory):
    pytest.importorskip("open_clip")
    return write_open_clip(tmp_path_factory.mktemp("open_clip") / "tiny")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


def _close(ours, theirs):
    assert torch.allclose(ours, F.normalize(theirs, dim=-1), atol=1e-6, rtol=0)


def test_ours_gives_the_models_features_and_which_texts_were_cut(tmp_path):
    towers = write_towers(tmp_path / "towers")
    model = load_model(make_config(**towers, context_length=16))
    model.save(str(tmp_path / "model"))
    embedder = load_embedder(str(tmp_path / "model"))
    loaded = LoTLIP.load(str(tmp_path / "model"))
    found = embedder.embed_texts(["a red circle", "a red circle " * 20])
    assert embedder.context_length == 16 and embedder.text_form == "authors" and found.lengths == [7, 64]
    assert torch.equal(found.features, loaded.embed_texts(["a red circle", "a red circle " * 20]))
    assert torch.equal(embedder.embed_images(iter(IMAGES)), loaded.embed_images(IMAGES))


@torch.no_grad()
def test_open_clips_features_are_its_own(open_clip_name):
    import open_clip

    embedder = load_embedder(f"open_clip:{open_clip_name}", "cpu")
    name, weights = open_clip_name.split("/", 1)
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)
    found = embedder.embed_texts(TEXTS)
    _close(embedder.embed_images(iter(IMAGES)), model.encode_image(torch.stack([transform(one) for one in IMAGES])))
    _close(found.features, model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS)))
    assert list(found.lengths)[1:] == LENGTHS and embedder.context_length == CONTEXT


@torch.no_grad()
def test_a_clip_of_transformers_gives_its_own_features(clip_folder):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    embedder = load_embedder(f"clip:{clip_folder}", "cpu")
    model = CLIPModel.from_pretrained(clip_folder)
    given = AutoTokenizer.from_pretrained(clip_folder)(TEXTS, padding=True, truncation=True, max_length=CONTEXT)
    ids, mask = torch.tensor(given["input_ids"]), torch.tensor(given["attention_mask"])
    pixels = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")(IMAGES, return_tensors="pt")["pixel_values"]
    theirs = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    found = embedder.embed_texts(TEXTS)
    _close(found.features, theirs.text_embeds)
    _close(embedder.embed_images(iter(IMAGES)), theirs.image_embeds)
    assert list(found.lengths)[1:] == LENGTHS and embedder.context_length == CONTEXT


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


def test_the_identity_of_ours_changes_with_the_tokenizer(tmp_path):
    towers = write_towers(tmp_path / "towers")
    folder = tmp_path / "model"
    load_model(make_config(**towers, context_length=16)).save(str(folder))
    before = load_embedder(str(folder)).identity
    (folder / "README.md").write_text("A card is no part of what the features depend on.")
    assert load_embedder(str(folder)).identity == before
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load_embedder(str(folder)).identity != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _without_text_encoder(folder / "model.safetensors"), "weights of a CLIPModel are not there"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "tokenizer"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "cannot be loaded"),
    ],
)
def test_a_clip_of_which_a_part_is_not_there_is_not_measured(tmp_path, damage, message):
    """What is missing would be drawn at random, or know no words."""
    folder = write_clip(tmp_path / "clip")
    damage(tmp_path / "clip")
    with pytest.raises(UserError, match=message):
        load_embedder(f"clip:{folder}", "cpu")


def _without_text_encoder(path):
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "text_model.encoder" not in name}, path)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "tape"])
def test_a_device_that_is_not_there_is_told(clip_folder, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=f"device '{device}': cannot be used"):
        load_embedder(f"clip:{clip_folder}", device)


def test_weights_that_are_none_are_told(open_clip_name, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_embedder(f"open_clip:{open_clip_name.split('/')[0]}/{tmp_path / 'x.pt'}", "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-16", "names no weights"),
        ("open_clip:no-such-model/openai", "cannot be loaded"),
        ("open_clip:ViT-B-32/no-such-tag", "cannot be loaded"),
        ("clip:/no/such/folder", "cannot be loaded"),
        ("/no/such/folder", "no trained model"),
    ],
)
def test_a_model_that_is_not_there_is_told(name, message):
    if name.startswith("open_clip:"):
        pytest.importorskip("open_clip")
    with pytest.raises(UserError, match=message):
        load_embedder(name, "cpu")
