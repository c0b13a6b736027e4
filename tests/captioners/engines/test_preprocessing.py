"""What a model reads: the text of the prompt, and images that can share it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.engines.preprocessing import Preprocessor
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.models.instructblip import InstructBlip
from lotlip_data.captioners.models.llava import Llava, ShareGPT4V
from tests.captioners import tiny_checkpoints

PROMPT = "Describe the image in detail."
PARTS = (
    "{% for message in messages %}[{{ message['role'] }}] {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)
TEXT_ONLY = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'].strip() }}{% endfor %} [model]"


@pytest.fixture
def model(random_llava: str, tmp_path: Path) -> Path:
    """A LLaVA without a chat template."""
    shutil.copytree(random_llava, tmp_path / "model")
    return tmp_path / "model"


def load(model: Path, captioner: Captioner | None = None, **settings: Any) -> Preprocessor:
    captioner = captioner or Llava()
    kind = type(captioner).__name__.lower()
    return Preprocessor(captioner, CaptionerConfig(name="x", kind=kind, model=str(model), max_new_tokens=8, **settings))


def test_without_a_chat_template_the_kinds_template_is_used(model: Path) -> None:
    assert load(model).first.text == f"USER: <image>\n{PROMPT} ASSISTANT:"


@pytest.mark.parametrize(
    ("chat_template", "text"),
    [
        (PARTS, f"[user] <image> {PROMPT} [assistant]"),
        ("{{ bos_token }}" + PARTS, f"[user] <image> {PROMPT} [assistant]"),  # the tokenizer adds the start token
        ("{{ strftime_now('%d %b %Y') }} " + PARTS, f"26 Jul 2024 [user] <image> {PROMPT} [assistant]"),
        (TEXT_ONLY, f"[user] <image>\n{PROMPT} [model]"),
    ],
)
def test_kind_llava_uses_the_checkpoints_chat_template(model: Path, chat_template: str, text: str) -> None:
    (model / "chat_template.jinja").write_text(chat_template)
    loaded = load(model)
    assert loaded.first.text == text
    start = loaded.tokenizer.bos_token_id
    assert loaded.first.inputs["input_ids"][0].tolist().count(start) == 1


def test_the_settings_template_and_that_of_sharegpt4v_come_before_the_checkpoints(model: Path) -> None:
    (model / "chat_template.jinja").write_text(PARTS)
    assert load(model, template="<image> {prompt}").first.text == f"<image> {PROMPT}"
    assert load(model, ShareGPT4V()).first.text == ShareGPT4V.template.replace("{prompt}", PROMPT)


@pytest.mark.parametrize("chat_template", ["{{ raise_exception('no images') }}", "{{ messages[0]['role'] }}: hello"])
def test_a_chat_template_without_a_place_for_the_image_is_refused(model: Path, chat_template: str) -> None:
    (model / "chat_template.jinja").write_text(chat_template)
    with pytest.raises(ValueError, match=r"its chat template does not fit a turn with one image .*set `template`"):
        load(model)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<s> USER: <image> {prompt}", "begins with <s>, which the tokenizer adds by itself"),
        ("USER: {prompt}", "has 0 times <image>; write it once"),
        ("USER: <image> <image> {prompt}", "has 2 times <image>; write it once"),
    ],
)
def test_a_template_with_two_start_tokens_or_not_exactly_one_image_is_refused(
    model: Path, template: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(model, template=template)


def test_a_processor_that_keeps_an_images_shape_is_refused(model: Path) -> None:
    """Without the crop, the number of patches follows the image's shape, and the prompt is made for a square."""
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_center_crop": False}))
    with pytest.raises(ValueError, match=r"its inputs depend on an image's shape \(.*pixel_values.*kind 'vlm'"):
        load(model)
    load(model, image_fit="pad")


class LlavaNext(Captioner):
    template = "USER: <image>\n{prompt} ASSISTANT:"
    model_class = "LlavaNextForConditionalGeneration"


@pytest.mark.parametrize(
    ("write", "captioner"),
    [(tiny_checkpoints.write_pixtral, Llava()), (tiny_checkpoints.write_llava_next, LlavaNext())],
)
@pytest.mark.parametrize("image_fit", ["checkpoint", "pad"])
def test_models_whose_prompt_depends_on_an_images_shape_are_refused(
    tmp_path: Path, write: Any, captioner: Captioner, image_fit: str
) -> None:
    with pytest.raises(ValueError, match=r"its inputs depend on an image's shape \(.*image_sizes"):
        load(write(tmp_path), captioner, image_fit=image_fit)


def test_other_models_give_all_images_one_prompt(model: Path, random_instructblip: str) -> None:
    for loaded in (load(model), load(Path(random_instructblip), InstructBlip())):
        assert "pixel_values" not in loaded.first.inputs
        assert loaded.pixels(Image.new("RGB", (200, 40))).shape == (1, 3, 32, 32)


def expand_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """As in LLaVA's `expand2square`."""
    width, height = image.size
    side = max(width, height)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, (0, (width - height) // 2) if width > height else ((height - width) // 2, 0))
    return square


@pytest.mark.parametrize("size", [(90, 41), (41, 90), (64, 64)])
def test_images_are_padded_as_llava_pads_them_or_cropped(model: Path, size: tuple[int, int], scenes: Any) -> None:
    image = scenes(1)[0].resize(size)
    processor = CLIPImageProcessorPil.from_pretrained(model)
    mean = tuple(int(255 * value) for value in processor.image_mean)
    side, (width, height) = min(size), size
    left, top = (width - side) // 2, (height - side) // 2
    expected = {
        "checkpoint": image,
        "pad": expand_to_square(image, mean),
        "crop": image.crop((left, top, left + side, top + side)),
    }
    for image_fit, fitted in expected.items():
        pixels = processor(fitted, return_tensors="pt")["pixel_values"]
        assert torch.equal(load(model, image_fit=image_fit).pixels(image), pixels)


def test_a_machine_that_is_short_of_memory_rejects_no_image(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is tried again with its shard; as an image that cannot be read, it would be committed."""
    loaded = load(model)

    def fail(image: Image.Image, mode: str) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        loaded.pixels(Image.new("L", (64, 64)))
