"""A training that starts from a CLIP or SigLIP has its features, in transformers' and open_clip's layouts."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import register_model
from timm.models.vision_transformer import _create_vision_transformer
from torch import Tensor

from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.config import ConfigError, make_config
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.models import clip_checkpoints, open_clip_names
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from lotlip_data.training.models.positions import KEPT_POSITIONS
from lotlip_data.training.packing import embed_packed, pack_texts
from tests.training.models.tiny_models import POSITIONS, WIDTH, randomize, siglip_tokenizer, write_clip, write_siglip

TOLERANCE = 1e-5
IMAGES = [render(sample_scene(seed)).crop((0, 0, 64, 64)) for seed in SPLITS["evaluation"][:3]]
WIDE_IMAGES = [render(sample_scene(seed)).crop((0, 0, 64, 32)) for seed in SPLITS["evaluation"][:3]]
TEXTS = ["a cat, 2 dogs.", "one", "the text is longer than twenty four letters", "<|endoftext|> x"]
WRITERS = {"clip": write_clip, "siglip": write_siglip}


def start(folder: Path | str, **settings: Any) -> LoTLIP:
    settings = {"corner_tokens": 0, "context_length": POSITIONS, "long_texts": 1, **settings}
    model = load_model(
        make_config("lotlip" if settings["corner_tokens"] else "lit_long", start_from=str(folder), **settings)
    )
    model.towers.eval()
    return model


@torch.no_grad()
def expected(model: Any, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    text = model.get_text_features(input_ids=ids).pooler_output
    return F.normalize(text, dim=-1), F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)


@pytest.fixture(params=sorted(WRITERS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, str]:
    return tmp_path / "model", WRITERS[request.param](tmp_path / "model"), request.param


def test_features_are_the_checkpoints(checkpoint: tuple[Path, Any, str]) -> None:
    from transformers import AutoImageProcessor

    folder, source, _ = checkpoint
    model = start(folder)
    ids, pixels = model.tokenizer(TEXTS), model.transform(IMAGES)
    text, image = expected(source, ids, pixels)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs = processor(WIDE_IMAGES, return_tensors="pt")["pixel_values"]
    assert (model.transform(WIDE_IMAGES) - theirs).abs().max() <= TOLERANCE
    assert (model.embed_texts(TEXTS) - text).abs().max() <= TOLERANCE
    assert (model.embed_images(IMAGES) - image).abs().max() <= TOLERANCE
    assert model.towers.log_scale.item() == pytest.approx(3.0)


def test_token_ids_are_those_of_the_checkpoints_tokenizer(checkpoint: tuple[Path, Any, str]) -> None:
    from transformers import AutoTokenizer

    folder, _, _ = checkpoint
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS[:3], padding="max_length", truncation=True, max_length=POSITIONS, return_tensors="pt")
    encoded = start(folder).tokenizer
    assert torch.equal(encoded(TEXTS[:3]), ids["input_ids"])
    assert encoded.encode(TEXTS[:3]).lengths == [len(tokenizer(text)["input_ids"]) for text in TEXTS[:3]]
    assert encoded.encode(TEXTS[:3]).truncated == [False, False, True]


def test_a_stretched_context_gives_no_warning_about_the_length_that_the_checkpoint_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would warn of "indexing errors" for texts beyond `model_max_length`; there are none."""
    write_clip(tmp_path / "clip")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog; an import sets it to False
    content = json.loads((tmp_path / "clip" / "tokenizer_config.json").read_text())
    (tmp_path / "clip" / "tokenizer_config.json").write_text(json.dumps({**content, "model_max_length": POSITIONS}))
    start(tmp_path / "clip", context_length=60, stretch="longclip").tokenizer.encode(["a" * 50, "a" * 90])
    load_embedder(f"clip:{tmp_path / 'clip'}", "cpu").embed_texts(["a" * 90])
    assert "longer than" not in caplog.text


