"""An exported folder gives the features of its model, in the library that it is for, and is complete or not there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.export import export_model
from lotlip_data.training.export.export import FORMATS
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.training.evaluation.tiny_clips import write_clip
from tests.training.export.tiny_models import IMAGES, TEXTS, write_model, write_roberta
from tests.training.models.tiny_models import write_clip as write_whole_clip
from tests.training.models.tiny_models import write_siglip as write_whole_siglip

TOLERANCE = {"open_clip": 1e-5, "transformers": 1e-5, "onnx": 1e-4}
SLOW_ONNX = pytest.param("onnx", marks=pytest.mark.slow)
"""Writing the graphs takes a quarter of a minute."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The folder of a model with corner tokens."""
    folder = tmp_path_factory.mktemp("models") / "model"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    """A folder with the exports of `model`, by their formats."""
    folder = tmp_path_factory.mktemp("exports")
    for form in FORMATS:
        assert export_model(str(model), str(folder / form), form)
    return folder


def assert_same_features(images, texts, model: Path, tolerance: float) -> None:
    original = LoTLIP.load(str(model))
    torch.testing.assert_close(torch.as_tensor(images), original.embed_images(IMAGES), rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.as_tensor(texts), original.embed_texts(TEXTS), rtol=0, atol=tolerance)


def run_alone(script: str, folder: Path, scratch: Path) -> dict[str, np.ndarray]:
    """Run a script in a process that cannot import this project. It saves arrays to `out`."""
    for number, image in enumerate(IMAGES):
        image.save(scratch / f"{number}.png")
    (scratch / "texts.json").write_text(json.dumps(TEXTS))
    prologue = """
import json, sys
for name in ("lotlip_data", "nltk", "punkt"):
    sys.modules[name] = None  # importing it is an error
from pathlib import Path
import numpy as np
from PIL import Image
folder, scratch = sys.argv[1], Path(sys.argv[2])
texts = json.loads((scratch / "texts.json").read_text())
images = [Image.open(scratch / f"{number}.png") for number in range(len(list(scratch.glob("?.png"))))]
out = {}
"""
    script = f"{prologue}\n{script}\nnp.savez(scratch / 'out.npz', **out)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hub"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(scratch)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=scratch,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return dict(np.load(scratch / "out.npz"))


@torch.no_grad()
def test_open_clip_gives_the_same_features(exported, model, monkeypatch):
    import open_clip

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = f"local-dir:{exported / 'open_clip'}"
    loaded, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    images = loaded.eval().encode_image(torch.stack([transform(image) for image in IMAGES]), normalize=True)
    assert_same_features(images, loaded.encode_text(tokens, normalize=True), model, TOLERANCE["open_clip"])
    assert torch.equal(loaded.logit_scale, LoTLIP.load(str(model)).towers.log_scale)


def test_eval_and_embed_load_the_open_clip_folder(exported, model):
    embedder = load_embedder(f"open_clip:local-dir:{exported / 'open_clip'}", "cpu")
    embedded = embedder.embed_texts(TEXTS)
    assert_same_features(embedder.embed_images(IMAGES), embedded.features, model, TOLERANCE["open_clip"])
    lengths = LoTLIP.load(str(model)).tokenizer.encode(TEXTS).lengths
    assert list(embedded.lengths) == [length - 2 for length in lengths]  # without corner tokens


def test_transformers_gives_the_same_features_without_this_project(exported, model, tmp_path):
    folder = shutil.copytree(exported / "transformers", tmp_path / "moved")
    script = """
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=images, text=texts, return_tensors="pt")
with torch.no_grad():
    both = model(**inputs)
    out["image_features"] = model.get_image_features(**image_processor(images, return_tensors="pt"))
    one_by_one = [model.get_text_features(**tokenizer(text, return_tensors="pt")) for text in texts]
    out["text_features"] = torch.cat(one_by_one)
    out["encoded"] = model.get_text_features(torch.tensor([tokenizer.encode(texts[0])]))
out |= {"images": both.image_embeds, "texts": both.text_embeds, "logits": both.logits_per_image}
"""
    out = run_alone(script, folder, tmp_path)
    assert_same_features(out["images"], out["texts"], model, TOLERANCE["transformers"])
    original = LoTLIP.load(str(model))
    unit = (F.normalize(torch.from_numpy(out[name]), dim=-1) for name in ("image_features", "text_features"))
    assert_same_features(*unit, model, TOLERANCE["transformers"])
    similarity = original.embed_images(IMAGES) @ original.embed_texts(TEXTS).T
    np.testing.assert_allclose(out["logits"], (original.towers.scale * similarity).detach(), atol=1e-4)
    np.testing.assert_allclose(out["encoded"][0], out["text_features"][0], atol=1e-5)


