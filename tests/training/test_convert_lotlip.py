"""`convert lotlip` converts the authors' layout to ours and back bit for bit, and keeps the features."""

import collections
import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from lotlip_data.manifests.digests import JSON_KEY
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.main import app
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.convert_lotlip import convert, read_checkpoint
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.training.models import reference
from tests.training.models.reference import META, expected
from tests.training.models.test_towers import TINY, TOLERANCE, random_timm, timm_features, write_timm
from tests.training.run_fixture import write_towers


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of two towers, for the configurations and the tokenizer, and timm's ViT itself."""
    folder = tmp_path_factory.mktemp("towers")
    text = write_towers(folder)["text_tower"]
    vit = random_timm(num_classes=0, **{**TINY, "img_size": 96})
    image = write_timm(folder / "timm", vit, {**TINY, "img_size": 96})
    return {"image_tower": image, "text_tower": text}, vit


def random_checkpoint(towers, corners=2, position_ids=True):
    """A random state_dict of the authors' model in open_clip. Old versions of transformers save position_ids too."""
    config = BertConfig.from_pretrained(towers[0]["text_tower"])
    config.vocab_size += corners
    torch.manual_seed(1)
    bert = BertModel(config).state_dict()
    ids = {"embeddings.position_ids": torch.arange(config.max_position_embeddings)[None]} if position_ids else {}
    return collections.OrderedDict(
        {
            "logit_scale": torch.tensor(3.7),
            **{f"visual.trunk.{name}": value for name, value in towers[1].state_dict().items()},
            **{f"text.transformer.{name}": value for name, value in (ids | bert).items()},
            "text.proj.weight": torch.randn(48, config.hidden_size) / 8,
        }
    )


def save(file, weights, form):
    if form == "safetensors":
        save_file(weights, file.with_suffix(".safetensors"))
        return file.with_suffix(".safetensors")
    if "module" in form:
        weights = {f"module.{name}": value for name, value in weights.items()}
    if "state_dict" in form:
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.98)}]}
        weights = {"epoch": 10, "name": "lotlip", "state_dict": weights, "optimizer": optimizer}
    torch.save(weights, file.with_suffix(".pt"))
    return file.with_suffix(".pt")


