"""The published towers and LoTLIP checkpoints fit the models: every tensor by name and shape, and no other."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lotlip_data.manifests.checkpoints.weights import differences
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.convert_lotlip import POSITION_IDS, build_model, position_ids, to_authors, to_ours
from lotlip_data.training.models import timm_vit
from lotlip_data.training.models.pretrained import load_text_encoder
from lotlip_data.training.models.towers import make_vit
from tests.support.paths import GOLDENS

PUBLISHED = GOLDENS / "published"


def published(name):
    golden = json.loads((PUBLISHED / f"{name}.json").read_text())
    shapes = {}
    for pattern, shape, *layers in golden["tensors"]:
        shapes |= {pattern.format(number): tuple(shape) for number in (range(layers[0]) if layers else [None])}
    return golden, shapes


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("patch", [16, 32])
def test_the_published_vit_of_timm_fills_the_vit_of_transformers(patch):
    golden, shapes = published(f"timm-vit-b-{patch}")
    with torch.device("meta"):
        vit = make_vit(timm_vit.vit_config(golden["config"], "golden"))
    expected = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    actual = {name: tuple(value.shape) for name, value in timm_vit.from_timm(on_meta(shapes)).items()}
    assert differences(expected, actual) == []
    assert round(sum(torch.Size(shape).numel() for shape in shapes.values()) * 4 / 1e6) == golden["megabytes"]


def test_the_published_bert_fills_the_text_tower(tmp_path):
    """With its names at small sizes: every tensor of the file is in the tower or in a head of its pre-training."""
    golden, shapes = published("bert-base-uncased")
    assert round(sum(torch.Size(shape).numel() for shape in shapes.values()) * 4 / 1e6) == golden["megabytes"]
    small = {768: 24, 3072: 48, 30522: 50, 512: 32}
    weights = {name: torch.randn([small.get(size, size) for size in shape]) for name, shape in shapes.items()}
    sizes = {name: small.get(size, size) if isinstance(size, int) else size for name, size in golden["config"].items()}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tower = load_text_encoder(str(tmp_path)).state_dict()
    used = set()
    for name, value in weights.items():
        ours = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        ours = ours.replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.startswith("cls."):
            assert torch.equal(tower[ours], value), name
            used.add(ours)
    assert set(tower) - used <= {"embeddings.position_ids", "embeddings.token_type_ids"}
    del weights["bert.encoder.layer.3.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its files lack 1 weights, such as encoder\.layer\.3\.output\.dense\.bias"):
        load_text_encoder(str(tmp_path))


@pytest.mark.parametrize("patch", [16, 32])
def test_the_released_lotlip_fills_our_model_and_goes_back_to_its_names(patch):
    golden, shapes = published(f"lotlip-vit-b-{patch}")
    weights = {**on_meta(shapes), POSITION_IDS: position_ids(512)}
    model = build_model(weights, "golden")
    assert (model.towers.text.settings.corner_tokens, model.tokenizer.context_length) == (2, 128)
    assert (model.towers.image.vit.config.patch_size, model.transform.size) == (patch, 224)
    back = to_authors(to_ours(weights, "golden"), "golden", 512)
    assert {name: tuple(value.shape) for name, value in back.items()} == shapes
    size = sum(value.numel() * value.element_size() for value in weights.values())
    assert round((size + 152_574) / 1e6) == golden["megabytes"]  # the bytes of B/32's file besides its tensors