def test_onnx_gives_the_same_features_without_this_project_and_without_torch(exported, model, tmp_path):
    folder = shutil.copytree(exported / "onnx", tmp_path / "moved")
    script = """
sys.modules["torch"] = sys.modules["transformers"] = None
sys.path.insert(0, folder)
from lotlip_onnx import LoTLIP
model = LoTLIP(folder)
out = {"images": model.embed_images(images), "texts": model.embed_texts(texts)}
out["one_image"] = model.embed_images(images[:1])
out["one_text"] = model.embed_texts(["a"])
"""
    out = run_alone(script, folder, tmp_path)
    assert_same_features(out["images"], out["texts"], model, TOLERANCE["onnx"])
    np.testing.assert_allclose(out["one_image"], out["images"][:1], atol=1e-5)
    np.testing.assert_allclose(out["one_text"], LoTLIP.load(str(model)).embed_texts(["a"]), atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["image"]["input"]["shape"] == ["N", 3, 96, 96] and config["text"]["context_length"] == 38


@pytest.mark.parametrize("form", ["open_clip", "transformers", SLOW_ONNX])
def test_a_roberta_is_exported_too(form, tmp_path):
    model = write_model(tmp_path / "model", text_tower=write_roberta(tmp_path / "roberta"))
    export_model(str(tmp_path / "model"), str(tmp_path / form), form)
    reader = FORMATS[form].load(tmp_path / form)
    texts = [text for text in TEXTS if "sep" not in text]
    torch.testing.assert_close(reader.embed_texts(texts), model.embed_texts(texts), rtol=0, atol=TOLERANCE[form])


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({"method": "register"}, "transformers"),
        ({"method": "register"}, "onnx"),
        ({"text_form": "punkt"}, "transformers"),
        pytest.param({"text_form": "punkt"}, "onnx", marks=pytest.mark.slow),
    ],
)
def test_what_open_clip_cannot_hold_is_exported_as_code(settings, form, tmp_path):
    model = write_model(tmp_path / "model", **settings)
    with pytest.raises(UserError, match="use --format transformers or onnx"):
        export_model(str(tmp_path / "model"), str(tmp_path / "open_clip"), "open_clip")
    assert not (tmp_path / "open_clip" / "open_clip_config.json").exists()
    export_model(str(tmp_path / "model"), str(tmp_path / form), form)
    reader = FORMATS[form].load(tmp_path / form)
    texts = [*TEXTS, "One line\nand a second one. Is it? Yes! Dr. Smith."]
    torch.testing.assert_close(reader.embed_texts(texts), model.embed_texts(texts), rtol=0, atol=TOLERANCE[form])


def image_tower(kind: str, folder: Path) -> str:
    """Write an image tower that is no plain ViT. Returns its folder."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 96, "patch_size": 32}
    torch.manual_seed(0)
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=64)).save_pretrained(folder)
    else:
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("form", ["transformers", SLOW_ONNX])
@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_other_image_towers_are_exported_as_code_and_refused_for_open_clip(kind, form, tmp_path):
    model = write_model(tmp_path / "model", image_tower=image_tower(kind, tmp_path / kind))
    with pytest.raises(UserError, match="only plain ViTs"):
        export_model(str(tmp_path / "model"), str(tmp_path / "open_clip"), "open_clip")
    export_model(str(tmp_path / "model"), str(tmp_path / form), form)
    features = FORMATS[form].load(tmp_path / form).embed_images(IMAGES)
    torch.testing.assert_close(features, model.embed_images(IMAGES), rtol=0, atol=TOLERANCE[form])


@pytest.mark.slow
def test_open_clip_gets_the_timm_tower_where_timm_has_it(tmp_path):
    """The paper's towers keep timm's name, as in the authors' code."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    model = write_model(tmp_path / "model", image_tower=str(tmp_path / "vit"))
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), "open_clip")
    description = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert description["model_cfg"]["vision_cfg"]["timm_model_name"] == "vit_tiny_patch16_224"
    reader = FORMATS["open_clip"].load(tmp_path / "out")
    torch.testing.assert_close(reader.embed_images(IMAGES), model.embed_images(IMAGES), rtol=0, atol=1e-5)
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert torch.equal(weights["visual.trunk.pos_embed"], model.towers.image.vit.embeddings.position_embeddings)


