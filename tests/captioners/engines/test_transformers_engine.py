"""The transformers engine on small random checkpoints: an image's caption does not depend on its batch."""

import json
import shutil
import socket

import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    T5Config,
)

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, EngineDead, EngineOptions
from lotlip_data.captioners.engines import devices, transformers_engine
from lotlip_data.captioners.engines.preprocessing import Preprocessor
from lotlip_data.captioners.engines.transformers_engine import load_model
from lotlip_data.captioners.load_errors import LoadError
from lotlip_data.captioners.models.instructblip import InstructBlip
from lotlip_data.captioners.models.llava import Llava
from lotlip_data.captioners.registry import load_engine
from lotlip_data.captioners.sizing import Gpu
from tests.captioners import tiny_checkpoints
from tests.captioners.tiny_checkpoints import VOCABULARY

LENGTH = 24
H100 = Gpu("NVIDIA H100 80GB HBM3", 84_930_000_000, (9, 0))


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


def test_repetitions_are_penalized_as_in_transformers(random_llava, engine, scenes, caption_all):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=LENGTH, repetition_penalty=1.5)
    processor = AutoProcessor.from_pretrained(random_llava, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(random_llava, dtype="float32").eval()
    text = "USER: <image>\nDescribe the image in detail. ASSISTANT:"
    captions = caption_all(engine(config), scenes(4))
    for image, caption in zip(scenes(4), captions, strict=True):
        inputs = processor(images=image, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, repetition_penalty=1.5)
        assert caption.text == processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
    assert captions != caption_all(engine(config.replace(repetition_penalty=1.0)), scenes(4))


def test_instructblip_penalizes_repetitions_within_the_caption_only(random_instructblip, engine, scenes, caption_all):
    """The prompt's words cost nothing: vLLM, which reads embeddings, does not know them."""
    config = CaptionerConfig(name="x", kind="instructblip", model=random_instructblip, max_new_tokens=LENGTH)
    greedy = caption_all(engine(config), scenes(8))
    penalized = caption_all(engine(config.replace(repetition_penalty=1e9)), scenes(8))
    for first, second in zip(greedy, penalized, strict=True):
        words = second.text.split()
        assert words[0] == first.text.split()[0]  # whether or not it is a word of the prompt
        assert len(set(words)) > len(set(first.text.split()))
    assert {"Describe", "the", "image"} & {word for caption in penalized for word in caption.text.split()}


def test_a_caption_has_at_least_min_new_tokens(tmp_path, engine, scenes, caption_all):
    model = str(tiny_checkpoints.write_llava(tmp_path / "model", end_bias=2.0))
    config = CaptionerConfig(name="x", kind="llava", model=model, max_new_tokens=LENGTH)
    assert min(caption.tokens for caption in caption_all(engine(config), scenes(16))) < 6
    longer = config.replace(min_new_tokens=6)
    assert min(caption.tokens for caption in caption_all(engine(longer), scenes(16))) >= 6


@pytest.mark.parametrize("change", [{"top_k": 1}, {"min_p": 1.0}])
def test_sampling_from_the_likeliest_token_is_greedy(change, random_llava, engine, scenes, caption_all):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=LENGTH)
    sampled = caption_all(engine(config.replace(temperature=2.0, **change)), scenes(4))
    assert sampled == caption_all(engine(config), scenes(4))


