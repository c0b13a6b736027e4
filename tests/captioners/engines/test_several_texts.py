"""Several texts of an image in one pass are those that separate captioners write, whatever their neighbours."""

import asyncio
from typing import Any

import pytest
import torch
from PIL import Image

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, TextRequest
from lotlip_data.captioners.engines.mixed_batches import SharedVision, padded
from lotlip_data.captioners.engines.preprocessing import Preprocessor
from lotlip_data.captioners.models.instructblip import InstructBlip
from lotlip_data.captioners.models.llava import Llava
from lotlip_data.captioners.registry import load_engine

PROMPTS = {
    "long": {"prompt": "Describe the image in detail."},
    "short": {"prompt": "A circle ?", "max_new_tokens": 9, "min_new_tokens": 4},
    "place": {"prompt": "Describe the star left . right .", "repetition_penalty": 1.3},
}
SETTINGS: dict[str, Any] = {"name": "several", "prompts": PROMPTS, "max_new_tokens": 24, "dtype": "float32"}


async def caption_texts(engine: Any, images: list[Image.Image], texts: Any) -> list[list[Any]]:
    """The captions of each image, in the order of `texts`, all of them in flight at once."""

    async def caption(image: Image.Image) -> list[Any]:
        inputs = engine.prepare_texts(image, [TextRequest(text, text.prompt) for text in texts])
        return await asyncio.gather(*map(engine.caption, inputs), return_exceptions=True)

    return await asyncio.gather(*map(caption, images))


@pytest.fixture(params=["llava", "sharegpt4v", "instructblip"])
def several(request):
    """A captioner of three texts with prompts of different lengths."""
    model = request.getfixturevalue("random_instructblip" if request.param == "instructblip" else "random_llava")
    return CaptionerConfig(kind=request.param, model=model, **SETTINGS)


def one_by_one(several, engine_name, images, caption_all, **options):
    """The captions of each image from a captioner for each text."""
    captions = []
    for text in several.texts:
        engine = load_engine(text, engine_name, **options)
        captions.append(caption_all(engine, images))
        engine.close()
    return [list(texts) for texts in zip(*captions, strict=True)]


@pytest.mark.parametrize(
    "engine_name", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)], ids=["transformers", "vllm"]
)
def test_three_texts_in_one_pass_are_those_of_three_captioners(
    engine_name, several, scenes, caption_all, runner, tmp_path
):
    images = scenes(16)
    engine = load_engine(several, engine_name, cache_dir=str(tmp_path))
    together = runner.run(caption_texts(engine, images, several.texts))
    some = runner.run(caption_texts(engine, images[:5], several.texts[1:]))
    engine.close()
    # With vLLM, transformers stands in for the three further engines, since both write the same captions.
    assert together == one_by_one(several, "transformers", images, caption_all)
    assert some == [texts[1:] for texts in together[:5]]
    assert len({caption.text for texts in together for caption in texts}) > 16


def test_an_image_is_encoded_once_for_all_its_texts(several, scenes, runner):
    engine = load_engine(several, "transformers", batch_size=12)
    forward, encoded = engine._vision._forward, []

    def count(pixels, *arguments, **options):
        encoded.append(len(pixels))
        return forward(pixels, *arguments, **options)

    engine._vision._forward = count
    runner.run(caption_texts(engine, scenes(4), several.texts))
    engine.close()
    assert encoded == [4]


def test_a_prompt_that_is_filled_in_for_one_image_is_read_as_it_is(several, scenes, caption_all, runner):
    """Every image has a prompt of its own, of its own length."""
    text = several.texts[0]
    prompts = ["Describe " + "red circle " * count + "." for count in range(6)]
    engine = load_engine(several, "transformers")

    async def caption(image, prompt):
        (prepared,) = engine.prepare_texts(image, [TextRequest(text, prompt)])
        return await engine.caption(prepared)

    async def caption_each():
        return await asyncio.gather(*map(caption, scenes(6), prompts))

    captions = runner.run(caption_each())
    engine.close()
    for image, prompt, caption in zip(scenes(6), prompts, captions, strict=True):
        alone = load_engine(text.replace(prompt=prompt), "transformers")
        assert [caption] == caption_all(alone, [image])
        alone.close()