def test_what_looks_like_the_end_of_a_text_is_text(tmp_path: Path) -> None:
    write_clip(tmp_path / "model")
    tokenizer = start(tmp_path / "model").tokenizer
    (ids,) = tokenizer.encode(["a <|endoftext|> b"]).ids
    assert ids.index(tokenizer.tokenizer.eos_token_id) == len(ids) - 1


@pytest.mark.parametrize("corners", [0, 1, 3])
def test_packed_texts_have_the_features_of_padded_ones(checkpoint: tuple[Path, Any, str], corners: int) -> None:
    model = start(checkpoint[0], corner_tokens=corners)
    encoded = model.tokenizer.encode([*TEXTS, "a b", "short"])
    with torch.no_grad():
        padded = model.towers.text(model.tokenizer.pad(encoded.ids))
        packed = embed_packed(model.towers.text, pack_texts(model.towers.text, encoded.ids))
    assert model.towers.text.supports_packing
    assert packed.features.shape == (6, 1 + corners, model.towers.image.dim)
    assert (packed.features - padded).abs().max() <= TOLERANCE * padded.abs().max()


def test_corner_tokens_leave_the_checkpoints_features_alone_and_differ_from_them(
    checkpoint: tuple[Path, Any, str],
) -> None:
    without, model = start(checkpoint[0]), start(checkpoint[0], corner_tokens=2)
    assert (without.embed_texts(TEXTS) - model.embed_texts(TEXTS)).abs().max() <= TOLERANCE
    with torch.no_grad():
        features = F.normalize(model.towers.text(model.tokenizer.pad(model.tokenizer.encode(TEXTS).ids)), dim=-1)
    distances = torch.cdist(features, features)[:, ~torch.eye(3, dtype=torch.bool)]
    assert distances.min() > 0.01


def test_no_summary_sees_a_corner_token_and_each_corner_sees_the_text(checkpoint: tuple[Path, Any, str]) -> None:
    model = start(checkpoint[0], corner_tokens=2)
    text = model.towers.text
    ids = model.tokenizer.pad(model.tokenizer.encode(["a cat"]).ids)
    words = text.encoder.get_input_embeddings().weight
    for index in range(3):
        words.grad = None
        text(ids)[0, index].sum().backward()
        touched = words.grad.abs().sum(dim=1) > 0
        corners = touched[text.vocab_size :]
        assert corners.tolist() == [index == 1, index == 2]
        letter = model.tokenizer.tokenizer.convert_tokens_to_ids("c")
        assert touched[letter]


def test_a_saved_model_has_the_same_features(checkpoint: tuple[Path, Any, str], tmp_path: Path) -> None:
    model = start(checkpoint[0], corner_tokens=2)
    model.save(str(tmp_path / "saved"))
    again = LoTLIP.load(str(tmp_path / "saved"))
    assert torch.equal(again.embed_texts(TEXTS), model.embed_texts(TEXTS))
    assert torch.equal(again.embed_images(IMAGES), model.embed_images(IMAGES))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["format"] == 3


def longclip_by_its_published_loop(table: Tensor) -> Tensor:
    """Long-CLIP's stretch of P positions to 20 + 4 · (P - 20), row by row (its repository, model/longclip.py)."""
    kept, rows = KEPT_POSITIONS, list(table[:KEPT_POSITIONS])
    last_step = table[-1] - table[-2]
    for index in range(kept, len(table)):
        step = table[index + 1] - table[index] if index + 1 < len(table) else last_step
        rows += [table[index] + quarter * step / 4 for quarter in range(4)]
    return torch.stack(rows)


def test_long_clips_stretch_keeps_the_features_of_texts_of_up_to_20_tokens(tmp_path: Path) -> None:
    write_clip(tmp_path / "model")
    short = ["a b c d e f", "one two", "q" * 18]  # q: 18 letters, a first and a last token
    length = KEPT_POSITIONS + 4 * (POSITIONS - KEPT_POSITIONS)
    plain, stretched = start(tmp_path / "model"), start(tmp_path / "model", context_length=length, stretch="longclip")
    assert max(plain.tokenizer.encode(short).lengths) == KEPT_POSITIONS
    assert (plain.embed_texts(short) - stretched.embed_texts(short)).abs().max() <= TOLERANCE
    name = "embeddings.position_embedding.weight"
    table = plain.towers.text.encoder.state_dict()[name]
    longer = stretched.towers.text.encoder.state_dict()[name]
    assert (longer - longclip_by_its_published_loop(table)).abs().max() <= 1e-6
    assert stretched.tokenizer.encode(TEXTS[2:3]).truncated == [True]
    assert stretched.towers.text.max_length == length


