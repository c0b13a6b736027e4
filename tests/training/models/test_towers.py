"""Image towers from timm's files compute timm's features; any ViT and BERT-like encoder of transformers works."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.models import timm_vit
from lotlip_data.training.models.positions import resize_positions
from lotlip_data.training.models.pretrained import (
    image_config,
    load_image_tower,
    load_text_encoder,
    stretch_text_encoder,
)
from lotlip_data.training.models.towers import TextSettings, TextTower
from lotlip_data.training.packing import embed_packed, pack_texts
from tests.training.models.tiny_models import write_clip, write_siglip

TOLERANCE = 1e-5
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}


def random_timm(seed=0, num_classes=7, **sizes):
    """A ViT of timm with all parameters random, biases and norms too."""
    torch.manual_seed(seed)
    vit = VisionTransformer(num_classes=num_classes, global_pool="token", **sizes)
    for name, parameter in vit.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return vit.eval()


def write_timm(folder, vit, sizes, architecture="vit_base_patch16_224", form="model.safetensors", **config):
    """Write the ViT in the layout that timm uses on the hub."""
    folder.mkdir()
    whole = {"architecture": architecture, "num_classes": 7, "global_pool": "token", "model_args": sizes, **config}
    (folder / "config.json").write_text(json.dumps(whole))
    if form == "model.safetensors":
        save_file(vit.state_dict(), folder / form)
    else:
        torch.save(vit.state_dict(), folder / form)
    return str(folder)


@torch.no_grad()
def timm_features(vit, pixels):
    return vit.forward_head(vit.forward_features(pixels), pre_logits=True)


def largest_difference(tower, vit, size):
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (tower(pixels) - timm_features(vit, pixels)).abs().max().item()


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("sizes", [TINY, {**TINY, "patch_size": 16, "num_heads": 2, "depth": 2}])
def test_features_are_timms(tmp_path, sizes, form):
    vit = random_timm(**sizes)
    tower = load_image_tower(write_timm(tmp_path / "vit", vit, sizes, form=form))
    assert (tower.dim, tower.vit.config.image_size) == (48, 32)
    assert largest_difference(tower, vit, 32) <= TOLERANCE


@pytest.mark.slow
def test_features_are_timms_at_the_size_of_vit_b_16(tmp_path):
    vit = random_timm(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12)
    folder = write_timm(tmp_path / "vit", vit, None)
    assert largest_difference(load_image_tower(folder), vit, 224) <= TOLERANCE


@pytest.mark.parametrize("size", [16, 48, 64])
def test_at_another_image_size_features_are_timms(tmp_path, size):
    vit = random_timm(**TINY)
    folder = write_timm(tmp_path / "vit", vit, TINY)
    vit.set_input_size((size, size))
    tower = load_image_tower(folder, image_size=size)
    assert tower.vit.config.image_size == size
    assert largest_difference(tower, vit, size) <= TOLERANCE


@pytest.mark.parametrize(("old", "new"), [(14, 7), (7, 14), (14, 24)])
def test_positions_are_resized_as_timm_resizes_them(old, new):
    table = torch.randn(1, 1 + old**2, 24, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table, [new, new], num_prefix_tokens=1)
    assert torch.equal(resize_positions(table, old, new), expected)


def test_names_go_to_transformers_and_back_bit_for_bit():
    weights = {name: value for name, value in random_timm(**TINY).state_dict().items() if name not in timm_vit.HEAD}
    back = timm_vit.to_timm(timm_vit.from_timm(weights))
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_base_patch16_clip_224"}, "is not a plain ViT"),
        ({"architecture": "resnet50"}, "is not a plain ViT"),
        ({"global_pool": "avg"}, "global_pool is 'avg'"),
        ({"model_args": {**TINY, "qk_norm": True}}, "model_args sets qk_norm"),
        ({"model_args": {**TINY, "depth": 4}}, "16 weights are missing, such as layers.3.attention.k_proj.bias"),
        ({"model_args": {**TINY, "img_size": 40}}, "1 weights have the wrong shape"),
    ],
)
def test_a_vit_with_an_unsupported_configuration_is_rejected(tmp_path, change, message):
    folder = write_timm(tmp_path / "vit", random_timm(**TINY), TINY, **change)
    with pytest.raises(UserError, match=message):
        load_image_tower(folder)


def test_the_error_for_an_unsupported_tensor_names_it(tmp_path):
    vit = random_timm(**TINY, init_values=0.1)  # layer scale
    with pytest.raises(UserError, match=r"blocks\.0\.ls1\.gamma is not a tensor of timm's plain ViTs"):
        load_image_tower(write_timm(tmp_path / "vit", vit, TINY))


@pytest.mark.parametrize("model", ["ViT", "DeiT", "Dinov2"])
def test_any_vit_of_transformers_is_loaded_and_resized(tmp_path, model):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{model}Config")(**sizes)
    torch.manual_seed(0)
    vit = getattr(transformers, f"{model}Model")(config).eval()
    vit.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(pixel_values=pixels).last_hidden_state[:, 0]
        assert torch.equal(load_image_tower(str(tmp_path))(pixels), expected)
        larger = load_image_tower(str(tmp_path), image_size=48)
        assert larger(torch.randn(2, 3, 48, 48)).shape == (2, 32)
    with pytest.raises(UserError, match="50 is not a multiple"):
        load_image_tower(str(tmp_path), image_size=50)


@pytest.mark.parametrize("model", ["Bert", "Roberta", "Albert"])
def test_any_bert_like_encoder_is_a_text_tower(tmp_path, model):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{model}Config")(**sizes, vocab_size=50, max_position_embeddings=34)
    torch.manual_seed(0)
    encoder = getattr(transformers, f"{model}Model")(config).eval()
    encoder.save_pretrained(tmp_path)
    tower = TextTower(load_text_encoder(str(tmp_path)), 32, TextSettings(0)).eval()
    pad = config.pad_token_id
    assert tower.max_length == (32 if model == "Roberta" else 34)  # RoBERTa's positions start after those of padding
    ids = torch.randint(5, 50, (2, tower.max_length))
    ids[1, 20:] = pad
    with torch.no_grad():
        expected = tower.proj(encoder(input_ids=ids, attention_mask=(ids != pad).long()).pooler_output)
        torch.testing.assert_close(tower(ids)[:, 0], expected, rtol=0, atol=TOLERANCE)
        with_corners = TextTower(load_text_encoder(str(tmp_path)), 32, TextSettings(2))(ids)
    assert with_corners.shape == (2, 3, 32)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_tower_from_scratch_needs_only_its_configuration_and_has_fresh_weights(tmp_path, kind):
    if kind == "timm":
        folder = write_timm(tmp_path / "vit", random_timm(**TINY), TINY)
        (tmp_path / "vit" / "model.safetensors").unlink()
    else:
        folder = str(tmp_path)
        transformers.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4).save_pretrained(folder)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tower = load_image_tower(folder, pretrained=False, image_size=64)
        weights.append(torch.cat([parameter.flatten() for parameter in tower.parameters()]))
    assert tower.vit.config.image_size == 64 and image_config(folder).image_size != 64
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(UserError, match=r"image tower .*(cannot load a model|has neither model\.safetensors)"):
        load_image_tower(folder)


def test_an_empty_folder_is_rejected(tmp_path):
    for load in (load_image_tower, load_text_encoder):
        with pytest.raises(UserError, match="cannot load a model from there"):
            load(str(tmp_path))


def modern_bert(folder, window=8):
    """A ModernBERT whose second layer sees a window of `window` tokens."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.ModernBertConfig(
        **sizes, vocab_size=70, pad_token_id=0, local_attention=window, global_attn_every_n_layers=2
    )
    torch.manual_seed(0)
    model = transformers.ModernBertModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def test_modernbert_sees_its_windows_and_gets_a_fresh_pooler(tmp_path):
    model = modern_bert(tmp_path)
    tower = TextTower(load_text_encoder(str(tmp_path)), 16, TextSettings(0)).eval()
    ids = torch.randint(1, 70, (3, 40), generator=torch.Generator().manual_seed(1))
    ids[1, 25:] = 0
    expected = model(ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
    actual = tower(ids)[:, 0]
    assert (actual - tower.proj(tower.pooler(expected))).abs().max() <= TOLERANCE
    assert tower.max_length == model.config.max_position_embeddings


@torch.no_grad()
@pytest.mark.parametrize("corners", [0, 2])
def test_modernbert_has_the_same_features_in_packed_rows(tmp_path, corners):
    modern_bert(tmp_path)
    tower = TextTower(load_text_encoder(str(tmp_path)), 16, TextSettings(corners)).eval()
    generator = torch.Generator().manual_seed(1)
    texts = [
        [1, *range(70, 70 + corners), *torch.randint(3, 70, (length,), generator=generator).tolist()]
        for length in (30, 5, 17, 9)
    ]
    padded = torch.tensor([[*ids, *[0] * (40 - len(ids))] for ids in texts])
    packed = embed_packed(tower, pack_texts(tower, texts)).features
    assert tower.supports_packing and (packed - tower(padded)).abs().max() <= TOLERANCE


def test_the_positions_of_modernbert_cannot_be_stretched(tmp_path):
    modern_bert(tmp_path)
    with pytest.raises(UserError, match="ModernBertModel has no table of positions to stretch"):
        stretch_text_encoder(load_text_encoder(str(tmp_path)), 9000, "linear")


def test_the_positions_of_roberta_are_stretched_behind_its_padding(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = transformers.RobertaModel(transformers.RobertaConfig(**sizes, vocab_size=40, max_position_embeddings=27))
    longer = stretch_text_encoder(encoder, 45, "longclip")
    old, new = (model.embeddings.position_embeddings.weight for model in (encoder, longer))
    assert torch.equal(old[:22], new[:22])  # two rows for padding, then the 20 positions that are kept
    assert TextTower(longer, 8, TextSettings(0)).max_length == 45


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_text_half_of_a_clip_is_a_text_tower_of_its_own(tmp_path, kind):
    source = {"clip": write_clip, "siglip": write_siglip}[kind](tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    names = [name for name in encoder.state_dict() if not name.startswith("head.")]
    theirs = source.text_model.state_dict()
    assert all(torch.equal(encoder.state_dict()[name], theirs[name]) for name in names)
    assert TextTower(encoder, 48, TextSettings(2))(torch.full((1, 9), 7)).shape == (1, 3, 48)
