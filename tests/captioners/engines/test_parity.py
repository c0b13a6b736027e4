"""Under greedy decoding in float32, both engines return equal captions: text, token count and finish reason."""

import pytest

from lotlip_data.captioners.registry import get_default, load_engine

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


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-sharegpt4v", "tiny-instructblip"])
def test_captions_do_not_depend_on_the_batch(name, scenes, caption_all):
    config = get_default(name).replace(dtype="float32")
    captions = {}
    for batch_size in (1, 16):
        engine = load_engine(config, "transformers", batch_size=batch_size)
        captions[batch_size] = caption_all(engine, scenes(16))
        engine.close()
    assert captions[1] == captions[16]