def test_linear_stretch_keeps_the_first_and_the_last_position(checkpoint: tuple[Path, Any, str]) -> None:
    plain, stretched = start(checkpoint[0]), start(checkpoint[0], context_length=70, stretch="linear")
    name = "embeddings.position_embedding.weight"
    old, new = (model.towers.text.encoder.state_dict()[name] for model in (plain, stretched))
    assert torch.equal(new[[0, -1]], old[[0, -1]])
    assert (new[::3] - old).abs().max() <= 1e-6  # 70 positions: two new ones between each pair of the 24
    assert stretched.embed_texts(TEXTS).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 30}, "has 24 positions; use at most 24, or set stretch"),
        ({"image_tower": "tiny-vit"}, "start_from: gives both towers"),
        ({"pretrained_text": False}, "start_from: gives both towers their weights"),
        ({"corner_tokens": 2, "corner_mask": False, "corner_loss": False}, "register tokens stand behind the text"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, settings: dict, message: str) -> None:
    write_clip(tmp_path / "model")
    with pytest.raises((ConfigError, UserError), match=message):
        start(tmp_path / "model", **settings)


def test_positions_that_are_enough_are_not_stretched(
    checkpoint: tuple[Path, Any, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A method brings its own `stretch`, which a model with enough positions does not need."""
    plain, stretched = start(checkpoint[0]), start(checkpoint[0], stretch="longclip")
    assert torch.equal(stretched.embed_texts(TEXTS), plain.embed_texts(TEXTS))
    assert "has 24 positions, enough for a context_length of 24; nothing is stretched" in caplog.text


def test_a_presets_towers_give_way(tmp_path: Path) -> None:
    config = make_config("lotlip", "demo", start_from="some/clip")
    assert config.start_from == "some/clip" and config.image_side == "clip:some/clip"


def test_a_model_of_another_kind_is_refused_by_its_kind(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is of model_type 'bert', and only clip and siglip are known"):
        start(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path, eos_token_id=5)
    with pytest.raises(UserError, match=r"ends texts with token .*, but the text tower reads token 5"):
        start(tmp_path)


def test_at_another_image_size_the_positions_are_resized(checkpoint: tuple[Path, Any, str]) -> None:
    model = start(checkpoint[0], image_size=64)
    assert model.transform.size == 64
    assert model.embed_images(IMAGES).shape == (3, model.towers.image.dim)


def write_open_clip(folder: Path, **vision: Any) -> str:
    """A model folder of open_clip with the given settings of the image tower. Returns its name."""
    sizes = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": WIDTH, "vision_cfg": {**sizes, **vision}, "text_cfg": text, "quick_gelu": True}
    return write_open_clip_folder(folder, config, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]})


def vit_of_a_tiny_siglip(pretrained: bool = False, **settings: Any) -> Any:
    """As timm builds `vit_base_patch16_siglip_224`, at a small size."""
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    sizes |= {"class_token": False, "global_pool": "map"}
    return _create_vision_transformer("vit_base_patch16_siglip_224", pretrained=pretrained, **{**sizes, **settings})


def write_open_clip_siglip(folder: Path) -> str:
    """A SigLIP in open_clip's layout: timm's image tower, and a tokenizer that removes punctuation."""
    register_model(vit_of_a_tiny_siglip)
    vision = {"timm_model_name": "vit_of_a_tiny_siglip", "image_size": 32, "timm_pool": "map"}
    text = {"context_length": POSITIONS, "width": 32, "heads": 2, "layers": 2, "vocab_size": len(siglip_tokenizer())}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    text |= {"hf_tokenizer_name": "some/siglip", "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {**vision, "timm_proj": "none", "timm_model_pretrained": False},
        "text_cfg": text,
    }
    folder.mkdir()
    siglip_tokenizer().save_pretrained(folder)
    return write_open_clip_folder(folder, config, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"})


def write_open_clip_folder(folder: Path, config: dict[str, Any], preprocessing: dict[str, Any]) -> str:
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = randomize(kind(**json.loads(json.dumps(settings))))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    return f"open_clip:local-dir:{folder}"


@pytest.mark.parametrize(("write", "context"), [(write_open_clip, 77), (write_open_clip_siglip, POSITIONS)])
def test_a_model_of_open_clip_has_its_features_and_token_ids(
    tmp_path: Path, write: Callable[[Path], str], context: int
) -> None:
    from lotlip_data.training.evaluation.models import load_embedder

    name = write(tmp_path / "model")
    theirs, ours = load_embedder(name), start(name, context_length=context)
    ours.save(str(tmp_path / "saved"))
    texts = ["A cat, and 2_dogs!", "an <b>odd</b> text; caf\u00e9 \u65e5\u672c", "word " * 100]
    for model in (ours, LoTLIP.load(str(tmp_path / "saved"))):
        assert (model.embed_texts(texts) - theirs.embed_texts(texts).features).abs().max() <= TOLERANCE
        assert (model.embed_images(WIDE_IMAGES) - theirs.embed_images(WIDE_IMAGES)).abs().max() <= TOLERANCE
        assert model.tokenizer.encode(texts).truncated == [False, False, True]


def test_another_architecture_of_open_clip_is_refused(tmp_path: Path) -> None:
    name = write_open_clip(tmp_path / "model", no_ln_pre=True)
    with pytest.raises(UserError, match="only plain CLIPs and SigLIPs of open_clip can be read"):
        start(name, context_length=77)


@pytest.mark.parametrize(
    ("name", "values"),
    [("ViT-B-16", 149_620_737), ("ViT-L-14-336", 427_944_193), ("ViT-B-16-SigLIP2", 375_187_970)],
)
def test_published_models_of_open_clip_have_the_names_and_shapes_of_transformers(name: str, values: int) -> None:
    """At full size on `meta`. The numbers of values are those in open_clip's table of models, to its 10,000."""
    import open_clip

    theirs = open_clip.create_model(name, device="meta")
    with torch.device("meta"):
        ours = clip_checkpoints._siglip_of(theirs) if "SigLIP" in name else clip_checkpoints._clip_of(theirs)
    renamed = open_clip_names.to_transformers(theirs.state_dict())
    expected_shapes = {key: value.shape for key, value in ours.state_dict().items()}
    actual = {
        key: value.reshape(1).shape if not value.ndim and "Sig" in name else value.shape
        for key, value in renamed.items()
    }
    assert actual == expected_shapes
    back = open_clip_names.to_open_clip(renamed)
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert sum(value.numel() for value in renamed.values()) == values


def test_the_sigmoid_loss_keeps_the_scale_and_bias_of_a_siglip_but_not_the_scale_of_a_clip(
    tmp_path: Path,
) -> None:
    write_clip(tmp_path / "clip")
    write_siglip(tmp_path / "siglip")
    initial = {"clip": (math.log(10), -10.0), "siglip": (3.0, -9.0)}
    for kind, (log_scale, bias) in initial.items():
        settings = {"start_from": str(tmp_path / kind), "context_length": 24}
        towers = load_model(make_config(**settings, loss="sigmoid")).towers
        assert (towers.log_scale.item(), towers.logit_bias.item()) == pytest.approx((log_scale, bias))
        softmax = load_model(make_config(**settings)).towers
        assert softmax.logit_bias is None and softmax.log_scale.item() == pytest.approx(3.0)


def test_prefix_padding_of_a_siglip_is_refused(tmp_path: Path) -> None:
    write_siglip(tmp_path / "siglip")
    with pytest.raises(ConfigError, match="prefix_padding: SigLIP's texts are as long as the context already"):
        load_model(make_config("debias", start_from=str(tmp_path / "siglip"), context_length=40))