def test_a_prompt_that_does_not_fit_or_cannot_be_read_fails_alone(random_llava, scenes, runner):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=24)
    engine = load_engine(config, "transformers")
    prompts = [config.prompt, "red " * 300, "a <image> here", config.prompt]
    inputs = engine.prepare_texts(scenes(1)[0], [TextRequest(config, prompt) for prompt in prompts])
    _, long, second_image, _ = inputs
    assert "image and prompt take 321 of 256 tokens, and the caption needs 24" in str(long)
    assert isinstance(long, CaptionError) and isinstance(second_image, CaptionError)
    assert "has 2 times <image>" in str(second_image)

    async def caption_all_inputs():
        return await asyncio.gather(*map(engine.caption, inputs), return_exceptions=True)

    captions = runner.run(caption_all_inputs())
    engine.close()
    assert captions[0] == captions[3] and captions[0].tokens == 24
    assert captions[1] is long and captions[2] is second_image


def test_special_texts_are_the_tokenizers_tokens_and_the_roles_of_the_template(several):
    engine = load_engine(several, "transformers")
    engine.close()
    assert {"<pad>", "<s>", "</s>", "<unk>", "<image>"} <= engine.special_texts
    assert several.kind == "instructblip" or {"USER:", "ASSISTANT:"} <= engine.special_texts
    assert not engine.special_texts & {"Describe", "the", ".", "?", ""}


@pytest.mark.parametrize("kind", ["llava", "instructblip"])
def test_room_is_made_for_fields_of_the_largest_length(kind, random_llava, random_instructblip):
    """The tokenizer of these models needs a token for each letter and each full stop of `a.a.a.`."""
    captioner, model = (Llava(), random_llava) if kind == "llava" else (InstructBlip(), random_instructblip)
    config = CaptionerConfig(name="x", kind=kind, model=model, max_new_tokens=24, max_field_characters=40)
    fixed, filled = (Preprocessor(captioner, config.replace(prompt=f"Describe {raw} .")) for raw in ("", "{raw}"))
    assert filled.longest >= fixed.longest + 40
    longer = Preprocessor(captioner, config.replace(prompt="Describe {raw} .", max_field_characters=5000))
    assert longer.longest == longer.positions == 256


def test_padding_repeats_a_prompts_last_token_on_the_left_and_is_masked():
    rows = [
        {"input_ids": torch.tensor([ids]), "qformer_input_ids": torch.tensor([ids[:2]])} for ids in ([7, 5, 4], [3])
    ]
    inputs = padded(rows)
    assert inputs["input_ids"].tolist() == [[7, 5, 4], [3, 3, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert inputs["qformer_input_ids"].tolist() == [[7, 5], [3, 0]]
    equal = padded([rows[0], rows[0]])
    assert "attention_mask" not in equal  # nothing is hidden, so the model gets what it got from one prompt


def test_a_model_without_a_known_image_encoder_encodes_each_row():
    model = torch.nn.Linear(2, 2)
    shared = SharedVision(model)
    with shared.images(torch.zeros(1, 3, 2, 2)):
        assert model(torch.ones(3, 2)).shape == (3, 2)


@pytest.mark.slow
def test_vllm_reads_what_the_texts_of_an_image_have_in_common_once(random_llava, scenes, runner):
    """vLLM's own counters: the first block of tokens, with some of the image's, is in the cache for two of three texts.

    Another image's block has the same tokens, but not the same image.
    """
    from vllm.v1.metrics.reader import get_metrics_snapshot

    template = "Describe the image in detail . " * 4 + "<image> {prompt}"
    several = CaptionerConfig(kind="llava", model=random_llava, template=template, **SETTINGS)
    engine = load_engine(several, "vllm", engine_args={"block_size": 32, "disable_log_stats": False})
    runner.run(caption_texts(engine, scenes(8), several.texts))
    counters = {metric.name: getattr(metric, "value", None) for metric in get_metrics_snapshot()}
    engine.close()
    assert counters["vllm:prefix_cache_hits"] == 8 * 2 * 32


@pytest.mark.slow
def test_a_penalty_on_repetitions_reads_no_tokens_of_earlier_requests(
    random_instructblip, scenes, caption_all, tmp_path
):
    """A prompt of embeddings has no tokens, and the place in vLLM's batch where they would stand has been used."""
    settings = {"model": random_instructblip, "max_new_tokens": 24, "repetition_penalty": 1.3, "dtype": "float32"}
    config = CaptionerConfig(name="x", kind="instructblip", **settings)
    captions = {}
    for name, options in {"transformers": {}, "vllm": {"max_num_seqs": 4, "cache_dir": str(tmp_path)}}.items():
        engine = load_engine(config, name, **options)
        captions[name] = caption_all(engine, scenes(32))
        engine.close()
    assert captions["vllm"] == captions["transformers"]
