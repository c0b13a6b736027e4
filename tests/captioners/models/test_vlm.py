"""Settings of vision-language models do what they say, with one clear error where a model cannot follow one."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, TextRequest
from lotlip_data.captioners.engines.processor_inputs import ProcessorInputs
from lotlip_data.captioners.engines.stop_tokens import decode
from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.manifests.errors import UserError
from tests.captioners import tiny_vlms


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """`model(family)`: the folder of its tiny checkpoint."""
    root = tmp_path_factory.mktemp("vlm")
    return lambda family: str(root / family if (root / family).exists() else tiny_vlms.write(family, root / family))


def config(folder, **settings):
    return CaptionerConfig(**{"name": "qwen", "kind": "vlm", "model": folder, "max_new_tokens": 8} | settings)


def inputs(folder, **settings):
    return ProcessorInputs(get_kind("vlm"), config(folder, **settings))


def text_of(folder, **settings):
    settings = config(folder, **settings)
    return ProcessorInputs(get_kind("vlm"), settings).text(TextRequest(settings, settings.prompt))


def tokens_of(loaded, image):
    settings = loaded._config
    (prepared,) = loaded.prepare(image, [TextRequest(settings, settings.prompt)])
    return prepared.fields["input_ids"].shape[1]


@pytest.mark.parametrize("family", ["qwen3-vl", "gemma3", "mistral3", "joycaption", "internvl"])
def test_the_system_prompt_and_the_prompt_stand_in_the_checkpoint_s_template(family, model):
    text = text_of(model(family), system="You are helpful", prompt="A red circle")
    assert text.index("You are helpful") < text.index("A red circle")
    assert "{" not in text


TEXTS_ONLY = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] | trim }} {% endfor %}assistant :"


@pytest.mark.parametrize("place", ["", "<image> "])
def test_templates_that_take_one_text_and_those_that_place_the_image_work(place, tmp_path):
    """JoyCaption's template puts the image before the user's text by itself."""
    folder = tiny_vlms.write("joycaption", tmp_path / "model")
    placed = "{% if m['role'] == 'user' %}" + place + "{% endif %}{{ m['content']"
    (folder / "chat_template.jinja").write_text(TEXTS_ONLY.replace("{{ m['content']", placed))
    text = text_of(str(folder), system="You are helpful", prompt="A red circle")
    assert " ".join(text.split()) == "system : You are helpful user : <image> A red circle assistant :"


def test_variables_of_the_chat_template_reach_it(model, tmp_path):
    folder = tiny_vlms.write("qwen3-vl", tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{% if enable_thinking is false %}<think></think>{% endif %}")
    assert not text_of(str(folder)).endswith("<think></think>")
    assert text_of(str(folder), chat_template_kwargs={"enable_thinking": False}).endswith("<think></think>")


def test_a_template_of_the_settings_takes_the_place_of_the_checkpoint_s(model):
    text = text_of(model("joycaption"), template="USER <image> {prompt} ASSISTANT", prompt="A {red} star")
    assert text == "USER <image> A {red} star ASSISTANT"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{prompt}"}, "its template has 0 times <image>; write it once"),
        (
            {"template": "<image>{prompt}", "system": "You"},
            "system: it is for a chat template, and `template` replaces",
        ),
        ({"min_pixels": 10**6, "max_pixels": 10**5}, "min_pixels=1000000 exceeds max_pixels=100000"),
        ({"size": {"height": 32}}, "size.height: the `size` of"),
        ({"lora": "someone/adapter"}, "lora: engine='transformers' needs the package peft; pip install peft, or use"),
        ({"quantization": "fp8"}, "quantization: fp8: only vLLM has this"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_one_error(settings, message, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="captioner 'qwen'") as raised:
        load_engine(config(model("qwen3-vl"), **settings), "transformers")
    assert message in str(raised.value)


def test_a_model_without_a_limit_of_pixels_says_so(model):
    with pytest.raises(
        UserError, match="Gemma3ImageProcessorPil, has no such limits; it has `size` with height, width"
    ):
        load_engine(config(model("gemma3"), max_pixels=1000), "transformers")


def test_size_limits_change_the_number_of_tokens(model):
    picture = Image.new("RGB", (200, 160))
    plain, smaller = inputs(model("qwen3-vl")), inputs(model("qwen3-vl"), max_pixels=16 * tiny_vlms.PATCH**2)
    assert tokens_of(plain, picture) - tokens_of(smaller, picture) > 20
    assert smaller.longest < plain.longest
    plain, smaller = inputs(model("idefics3")), inputs(model("idefics3"), size={"longest_edge": 4 * tiny_vlms.PATCH})
    assert tokens_of(plain, picture) > tokens_of(smaller, picture)
    assert smaller.longest < plain.longest


@pytest.mark.parametrize("kind", ["llava", "instructblip", "sharegpt4v", "openai"])
@pytest.mark.parametrize("setting", [{"system": "x"}, {"max_pixels": 9}, {"trust_remote_code": True}, {"stop": ["x"]}])
def test_other_kinds_refuse_the_settings_of_vision_language_models(kind, setting):
    settings = CaptionerConfig(name="x", kind=kind, model="some/model", **setting)
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: only kind 'vlm' has this setting"):
        get_kind(kind).check_settings(settings)


def test_a_setting_of_one_text_is_refused_as_one_of_the_captioner():
    texts = {"long": "Describe.", "tags": {"prompt": "Tag.", "stop": ["x"]}}
    settings = CaptionerConfig(name="x", kind="llava", model="some/model", prompts=texts)
    with pytest.raises(ValueError, match="captioner 'x_tags': stop: only kind 'vlm' has this setting"):
        get_kind("llava").check_settings(settings)


def test_code_of_a_repository_runs_only_if_the_settings_say_so(tmp_path, caplog):
    layout = {"model_type": "molmo_of_mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(layout))
    (tmp_path / "code.py").write_text("raise SystemExit('this code has run')")
    with pytest.raises(UserError, match="Python code of its own, which would run with your rights") as raised:
        load_engine(config(str(tmp_path)), "transformers")
    assert "set trust_remote_code: true" in str(raised.value)
    with pytest.raises((UserError, SystemExit)):
        load_engine(config(str(tmp_path), trust_remote_code=True), "transformers")
    assert "runs with your rights: it can read, change and send whatever you can" in caplog.text


def test_a_model_that_transformers_does_not_run_names_the_other_engine(tmp_path, model):
    folder = tiny_vlms.write("joycaption", tmp_path / "model")
    layout = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(layout["text_config"] | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UserError, match="has no model for images and texts of type 'llama'; use engine='vllm'"):
        load_engine(config(str(folder)), "transformers")


def test_several_texts_of_an_image_preprocess_it_once(model, monkeypatch):
    settings = config(model("qwen3-vl")).replace(prompts={"long": "A red circle", "short": "A tree"})
    loaded = ProcessorInputs(get_kind("vlm"), settings)
    calls = []
    preprocess = loaded.shared_images._preprocess
    loaded.shared_images._preprocess = lambda *arguments, **options: (
        calls.append(1) or preprocess(*arguments, **options)
    )
    requests = [TextRequest(text, text.prompt) for text in settings.texts]
    first, second = loaded.prepare(Image.new("RGB", (90, 60)), requests)
    assert len(calls) == 1
    assert first.fields["pixel_values"].equal(second.fields["pixel_values"])
    assert not first.fields["input_ids"].equal(second.fields["input_ids"])


def test_texts_of_a_batch_have_their_own_prompts_stop_strings_and_lengths(model, caption_all):
    settings = config(model("qwen3-vl"), max_new_tokens=24, dtype="float32")
    prompts = {"a": "A red circle", "b": {"prompt": "Describe the tree", "max_new_tokens": 3}}
    both = load_engine(settings.replace(prompts=prompts), "transformers")
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    texts = both._config.texts
    prepared = both.prepare_texts(image, [TextRequest(text, text.prompt) for text in texts])

    class Alone:
        window = 8
        prepare = staticmethod(lambda item: item)
        caption = both.caption

    together = caption_all(Alone, prepared)
    both.close()
    for text, made in zip(texts, together, strict=True):
        alone = load_engine(text, "transformers")
        assert caption_all(alone, [image]) == [made]
        alone.close()
    assert together[1].tokens == 3


def test_an_image_with_too_many_tokens_fails_alone_with_the_remedy(tmp_path):
    folder = tiny_vlms.write("qwen3-vl", tmp_path / "model")
    layout = json.loads((folder / "config.json").read_text())
    layout["text_config"]["max_position_embeddings"] = 40
    (folder / "config.json").write_text(json.dumps(layout))
    loaded = inputs(str(folder))
    requests = [TextRequest(loaded._config, loaded._config.prompt)]
    small, large = (loaded.prepare(Image.new("RGB", size), requests)[0] for size in ((64, 64), (200, 160)))
    assert not isinstance(small, CaptionError)
    assert "of 40 tokens, and the caption needs" in str(large)
    assert "shorten the prompt, set a smaller max_new_tokens or set max_pixels or size" in str(large)


def test_a_stop_string_ends_a_caption_and_is_not_part_of_it():
    class Words:
        @staticmethod
        def decode(tokens, skip_special_tokens):
            return "".join(["a", "dog", ".", "END", "b"][token] + " " for token in tokens)

    assert decode([0, 1, 2, 0], Words, frozenset({9}), [". "]) == Caption("a dog", "stop", 3)
    assert decode([0, 1, 4], Words, frozenset({9}), ["END"]) == Caption("a dog b", "length", 3)


def test_it_runs_where_torchvision_is_not_installed(model):
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from lotlip_data.captioners.base import CaptionerConfig\n"
        "from lotlip_data.captioners.registry import load_engine\n"
        f"config = CaptionerConfig(name='x', kind='vlm', model={model('qwen3-vl')!r}, max_new_tokens=2)\n"
        "load_engine(config, 'transformers').close()\n"
        "print('closed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "closed" in done.stdout, done.stderr[-2000:]
