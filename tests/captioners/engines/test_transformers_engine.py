"""The transformers engine on small random checkpoints: an image's caption is its own, whatever shares its batch."""

import json
import shutil
import socket

import pytest
from PIL import Image

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, EngineDead
from lotlip_data.captioners.registry import load_engine
from tests.captioners import tiny_checkpoints

LENGTH = 24


@pytest.fixture(params=["llava", "sharegpt4v", "instructblip"])
def config(request):
    model = request.getfixturevalue("random_instructblip" if request.param == "instructblip" else "random_llava")
    return CaptionerConfig(name=request.param, kind=request.param, model=model, max_new_tokens=LENGTH)


@pytest.fixture
def engine():
    """`engine(config, **resources)`, closed when the test ends."""
    opened = []

    def load(config, **resources):
        opened.append(load_engine(config, "transformers", **resources))
        return opened[-1]

    yield load
    for each in opened:
        each.close()


def test_captions_do_not_depend_on_the_batch(config, engine, scenes, caption_all):
    images = scenes(16)
    together = caption_all(engine(config, batch_size=16), images)
    alone = caption_all(engine(config, batch_size=1), images)
    assert together == alone
    assert len({caption.text for caption in together}) > 8  # they do depend on the image


def test_a_caption_without_end_token_has_every_token_and_says_so(config, engine, scenes, caption_all):
    captions = caption_all(engine(config), scenes(4))
    assert {(caption.finish_reason, caption.tokens) for caption in captions} == {("length", LENGTH)}


@pytest.mark.parametrize("kind", ["llava", "instructblip"])
def test_a_caption_stops_at_its_end_token_which_counts_but_is_not_text(kind, tmp_path, engine, scenes, caption_all):
    write = getattr(tiny_checkpoints, f"write_{kind}")
    model = str(write(tmp_path / "model", end_bias=2.0))
    captions = caption_all(engine(CaptionerConfig(name="x", kind=kind, model=model, max_new_tokens=LENGTH)), scenes(32))
    ended = [caption for caption in captions if caption.finish_reason == "stop"]
    assert len({caption.tokens for caption in ended}) > 3  # rows of one batch end at different steps
    for caption in captions:
        assert caption.tokens == len(caption.text.split()) + (caption.finish_reason == "stop")
        assert "</s>" not in caption.text


def test_a_broken_image_costs_only_itself(config, engine, scenes, caption_all, tmp_path):
    whole = tmp_path / "whole.jpg"
    scenes(1)[0].save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    images = scenes(4)
    expected = caption_all(engine(config), images)
    broken = Image.open(tmp_path / "half.jpg")  # PIL reads pixels when they are first asked for
    results = caption_all(engine(config), [*images[:2], broken, *images[2:]])
    assert [*results[:2], *results[3:]] == expected
    assert isinstance(results[2], CaptionError) and "truncated" in str(results[2])


def test_an_image_that_would_be_resized_to_gigabytes_is_refused(random_llava, engine, caption_all):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=2)
    wide, fine = caption_all(engine(config), [Image.new("RGB", (5100, 100)), Image.new("RGB", (5000, 100))])
    assert str(wide) == "5100×100 pixels: one side is over 50 times the other"
    assert fine.tokens == 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_image_mode_is_captioned(mode, random_llava, engine, caption_all):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=2)
    (caption,) = caption_all(engine(config), [Image.new(mode, (40, 30))])
    assert caption.tokens == 2


def test_the_checkpoints_own_generation_settings_do_not_leak_in(config, engine, scenes, caption_all, tmp_path):
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


def test_a_closed_engine_says_so(random_llava, engine, scenes, caption_all):
    loaded = engine(CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=2))
    loaded.close()
    assert all(isinstance(result, EngineDead) for result in caption_all(loaded, scenes(2)))


def test_a_local_folder_needs_no_network(config, engine, scenes, caption_all, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert caption_all(engine(config), scenes(1))[0].tokens == LENGTH


def test_missing_weights_are_refused(random_llava, tmp_path):
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


def test_quantization_is_left_to_vllm(random_llava):
    with pytest.raises(ValueError, match="need engine='vllm'"):
        load_engine(CaptionerConfig(name="x", kind="llava", model=random_llava, quantization="awq"), "transformers")


def test_sharegpt4vs_published_layout_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "share4v"}))
    command = f"lotlip-data convert sharegpt4v {tmp_path} DST"
    with pytest.raises(ValueError, match=f"{tmp_path} has ShareGPT4V's published layout.*run `{command}` once"):
        load_engine(CaptionerConfig(name="x", kind="sharegpt4v", model=str(tmp_path)), "transformers")


def test_a_caption_longer_than_the_model_reads_is_refused_before_it_loads(random_llava):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=250)
    message = "max_new_tokens=250: image and prompt take 27 of the model's 256 tokens; use at most 229"
    with pytest.raises(ValueError, match=message):
        load_engine(config, "transformers")