def identical(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


@pytest.mark.parametrize("form", ["plain", "state_dict", "module", "module in state_dict", "safetensors"])
@pytest.mark.parametrize("position_ids", [True, False])
def test_the_authors_layout_to_ours_and_back_keeps_every_bit(towers, tmp_path, form, position_ids):
    weights = random_checkpoint(towers, position_ids=position_ids)
    source = save(tmp_path / "source", weights, form)
    assert convert(str(source), str(tmp_path / "ours"), **towers[0])
    assert not convert(str(source), str(tmp_path / "ours"), **towers[0])
    for end in (".pt", ".safetensors"):
        assert convert(str(tmp_path / "ours"), str(tmp_path / f"back{end}"))
        assert identical(read_checkpoint(tmp_path / f"back{end}"), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(towers, tmp_path, dtype):
    weights = {name: value if "ids" in name else value.to(dtype) for name, value in random_checkpoint(towers).items()}
    source = save(tmp_path / "source", weights, "plain")
    convert(str(source), str(tmp_path / "ours"), **towers[0])
    convert(str(tmp_path / "ours"), str(tmp_path / "back.pt"))
    assert identical(read_checkpoint(tmp_path / "back.pt"), weights)
    assert LoTLIP.load(str(tmp_path / "ours")).embed_texts(["A text."]).dtype == torch.float32


@pytest.mark.parametrize("corners", [0, 2, 4])
def test_our_layout_to_the_authors_and_back_keeps_every_bit(towers, tmp_path, corners):
    method = {"method": "lotlip", "corner_tokens": corners} if corners else {"method": "lit"}
    load_model(make_config(**towers[0], **method, context_length=128)).save(str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "theirs.pt"))
    convert(str(tmp_path / "theirs.pt"), str(tmp_path / "again"), **towers[0])
    assert identical(*(load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again")))
    original, converted = (LoTLIP.load(str(tmp_path / name)) for name in ("ours", "again"))
    texts, pictures = ["A red square. It is large.", ""], [Image.new("RGB", (120, 96), "red")]
    assert torch.equal(original.embed_texts(texts), converted.embed_texts(texts))
    assert torch.equal(original.embed_images(pictures), converted.embed_images(pictures))
    assert original.config()["transform"] == converted.config()["transform"]


@pytest.mark.parametrize("corners", META["corner_tokens"])
def test_converted_features_agree_with_the_authors(tmp_path, corners):
    """The text features are those recorded from the authors' code, the image features are timm's."""
    tower = reference.text_tower(corners, "sdpa")
    tower.encoder.config.save_pretrained(tmp_path / "bert")
    reference.tokenizer(corners).tokenizer.save_pretrained(tmp_path / "bert")
    vit = random_timm(num_classes=0, **TINY)
    image_tower = write_timm(tmp_path / "timm", vit, TINY)
    weights = {f"text.transformer.{name}": value for name, value in tower.encoder.state_dict().items()}
    weights |= {f"visual.trunk.{name}": value for name, value in vit.state_dict().items()}
    weights |= {"text.proj.weight": tower.proj.weight.detach(), "logit_scale": torch.tensor(1.0)}
    source = save(tmp_path / "source", weights, "plain")
    convert(
        str(source),
        str(tmp_path / "ours"),
        image_tower=image_tower,
        text_tower=str(tmp_path / "bert"),
    )
    model = LoTLIP.load(str(tmp_path / "ours"))
    ids = model.tokenizer(META["texts"])
    assert torch.equal(ids, expected(f"m{corners}.input_ids").long())
    with torch.no_grad():
        features = model.towers.text(ids)
    torch.testing.assert_close(features, expected(f"m{corners}.features"), rtol=0, atol=TOLERANCE)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (model.towers.image(pixels) - timm_features(vit, pixels)).abs().max() <= TOLERANCE


def test_open_clip_and_the_converted_model_agree(towers, tmp_path, monkeypatch):
    """A model that open_clip built and saved. open_clip has no corner tokens."""
    name, text_tower = "vit_tiny_patch16_224", towers[0]["text_tower"]
    torch.manual_seed(0)
    theirs = open_clip.model.CustomTextCLIP(
        embed_dim=192,
        vision_cfg={"timm_model_name": name, "timm_pool": "token", "timm_proj": "none"},
        text_cfg={
            "hf_model_name": text_tower,
            "hf_model_pretrained": False,
            "hf_proj_type": "linear",
            "hf_pooler_type": "cls_pooler",
        },
    ).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "open_clip.pt")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"architecture": name}))
    towers_of = {"image_tower": str(tmp_path / "vit"), "text_tower": text_tower}
    convert(str(tmp_path / "open_clip.pt"), str(tmp_path / "ours"), **towers_of)
    ours = LoTLIP.load(str(tmp_path / "ours"))
    pixels, ids = torch.randn(2, 3, 224, 224), ours.tokenizer(["A red square. It is large.", "Two."])
    with torch.no_grad():
        assert (ours.towers.image(pixels) - theirs.encode_image(pixels)).abs().max() <= TOLERANCE
        assert (ours.towers.text(ids)[:, 0] - theirs.encode_text(ids)).abs().max() <= TOLERANCE
        assert torch.equal(ours.towers.scale, theirs.logit_scale.exp())
    convert(str(tmp_path / "ours"), str(tmp_path / "back.pt"))
    theirs.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))  # strict: every name is open_clip's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"visual.trunk.blocks.0.ls1.gamma": torch.ones(48)},
            r"visual\.trunk\.blocks\.0\.ls1\.gamma is missing, or is not a tensor",
        ),
        (
            {"visual.trunk.head.weight": torch.ones(7, 48)},
            r"visual\.trunk\.head\.weight is missing, or is not",
        ),
        ({"logit_bias": torch.tensor(0.0)}, "logit_bias is missing, or is not a tensor"),
        ({"text.proj.weight": torch.ones(48, 31)}, "1 weights have the wrong shape, such as text.proj.weight"),
        ({"text.transformer.embeddings.position_ids": torch.ones(1, 128)}, "is not 0, 1, 2"),
        ({"module.x": torch.ones(1)}, "only some names begin with module"),
        ({"logit_scale": None}, "1 weights are missing, such as log_scale"),
        ({"visual.trunk.pos_embed": None}, r"has no visual\.trunk\.pos_embed; give a LoTLIP checkpoint"),
    ],
)
def test_the_error_for_an_unknown_missing_or_misshapen_tensor_names_it(towers, tmp_path, change, message):
    weights = {name: value for name, value in {**random_checkpoint(towers), **change}.items() if value is not None}
    source = save(tmp_path / "source", weights, "plain")
    with pytest.raises(UserError, match=message):
        convert(str(source), str(tmp_path / "ours"), **towers[0])
    assert not list((tmp_path / "ours").iterdir())


