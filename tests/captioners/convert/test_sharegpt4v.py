"""A converted ShareGPT4V computes what the published one does, for all file formats and in both engines."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.convert.sharegpt4v import convert
from lotlip_data.captioners.registry import load_engine
from lotlip_data.manifests.checkpoints.weights import read_weights, weight_files
from tests.captioners.convert import sharegpt4v_reference as reference
from tests.captioners.convert import tiny_sharegpt4v

TOLERANCE = 1e-4
LENGTH = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A published checkpoint and its conversion."""
    folder = tmp_path_factory.mktemp("sharegpt4v")
    source = tiny_sharegpt4v.write(folder / "published")
    convert(str(source), str(folder / "converted"))
    return source, folder / "converted"


def pictures(count, size=(60, 40)):
    noise = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def logits(folder, pixels_BCHW):
    """Return (B, L, V) logits of transformers' model, and the prompt's ids with -200 for the image."""
    model, loading_info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(loading_info.values())
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(images=pictures(1), text=tiny_sharegpt4v.PROMPT, return_tensors="pt")
    ids = inputs["input_ids"].expand(len(pixels_BCHW), -1)
    with torch.no_grad():
        outputs = model(input_ids=ids, pixel_values=pixels_BCHW).logits
    image, prompt = model.config.image_token_id, ids[0].tolist()
    first, count = prompt.index(image), prompt.count(image)
    return outputs, [*prompt[:first], -200, *prompt[first + count :]]


@pytest.mark.parametrize(
    ("file_format", "shards", "stray"), list(itertools.product(["bin", "safetensors"], [1, 3], [False, True]))
)
def test_logits_equal_those_of_the_published_layout(file_format, shards, stray, tmp_path, caplog):
    """Within 1e-4, for the same token ids; the tower's file format varies too."""
    tower_format = "safetensors" if stray else "bin"
    source = tiny_sharegpt4v.write(
        tmp_path / "published", file_format=file_format, shards=shards, stray_tower=stray, tower_format=tower_format
    )
    caplog.clear()
    assert convert(str(source), str(tmp_path / "out"))
    assert any("ignored 56 model.vision_tower.*" in line for line in caplog.messages) == stray
    pixels = torch.randn(3, 3, tiny_sharegpt4v.IMAGE, tiny_sharegpt4v.IMAGE, generator=torch.Generator().manual_seed(1))
    actual, ids = logits(tmp_path / "out", pixels)
    assert ids == reference.prompt_ids(source)
    expected = reference.forward(source, pixels, ids)
    assert expected.std() > 1  # far above the tolerance of 1e-4
    assert (expected[0] - expected[1]).abs().max() > 1  # the image matters
    vocabulary = expected.shape[-1]
    assert (actual[..., :vocabulary] - expected).abs().max() <= TOLERANCE


def test_added_tokens_are_never_the_most_likely(pair):
    source, converted = pair
    pixels = torch.randn(4, 3, tiny_sharegpt4v.IMAGE, tiny_sharegpt4v.IMAGE, generator=torch.Generator().manual_seed(2))
    actual, _ = logits(converted, pixels)
    vocabulary = len(tiny_sharegpt4v.read(source)["lm_head.weight"])
    assert actual.shape[-1] % 64 == 0 and actual.shape[-1] > vocabulary
    assert actual.argmax(-1).max() < vocabulary
    added, mean = actual[..., vocabulary:], actual[..., :vocabulary].mean(-1, keepdim=True)
    assert (added - mean).abs().max() <= TOLERANCE


def test_every_published_tensor_is_kept_bit_for_bit_under_its_hub_name(pair):
    source, converted = pair
    written = {}
    for file in weight_files(converted):
        written |= read_weights(file)
    published = tiny_sharegpt4v.read(source)
    rows = len(published["lm_head.weight"])
    assert torch.equal(written["language_model.lm_head.weight"][:rows], published["lm_head.weight"])
    assert torch.equal(written["multi_modal_projector.linear_2.bias"], published["model.mm_projector.2.bias"])
    name = "layers.1.mlp.down_proj.weight"
    assert torch.equal(written[f"language_model.model.{name}"], published[f"model.{name}"])
    name = "vision_model.encoder.layers.2.self_attn.out_proj.bias"
    assert torch.equal(written[f"vision_tower.{name}"], tiny_sharegpt4v.read(source.parent / "tower")[name])
    kept = [name for name in published if not name.endswith("inv_freq")]
    tower = [n for n in tiny_sharegpt4v.read(source.parent / "tower") if not n.endswith("position_ids")]
    assert len(written) == len(kept) + len(tower)


