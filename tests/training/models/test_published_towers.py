"""The published towers and LoTLIP checkpoints fit the models: every tensor by name and shape, and no other."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from lotlip_data.manifests.checkpoints.weights import differences
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.convert_lotlip import POSITION_IDS, build_model, position_ids, to_authors, to_ours
from lotlip_data.training.models import timm_vit
from lotlip_data.training.models.pooling import pooling_of
from lotlip_data.training.models.pretrained import load_text_encoder
from lotlip_data.training.models.towers import ImageTower, TextSettings, TextTower, make_encoder, make_vit
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


IMAGE_TOWERS = {
    "facebook/dinov2-base": (transformers.Dinov2Config(image_size=518, patch_size=14), 768, 86_580_480),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": (
        transformers.DINOv3ViTConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_register_tokens=4
        ),
        768,
        85_660_416,
    ),
    "google/siglip-so400m-patch14-384": (
        transformers.SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
        1152,
        428_225_600,
    ),
}
"""The published configuration, the width of a feature, and the number of values."""

TEXT_TOWERS = {
    "FacebookAI/roberta-base": (
        transformers.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
        ),
        512,
        124_645_632,
    ),
    "answerdotai/ModernBERT-base": (transformers.ModernBertConfig(), 8192, 149_014_272),
}
"""The published configuration, the positions of a text, and the number of values."""


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_published_image_towers_are_built_at_their_size(name):
    config, width, values = IMAGE_TOWERS[name]
    with torch.device("meta"):
        tower = ImageTower(make_vit(config, pooling := pooling_of(config, name)), pooling)
    assert tower.dim == width
    assert sum(parameter.numel() for parameter in tower.parameters()) == values


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_published_text_towers_are_built_at_their_size(name):
    config, positions, values = TEXT_TOWERS[name]
    with torch.device("meta"):
        tower = TextTower(make_encoder(config), 768, TextSettings(2))
    assert tower.max_length == positions
    corners = 2 * config.hidden_size
    assert sum(parameter.numel() for parameter in tower.encoder.parameters()) - corners == values