def test_a_file_that_is_not_a_checkpoint_is_rejected(towers, tmp_path):
    source = save(tmp_path / "source", random_checkpoint(towers), "plain")
    whole = source.read_bytes()
    source.write_bytes(whole[:5000])
    with pytest.raises(UserError, match="is damaged or was not fetched whole"):
        convert(str(source), str(tmp_path / "ours"), **towers[0])
    torch.save({"state_dict": {"x": Image.new("RGB", (1, 1))}}, source)
    with pytest.raises(UserError, match="holds code or objects besides tensors"):
        convert(str(source), str(tmp_path / "ours"), **towers[0])
    torch.save({"epoch": 3}, source)
    with pytest.raises(UserError, match="has no mapping of names to tensors"):
        convert(str(source), str(tmp_path / "ours"), **towers[0])
    source.write_bytes(whole)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        convert(str(source), str(tmp_path / "used"), **towers[0])
    with pytest.raises(UserError, match="give the right --text-tower"):
        convert(str(source), str(tmp_path / "ours"), image_tower=towers[0]["image_tower"])


def test_a_model_that_the_authors_layout_cannot_represent_is_rejected(towers, tmp_path, caplog):
    load_model(make_config(**towers[0], method="lotlip", context_length=128)).save(str(tmp_path / "ours"))
    file = tmp_path / "ours" / "config.json"
    config = json.loads(file.read_text())
    del config[JSON_KEY]
    with pytest.raises(UserError, match=r"ends in \.pt or \.safetensors"):
        convert(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    for part, message in (
        ({"mask": False}, "have no attention mask"),
        ({"image": {**config["towers"]["image"], "layer_norm_eps": 1e-2}}, "layer_norm_eps is 0.01"),
    ):
        file.write_text(json.dumps({**config, "towers": {**config["towers"], **part}}))
        with pytest.raises(UserError, match=message):
            convert(str(tmp_path / "ours"), str(tmp_path / "theirs.pt"))
    file.write_text(json.dumps({**config, "text_form": "punkt"}))
    caplog.clear()
    convert(str(tmp_path / "ours"), str(tmp_path / "theirs.pt"))
    assert "split by punkt" in caplog.messages[0]
    with pytest.raises(UserError, match="exists already"):
        convert(str(tmp_path / "ours"), str(tmp_path / "theirs.pt"))


def test_the_tiny_towers_convert_to_the_authors_layout_and_back_by_their_names(tmp_path, caplog):
    load_model(make_config(preset="demo", context_length=128)).save(str(tmp_path / "ours"))
    caplog.clear()
    convert(str(tmp_path / "ours"), str(tmp_path / "theirs.pt"))
    assert "layer_norm_eps is 1e-12" in caplog.messages[0] and "last digits" in caplog.messages[0]
    convert(str(tmp_path / "theirs.pt"), str(tmp_path / "back"), image_tower="tiny-vit", text_tower="tiny-bert")
    scene = render(sample_scene(1), 96)
    before, after = (LoTLIP.load(str(tmp_path / name)).embed_images([scene]) for name in ("ours", "back"))
    assert torch.allclose(before, after, atol=1e-4)


def test_the_command_converts_and_eval_reads_the_result(towers, tmp_path):
    source = save(tmp_path / "source", random_checkpoint(towers), "state_dict")
    options = ["--image-tower", towers[0]["image_tower"], "--text-tower", towers[0]["text_tower"]]
    run = CliRunner().invoke(app, ["convert", "lotlip", str(source), str(tmp_path / "ours"), *options])
    assert run.exit_code == 0, run.output
    assert "each compared with its source; 2 corner tokens, images of 96 pixels" in run.output
    missing = CliRunner().invoke(app, ["convert", "lotlip", str(tmp_path / "none.pt"), str(tmp_path / "x")])
    assert missing.exit_code == 2 and "there is no such folder" in missing.output
    run = CliRunner().invoke(app, ["eval", str(tmp_path / "ours"), "--json"])
    assert run.exit_code == 0, run.output
    assert "retrieval" in (tmp_path / "eval-ours.json").read_text()