def test_an_instructblip_with_flan_t5_is_captioned_as_transformers_does(tmp_path, scenes, caption_all):
    """An encoder-decoder starts from its own token, and its output does not repeat the prompt."""
    size = {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2, "vocab_size": VOCABULARY}
    flan = T5Config(**size, **tokens, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    folder = tiny_checkpoints.write_instructblip(tmp_path, text_config=flan)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = CaptionerConfig(name="x", kind="instructblip", model=str(folder), max_new_tokens=LENGTH)
    loaded = load_engine(config)  # without a GPU, and with one, since vLLM runs no encoder
    captions = caption_all(loaded, scenes(4))
    loaded.close()
    processor = InstructBlipProcessor.from_pretrained(folder, backend="pil")
    model = InstructBlipForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
    for image, caption in zip(scenes(4), captions, strict=True):
        inputs = processor(images=image, text=config.prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0, 1:]
        assert (caption.tokens, caption.text) == (
            len(tokens),
            processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        )


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


@pytest.mark.parametrize("change", [{"quantization": "awq"}, {"kv_cache_dtype": "fp8"}, {"tensor_parallel_size": 2}])
def test_settings_of_vllm_need_vllm(random_llava, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"captioner 'x': {name}: {value}: only vLLM has this"):
        load_engine(CaptionerConfig(name="x", kind="llava", model=random_llava, **change), "transformers")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is only said to exist; models stay where they are."""
    monkeypatch.setattr(devices, "current_gpu", lambda: H100)
    monkeypatch.setattr(transformers_engine, "current_gpu", lambda: H100)
    monkeypatch.setattr(PreTrainedModel, "to", lambda model, device: model)


def declare(folder, copy, whole, language):
    """A copy of a checkpoint whose config.json says these precisions of the whole and of its language model."""
    shutil.copytree(folder, copy)
    layout = json.loads((copy / "config.json").read_text())
    for part, dtype in ((layout, whole), (layout["text_config"], language)):
        part.pop("dtype", None)
        if dtype:
            part["dtype"] = dtype
    (copy / "config.json").write_text(json.dumps(layout))
    return str(copy)


@pytest.mark.parametrize(
    ("whole", "language", "expected"),
    [
        ("float32", "float16", torch.float16),
        ("float16", None, torch.float16),
        ("float16", "bfloat16", torch.bfloat16),
        ("float16", "float32", torch.float32),
        (None, None, torch.float32),
    ],
)
def test_on_a_gpu_the_whole_model_has_the_precision_of_its_language_model(
    gpu, whole, language, expected, random_instructblip, tmp_path
):
    """The hub's InstructBLIP says float32 for the whole and float16 for the language model, and its files are float32.

    Without any precision in config.json, it is that of the weights. transformers keeps the query tokens in float32.
    """
    model = declare(random_instructblip, tmp_path / "model", whole, language)
    config = CaptionerConfig(name="x", kind="instructblip", model=model, max_new_tokens=8)
    loaded = load_model(InstructBlip.model_class, Preprocessor(InstructBlip(), config), config)
    assert {weight.dtype for name, weight in loaded.named_parameters() if name != "query_tokens"} == {expected}


def test_the_batch_follows_from_the_gpu(gpu, random_llava):
    config = CaptionerConfig(name="x", kind="llava", model=random_llava, max_new_tokens=8)
    assert devices.defaults_of(config, EngineOptions(), Preprocessor(Llava(), config)).batch_size == 32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_image_half_of_instructblip_computes_in_16_bit(dtype, random_instructblip, scenes, caption_all):
    config = CaptionerConfig(name="x", kind="instructblip", model=random_instructblip, max_new_tokens=8)
    captions = {}
    for kind in (dtype, "float32"):
        engine = load_engine(config.replace(dtype=kind), "transformers")
        captions[kind] = [caption.text for caption in caption_all(engine, scenes(8))]
        engine.close()
    agreeing = sum(first == second for first, second in zip(captions[dtype], captions["float32"], strict=True))
    assert agreeing >= 6


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


def test_a_prompt_with_a_token_that_has_no_word_embedding_is_refused(random_llava, tmp_path):
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(model)
    captioner = CaptionerConfig(name="x", kind="llava", model=str(model), max_new_tokens=LENGTH)
    Preprocessor(Llava(), captioner)  # only tokens that occur need an embedding
    with pytest.raises(ValueError, match=r"the prompt has the token \d+, but text_config has word embeddings for"):
        Preprocessor(Llava(), captioner.replace(prompt="Describe the zebra ."))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config.json", "{", "generation_config.json"),
        ("processor_config.json", '{"processor_class": "NoSuchProcessor"}', "has no processor with a"),
    ],
)
def test_a_damaged_file_of_a_model_is_an_error_and_not_ignored(random_llava, tmp_path, file, content, message):
    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    (model / file).write_text(content)
    for other in ("preprocessor_config.json",) if file == "processor_config.json" else ():
        (model / other).unlink(missing_ok=True)
    config = CaptionerConfig(name="mine", kind="llava", model=str(model), max_new_tokens=LENGTH)
    with pytest.raises(LoadError, match=f"captioner 'mine': .*{model}.*{message}"):
        load_engine(config, "transformers")


def test_weights_of_other_shapes_than_the_config_says_are_named(random_llava, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    layout = json.loads((model / "config.json").read_text())
    layout["text_config"]["intermediate_size"] += 8
    (model / "config.json").write_text(json.dumps(layout))
    with pytest.raises(LoadError, match=r"weights do not have the shapes of config.json, such as \S+mlp\.\S+: \("):
        load_engine(CaptionerConfig(name="mine", kind="llava", model=str(model), max_new_tokens=LENGTH), "transformers")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_config_without_a_part_is_refused_before_a_model_of_the_default_size_is_made(random_llava, tmp_path, part):
    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    layout = json.loads((model / "config.json").read_text())
    del layout[part]
    (model / "config.json").write_text(json.dumps(layout))
    with pytest.raises(LoadError, match=f"{part}=None: must hold the settings"):
        load_engine(CaptionerConfig(name="mine", kind="llava", model=str(model)), "transformers")


def test_a_processor_without_the_patch_size_is_refused_with_the_value_to_set(random_llava, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(random_llava, model)
    file = model / "processor_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "patch_size"}))
    config = CaptionerConfig(name="x", kind="llava", model=str(model), max_new_tokens=LENGTH)
    with pytest.raises(ValueError, match=f"{model}: processor_config.json lacks patch_size; set it to 8, as in"):
        Preprocessor(Llava(), config)