def test_a_vit_without_bias_in_its_attention_becomes_open_clips_own(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=96,
        patch_size=32,
        qkv_bias=False,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    model = write_model(tmp_path / "model", image_tower=str(tmp_path / "vit"))
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), "open_clip")
    reader = FORMATS["open_clip"].load(tmp_path / "out")
    torch.testing.assert_close(reader.embed_images(IMAGES), model.embed_images(IMAGES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["open_clip", "transformers", SLOW_ONNX])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_training_that_started_from_a_clip_is_exported(kind, form, tmp_path):
    """Their corner tokens stand behind the text. A CLIP becomes the libraries' own; open_clip has no such SigLIP."""
    {"clip": write_whole_clip, "siglip": write_whole_siglip}[kind](tmp_path / "start")
    settings = {"start_from": str(tmp_path / "start"), "context_length": 20, "corner_tokens": 2}
    load_model(make_config("lotlip", **settings)).save(str(tmp_path / "model"))
    if (kind, form) == ("siglip", "open_clip"):
        with pytest.raises(UserError, match="open_clip has no text tower of model_type 'siglip_text_model'"):
            export_model(str(tmp_path / "model"), str(tmp_path / form), form)
        return
    export_model(str(tmp_path / "model"), str(tmp_path / form), form)
    reader = FORMATS[form].load(tmp_path / form)
    model = LoTLIP.load(str(tmp_path / "model"))
    torch.testing.assert_close(reader.embed_images(IMAGES), model.embed_images(IMAGES), rtol=0, atol=TOLERANCE[form])
    texts = [*TEXTS, "<|endoftext|> x", "a.\nb"]
    torch.testing.assert_close(reader.embed_texts(texts), model.embed_texts(texts), rtol=0, atol=TOLERANCE[form])


def test_a_clip_is_loaded_by_transformers_without_code(tmp_path):
    from transformers import AutoModel, CLIPModel

    write_whole_clip(tmp_path / "start")
    settings = {"start_from": str(tmp_path / "start"), "context_length": 20, "corner_tokens": 2}
    load_model(make_config("lotlip", **settings)).save(str(tmp_path / "model"))
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), "transformers")
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(loaded, CLIPModel)
    assert not list((tmp_path / "out").glob("modeling_*"))
    model = LoTLIP.load(str(tmp_path / "model"))
    with torch.no_grad():
        features = loaded.eval().get_image_features(model.transform(IMAGES)).pooler_output
    torch.testing.assert_close(F.normalize(features, dim=-1), model.embed_images(IMAGES), rtol=0, atol=1e-5)


def test_a_hub_id_is_where_open_clip_reads_the_text_towers_configuration(model, tmp_path):
    export_model(str(model), str(tmp_path / "out"), "open_clip", "org/name")
    text = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["hf_model_name"] == text["hf_tokenizer_name"] == "org/name"
    for wrong in ("name", "org/", "./out", "org/name/more", "hf-hub:org/name"):
        with pytest.raises(UserError, match="is no id of a repository; give ORG/NAME"):
            export_model(str(model), str(tmp_path / "other"), "open_clip", wrong)
    with pytest.raises(UserError, match="is for --format open_clip"):
        export_model(str(model), str(tmp_path / "other"), "onnx", "org/name")


@pytest.mark.parametrize(
    ("form", "hub_id", "is_bound"),
    [("open_clip", None, True), ("open_clip", "org/name", False), ("transformers", None, False)],
)
def test_a_folder_that_cannot_simply_be_moved_says_so(form, hub_id, is_bound, model, tmp_path, caplog):
    caplog.set_level("INFO")
    export_model(str(model), str(tmp_path / "out"), form, hub_id)
    assert ("open_clip_config.json: names the folder's path; after moving" in caplog.text) == is_bound


def test_an_export_is_done_once_and_never_over_another(model, tmp_path):
    out = str(tmp_path / "out")
    assert export_model(str(model), out, "transformers")
    assert not export_model(str(model), out, "transformers")
    with pytest.raises(UserError, match="another model or format"):
        export_model(str(model), out, "onnx")
    with pytest.raises(UserError, match="is the folder of the model"):
        export_model(str(model), str(model), "onnx")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="holds other files"):  # before the model is loaded
        export_model("org/model-that-is-not-here", str(tmp_path / "photos"), "onnx")
    with pytest.raises(UserError, match="is not one of open_clip, transformers, onnx"):
        export_model(str(model), str(tmp_path / "new"), "tensorflow")
    with pytest.raises(UserError, match="not a model folder of this project"):
        export_model(f"clip:{write_clip(tmp_path / 'clip')}", str(tmp_path / "new"), "onnx")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", ["open_clip", "transformers", SLOW_ONNX])