def test_images_are_padded_to_a_square_in_the_mean_colour_as_in_the_published_config(pair):
    """image_aspect_ratio is pad: no part of a wide image is cropped."""
    processor = AutoProcessor.from_pretrained(pair[1], backend="pil").image_processor
    wide = Image.new("RGB", (64, 32), "white")
    pixels = processor(wide, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, tiny_sharegpt4v.IMAGE, tiny_sharegpt4v.IMAGE)
    assert pixels[:, :4].abs().max() < 0.02 and pixels[:, -4:].abs().max() < 0.02
    assert pixels[:, 10:-10].min() > 1.9


def test_the_chat_template_gives_the_prompt_of_the_training(pair):
    processor = AutoProcessor.from_pretrained(pair[1], backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": "Describe the image in detail."}]
    messages = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == tiny_sharegpt4v.PROMPT


def test_a_complete_clip_serves_as_the_tower(pair, tmp_path):
    """Like openai/clip-vit-large-patch14-336; its text half is left out."""
    source, converted = pair
    shutil.copytree(source.parent / "tower", tmp_path / "clip")
    weights = tiny_sharegpt4v.read(tmp_path / "clip")
    weights |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.tensor(1.0)}
    torch.save(weights, tmp_path / "clip" / "pytorch_model.bin")
    convert(str(source), str(tmp_path / "out"), vision_tower=str(tmp_path / "clip"))
    for name in sorted(path.name for path in converted.glob("*.safetensors")):
        assert (tmp_path / "out" / name).read_bytes() == (converted / name).read_bytes()


def captioner(model):
    return CaptionerConfig(name="x", kind="sharegpt4v", model=str(model), max_new_tokens=LENGTH, dtype="float32")


def test_captions_equal_those_of_the_published_layout(pair, caption_all):
    """The independent forward pass decodes greedily, one token after another."""
    source, converted = pair
    config = captioner(converted)
    engine = load_engine(config, "transformers")
    images = pictures(2)
    captions = caption_all(engine, images)
    for image, caption in zip(images, captions, strict=True):
        ids = reference.prompt_ids(source)
        for _ in range(LENGTH):
            ids.append(reference.forward(source, engine._preprocessor.pixels(image), ids)[0, -1].argmax().item())
        assert caption == engine._preprocessor.decode(ids[-LENGTH:], config)
    engine.close()
    assert captions[0].text != captions[1].text


@pytest.mark.slow
def test_both_engines_return_the_same_captions(pair, scenes, caption_all):
    captions = {}
    for name in ("transformers", "vllm"):
        engine = load_engine(captioner(pair[1]), name)
        captions[name] = caption_all(engine, [*scenes(12), *pictures(4), *pictures(4, (30, 90))])
        engine.close()
    assert captions["vllm"] == captions["transformers"]
    assert len({caption.text for caption in captions["vllm"]}) > 10


def test_tensors_of_a_bin_file_that_share_memory_are_written_separately(pair, tmp_path):
    """They are parts of one larger tensor, which torch.save stores as a whole."""
    source, converted = pair
    shutil.copytree(source.parent, tmp_path / "published")
    model = tmp_path / "published" / "model"
    for file in model.glob("*.bin"):
        weights = torch.load(file, weights_only=True)
        together = torch.cat([weight.flatten() for weight in weights.values()])
        parts = together.split([weight.numel() for weight in weights.values()])
        torch.save({n: part.view(weights[n].shape) for n, part in zip(weights, parts, strict=True)}, file)
    convert(str(model), str(tmp_path / "out"))
    for file in weight_files(converted):
        written, expected = read_weights(tmp_path / "out" / file.name), read_weights(file)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[name], expected[name]) for name in expected)
