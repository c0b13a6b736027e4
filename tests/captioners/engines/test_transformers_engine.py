"""The transformers engine on small random checkpoints: an image's caption does not depend on its batch."""

import json
import shutil
import socket

import pytest
from PIL import Image

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, EngineDead
from lotlip_data.captioners.engines.preprocessing import Preprocessor
from lotlip_data.captioners.models.llava import Llava
from lotlip_data.captioners.registry import load_engine
from tests.captioners import tiny_checkpoints

LENGTH = 24


@pytest.fixture(params=["llava", "sharegpt4v", "instructblip"])
def config(request):
    model = request.getfixturevalue("random_instructblip" if request.param == "instructblip" else "random_llava")
    return CaptionerConfig(name=request.param, kind=request.param, model=model, max_new_tokens=LENGTH)


@pytest.fixture(scope="module")
def engine():
    """`engine(config, **options)`: an engine that all tests of this module with equal settings share."""
    engines = {}

    def load(config, **options):
        key = json.dumps([config.to_dict(), options], sort_keys=True)
        if key not in engines:
            engines[key] = load_engine(config, "transformers", **options)
        return engines[key]

    yield load
    for loaded in engines.values():
        loaded.close()


def test_captions_do_not_depend_on_the_batch(config, engine, scenes, caption_all):
    images = scenes(16)
    together = caption_all(engine(config, batch_size=16), images)
    alone = caption_all(engine(config, batch_size=1), images)
    assert together == alone
    assert len({caption.text for caption in together}) > 8  # they depend on the image


def test_a_caption_without_end_token_has_all_tokens_and_finish_reason_length(config, engine, scenes, caption_all):
    captions = caption_all(engine(config), scenes(4))
    assert {(caption.finish_reason, caption.tokens) for caption in captions} == {("length", LENGTH)}


@pytest.mark.parametrize("kind", ["llava", "instructblip"])
def test_a_caption_stops_at_its_end_token_which_is_counted_but_not_in_the_text(
    kind, tmp_path, engine, scenes, caption_all
):
    write = getattr(tiny_checkpoints, f"write_{kind}")
    model = str(write(tmp_path / "model", end_bias=2.0))
    captions = caption_all(engine(CaptionerConfig(name="x", kind=kind, model=model, max_new_tokens=LENGTH)), scenes(32))
    ended = [caption for caption in captions if caption.finish_reason == "stop"]
    assert len({caption.tokens for caption in ended}) > 3  # rows of one batch end at different steps
    for caption in captions:
        assert caption.tokens == len(caption.text.split()) + (caption.finish_reason == "stop")
        assert "</s>" not in caption.text


def test_a_broken_image_fails_no_other(config, engine, scenes, caption_all, tmp_path):
    whole = tmp_path / "whole.jpg"
    scenes(1)[0].save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    images = scenes(4)
    expected = caption_all(engine(config), images)
    broken = Image.open(tmp_path / "half.jpg")  # Pillow decodes lazily
    results = caption_all(engine(config), [*images[:2], broken, *images[2:]])
    assert [*results[:2], *results[3:]] == expected
    assert isinstance(results[2], CaptionError) and "truncated" in str(results[2])


def test_an_image_that_would_be_resized_to_gigabytes_is_rejected(random_llava, engine, caption_all):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=2)
    wide, fine = caption_all(engine(config), [Image.new("RGB", (5100, 100)), Image.new("RGB", (5000, 100))])
    assert str(wide) == "5100×100 pixels: one side is over 50 times the other"
    assert fine.tokens == 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_image_mode_is_captioned(mode, random_llava, engine, caption_all):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=2)
    (caption,) = caption_all(engine(config), [Image.new(mode, (40, 30))])
    assert caption.tokens == 2


def test_the_checkpoints_own_generation_settings_are_ignored(config, engine, scenes, caption_all, tmp_path):
    shutil.copytree(config.model, tmp_path / "sampling")
    file = tmp_path / "sampling" / "generation_config.json"
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 3.0, "max_length": 5}
    file.write_text(json.dumps(json.loads(file.read_text()) | sampling))
    other = config.replace(model=str(tmp_path / "sampling"))
    assert caption_all(engine(other), scenes(4)) == caption_all(engine(config), scenes(4))


def test_sampling_differs_from_greedy(config, engine, scenes, caption_all):
    sampled = config.replace(temperature=2.0)
    assert caption_all(engine(sampled), scenes(4)) != caption_all(engine(config), scenes(4))


def test_prompt_and_template_reach_the_model(config, engine, scenes, caption_all):
    default = caption_all(engine(config), scenes(8))
    assert caption_all(engine(config.replace(prompt="Describe the star.")), scenes(8)) != default


def test_a_closed_engine_raises_engine_dead(random_llava, scenes, caption_all):
    loaded = load_engine(CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=2), "transformers")
    loaded.close()
    assert all(isinstance(result, EngineDead) for result in caption_all(loaded, scenes(2)))


def test_a_local_folder_needs_no_network(config, scenes, caption_all, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    loaded = load_engine(config, "transformers")
    assert caption_all(loaded, scenes(1))[0].tokens == LENGTH
    loaded.close()


def test_missing_weights_are_reported(random_llava, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(random_llava, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["multi_modal_projector.linear_1.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlavaFor\w+, such as .*linear_1.weight"):
        load_engine(
            CaptionerConfig(name="x", kind="llava", model=str(tmp_path / "model"), max_new_tokens=8), "transformers"
        )


def test_quantization_needs_vllm(random_llava):
    with pytest.raises(ValueError, match="need engine='vllm'"):
        load_engine(CaptionerConfig(name="x", kind="llava", model=random_llava, quantization="awq"), "transformers")


def test_sharegpt4vs_published_layout_is_rejected_with_the_command_to_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "share4v"}))
    command = f"lotlip-data convert sharegpt4v {tmp_path} DST"
    with pytest.raises(ValueError, match=f"{tmp_path} has ShareGPT4V's published layout.*run `{command}` once"):
        load_engine(CaptionerConfig(name="x", kind="sharegpt4v", model=str(tmp_path)), "transformers")


def test_captions_that_exceed_the_models_positions_are_rejected_before_loading(random_llava):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=250)
    message = "max_new_tokens=250: image and prompt take 27 of the model's 256 tokens; use at most 229"
    with pytest.raises(ValueError, match=message):
        load_engine(config, "transformers")


def test_without_a_generation_config_the_end_tokens_of_the_config_end_a_caption(random_llava, tmp_path, scenes):
    """As in transformers' `generate`. A turn's end beside the text's is a list of two tokens."""
    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    (model / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_text())
    for end_tokens, expected in ((7, {7}), ([7, 9], {7, 9})):
        config["text_config"]["eos_token_id"] = end_tokens
        (model / "config.json").write_text(json.dumps(config))
        loaded = Preprocessor(Llava(), CaptionerConfig(name="x", kind="llava", model=str(model), max_new_tokens=LENGTH))
        assert loaded.stop_ids == expected | {loaded.tokenizer.eos_token_id}


def test_a_model_without_a_usable_end_token_is_refused(random_llava, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    captioner = CaptionerConfig(name="x", kind="llava", model=str(model), max_new_tokens=LENGTH)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(ValueError, match="'</s>' is not the number of a token"):
        Preprocessor(Llava(), captioner)
    (model / "generation_config.json").unlink()
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        for part in (content, content.get("text_config", {})):
            part.pop("eos_token", None)
            part["eos_token_id"] = None
        (model / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names no end token"):
        Preprocessor(Llava(), captioner)