def test_a_killed_export_leaves_nothing_that_loads_and_the_next_one_finishes_it(model, form, tmp_path, monkeypatch):
    out = tmp_path / "out"

    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    monkeypatch.setattr(type(FORMATS[form]), "load", kill)  # everything is written, and nothing is checked
    with pytest.raises(Killed):
        export_model(str(model), str(out), form)
    monkeypatch.undo()
    assert not (out / FORMATS[form].mark).exists()
    monkeypatch.setattr("lotlip_data.training.export.export._write_mark", kill)
    with pytest.raises(Killed):
        export_model(str(model), str(out), form)
    monkeypatch.undo()
    assert not (out / FORMATS[form].mark).exists()
    assert export_model(str(model), str(out), form)
    assert (out / FORMATS[form].mark).exists() and not list(out.glob("*.part"))


def test_other_features_after_writing_are_an_error(model, tmp_path, monkeypatch):
    from lotlip_data.training.export import transformers_folder

    write = transformers_folder.write_weights

    def write_changed(file, weights):
        write(file, {name: value + 0.1 if "proj" in name else value for name, value in weights.items()})

    monkeypatch.setattr(transformers_folder, "write_weights", write_changed)
    with pytest.raises(UserError, match="gives other features"):
        export_model(str(model), str(tmp_path / "out"), "transformers")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_damaged_or_diverged_model_is_refused_before_anything_is_written(model, tmp_path):
    damaged = shutil.copytree(model, tmp_path / "damaged")
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        export_model(str(damaged), str(tmp_path / "out"), "onnx")
    diverged = shutil.copytree(model, tmp_path / "diverged")
    weights = load_file(diverged / "model.safetensors")
    weights["text.proj.weight"][:] = float("nan")
    save_file(weights, diverged / "model.safetensors")
    config = json.loads((diverged / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("files", "content_sha256")}
    (diverged / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="zero or not finite"):
        export_model(str(diverged), str(tmp_path / "out"), "onnx")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_of_the_extra_is_named(model, tmp_path, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(UserError, match=r"onnxruntime, which is not installed; pip install 'lotlip-data\[onnx\]'"):
        export_model(str(model), str(tmp_path / "out"), "onnx")


@torch.no_grad()
@pytest.mark.parametrize("start", ["towers", "clip"])
def test_the_bias_of_the_logits_is_exported(tmp_path, start, monkeypatch):
    """A model of the sigmoid loss has it; open_clip's and transformers' logits are the model's."""
    import open_clip
    from transformers import AutoModel, AutoProcessor

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    if start == "clip":
        write_whole_clip(tmp_path / "clip")
        config = make_config(start_from=str(tmp_path / "clip"), context_length=24, loss="sigmoid")
        load_model(config).save(str(folder))
    else:
        write_model(folder, loss="sigmoid")
    model = LoTLIP.load(str(folder))
    expected = model.towers.scale * model.embed_images(IMAGES) @ model.embed_texts(TEXTS).T + model.towers.logit_bias
    for form in ("open_clip", "transformers"):
        assert export_model(str(folder), str(tmp_path / form), form)
    name = f"local-dir:{tmp_path / 'open_clip'}"
    loaded, _, transform = open_clip.create_model_and_transforms(name)
    pixels = torch.stack([transform(image) for image in IMAGES])
    logits, _ = loaded.eval().get_logits(pixels, open_clip.get_tokenizer(name)(TEXTS))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
    theirs = AutoModel.from_pretrained(tmp_path / "transformers", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "transformers", trust_remote_code=True)
    logits = theirs(**processor(images=IMAGES, text=TEXTS, return_tensors="pt")).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_configuration_of_onnx_has_the_factor_and_the_bias_of_the_logits(tmp_path, loss):
    model = write_model(tmp_path / "model", loss=loss)
    content = FORMATS["onnx"].describe(model, str(tmp_path))
    assert content["scale"] == pytest.approx(model.towers.scale.item())
    assert content.get("bias") == (None if loss == "softmax" else model.towers.logit_bias.item())
