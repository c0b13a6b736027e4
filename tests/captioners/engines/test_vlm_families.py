"""Every family of vision-language models gets the texts that it gets from its own processor and model, one by one.

The reference is written here with transformers alone: one image at a time, no batch, no padding, no code of an engine.
"""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lotlip_data.captioners.base import CaptionerConfig, TextRequest
from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.manifests.errors import UserError
from tests.captioners import tiny_checkpoints, tiny_vlms
from tests.captioners.engines.test_several_texts import caption_texts

PROMPT = "Describe the image in detail."
TOKENS = 24
MECHANISMS = ("qwen2.5-vl", "idefics3", "llava-next", "mistral3")
"""Flat patches with a grid, tiles with masks, tiles with the image's size, and images of any shape."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint(family)`: the folder of its tiny checkpoint."""
    folders = {}

    def write(family):
        if family == "smolvlm":
            pytest.importorskip("num2words")
        if family not in folders:
            folders[family] = tiny_vlms.write(family, tmp_path_factory.mktemp("vlm") / family)
        return str(folders[family])

    return write


def mixed_images(count):
    """Coarse random patterns of 24 to 200 pixels a side, so that families cut, pad and reduce them differently."""
    generator = np.random.default_rng(7)
    images = []
    for _ in range(count):
        width, height = generator.integers(24, 200, 2)
        blocks = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        images.append(Image.fromarray(blocks).resize((int(width), int(height)), Image.Resampling.NEAREST))
    return images


def plain_generate(folder, images, max_new_tokens=TOKENS):
    """Text and number of tokens of each image, with transformers alone."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    end = {processor.tokenizer.eos_token_id, *np.atleast_1d(model.generation_config.eos_token_id).tolist()}
    if processor.tokenizer.chat_template:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
        template = processor.tokenizer.chat_template
        text = processor.apply_chat_template(turn, chat_template=template, add_generation_prompt=True, tokenize=False)
        text = text.removeprefix("<s>")
    else:
        text = f"<image>{PROMPT}"
    texts = []
    for image in images:
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        inputs.pop("labels", None)
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(end), pad_token_id=0
        )
        tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        texts.append((processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens)))
    return texts


def captioner(folder, **settings):
    return CaptionerConfig(
        **{"name": "x", "kind": "vlm", "model": folder, "max_new_tokens": TOKENS, "dtype": "float32"} | settings
    )


def engine_texts(caption_all, config, engine, images, **options):
    loaded = load_engine(config, engine, **options)
    captions = caption_all(loaded, images)
    loaded.close()
    assert [caption for caption in captions if isinstance(caption, Exception)] == []
    return [(caption.text, caption.tokens) for caption in captions]


def check_transformers(folder, caption_all, count):
    images = mixed_images(count)
    expected = plain_generate(folder, images)
    assert engine_texts(caption_all, captioner(folder), "transformers", images, batch_size=8) == expected
    assert len({text for text, _ in expected}) > 0.7 * count  # texts depend on the images


@pytest.mark.parametrize("family", MECHANISMS)
def test_transformers_texts_do_not_depend_on_the_batch(family, checkpoint, caption_all):
    check_transformers(checkpoint(family), caption_all, 12)


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_transformers_gives_the_texts_of_plain_generate(family, checkpoint, caption_all):
    check_transformers(checkpoint(family), caption_all, 64)


@pytest.mark.parametrize("family", MECHANISMS)
def test_several_texts_are_those_of_plain_generate_with_one_reading_of_each_image(family, checkpoint, runner):
    folder, images = checkpoint(family), mixed_images(5)
    lengths = {"long": TOKENS, "short": 6, "tags": 9}
    prompts = {name: {"prompt": PROMPT, "max_new_tokens": length} for name, length in lengths.items()}
    config = captioner(folder, prompts=prompts)
    engine = load_engine(config, "transformers", batch_size=4)
    compute, computed = engine._shared._compute, []

    def count(*arguments, **options):
        computed.append(arguments)
        return compute(*arguments, **options)

    engine._shared._compute = count
    texts = runner.run(caption_texts(engine, images, config.texts))
    engine.close()
    for number, length in enumerate(lengths.values()):
        found = [(captions[number].text, captions[number].tokens) for captions in texts]
        assert found == plain_generate(folder, images, length)
    assert len(computed) == 2  # of four images, then of one


VLLM_DIFFERS = ("gemma3", "paligemma")
"""Families that vLLM itself computes in another way than transformers."""


def plain_vllm(folder, images):
    """Text and number of tokens of each image, with vLLM's own class for offline work, and pixels from Pillow."""
    from vllm import LLM, SamplingParams

    from lotlip_data.captioners.engines.processor_inputs import ProcessorInputs
    from lotlip_data.captioners.engines.vllm_engine import BoundUniProcExecutor  # it also reads transformers' names

    inputs = ProcessorInputs(get_kind("vlm"), captioner(folder))
    tokens = inputs.tokenizer(inputs.text(TextRequest(captioner(folder), PROMPT)))["input_ids"]
    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=inputs.longest,
        max_num_seqs=16,
        enforce_eager=True,
        kv_cache_memory_bytes=2**27,
        distributed_executor_backend=BoundUniProcExecutor,
        limit_mm_per_prompt={"image": 1, "video": 0},
    )
    processor = llm.llm_engine.renderer.get_mm_processor().info.get_hf_processor()
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=sorted(inputs.stop_ids))
    prompts = [{"prompt_token_ids": tokens, "multi_modal_data": {"image": image}} for image in images]
    rows = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, sampling, use_tqdm=False)]
    llm.llm_engine.engine_core.shutdown()
    return [(inputs.tokenizer.decode(row, skip_special_tokens=True).strip(), len(row)) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_vllm_gives_the_texts_of_plain_generate(family, checkpoint, caption_all):
    """Where vLLM itself differs from transformers, it gives the texts of plain vLLM."""
    folder, images = checkpoint(family), mixed_images(64)
    texts = engine_texts(caption_all, captioner(folder), "vllm", images, max_num_seqs=16)
    reference = plain_vllm if family in VLLM_DIFFERS else plain_generate
    assert texts == reference(folder, images)
    assert len({text for text, _ in texts}) > 0.7 * len(images)


@pytest.mark.slow
def test_a_family_that_vllm_does_not_run_names_the_other_engine(tmp_path, caption_all):
    """InstructBLIP is no model of vLLM's, and its code in transformers does not run there."""
    folder = str(tiny_checkpoints.write_instructblip(tmp_path))
    with pytest.raises(UserError, match=r"vLLM has no model of its own for InstructBlip.*use engine='transformers'"):
        load_engine(captioner(folder), "vllm")
    texts = engine_texts(caption_all, captioner(folder), "transformers", mixed_images(4))
    assert all(text for text, _ in texts)
