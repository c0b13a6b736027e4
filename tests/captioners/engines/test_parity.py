"""Under greedy decoding in float32, both engines return equal captions: text, token count and finish reason."""

import pytest

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_default, load_engine
from tests.captioners import tiny_checkpoints

IMAGES = 256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-sharegpt4v", "tiny-instructblip"])
def test_vllm_and_transformers_give_the_same_captions(name, scenes, caption_all, tmp_path):
    config = get_default(name).replace(dtype="float32")
    captions = {}
    for engine_name in ("transformers", "vllm"):
        engine = load_engine(config, engine_name, cache_dir=str(tmp_path))
        captions[engine_name] = caption_all(engine, scenes(IMAGES))
        engine.close()
    assert captions["vllm"] == captions["transformers"]
    assert {caption.finish_reason for caption in captions["vllm"]} == {"stop"}
    assert len({caption.text for caption in captions["vllm"]}) > IMAGES * 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "instructblip"])
def test_further_settings_mean_the_same_to_both_engines(kind, scenes, caption_all, tmp_path):
    """A penalty on repetitions, a least length, and a language model with one matrix for its input and output."""
    if kind == "llava":
        model = tiny_checkpoints.write_llava(tmp_path / "model", end_bias=2.0)
    else:
        model = tiny_checkpoints.write_instructblip(
            tmp_path / "model", text_config=tiny_checkpoints.llama(tied=True), end_bias=2.0
        )
    settings = {"repetition_penalty": 1.3, "min_new_tokens": 5, "max_new_tokens": 24, "dtype": "float32"}
    config = CaptionerConfig(name="x", kind=kind, model=str(model), **settings)
    captions = {}
    for engine_name in ("transformers", "vllm"):
        engine = load_engine(config, engine_name, cache_dir=str(tmp_path / "cache"))
        captions[engine_name] = caption_all(engine, scenes(32))
        engine.close()
    assert captions["vllm"] == captions["transformers"]
    assert len({caption.text for caption in captions["vllm"]}) > 8


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-sharegpt4v", "tiny-instructblip"])
def test_captions_do_not_depend_on_the_batch(name, scenes, caption_all):
    config = get_default(name).replace(dtype="float32")
    captions = {}
    for batch_size in (1, 16):
        engine = load_engine(config, "transformers", batch_size=batch_size)
        captions[batch_size] = caption_all(engine, scenes(16))
        engine.close()
    assert captions[1] == captions[16]
