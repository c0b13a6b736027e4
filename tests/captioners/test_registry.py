"""Short names of captioners, and captioners that another package adds."""

import re
import tomllib

import pytest
import yaml
from PIL import Image

from lotlip_data.captioners import presets, registry
from lotlip_data.captioners.base import Caption, CaptionerConfig, TextRequest
from lotlip_data.captioners.load_errors import LoadError
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.registry import load_engine
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from tests.support.paths import ROOT


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_short_name_has_a_kind_and_is_its_captioners_name(name):
    config = registry.get_default(name)
    assert config.name == name.replace(".", "-")
    assert registry.get_kind(config.kind).template.count("{prompt}") == 1


def test_published_models_are_the_papers():
    models = [registry.get_default(name).model for name in ("instructblip", "llava", "sharegpt4v")]
    assert models == ["Salesforce/instructblip-vicuna-7b", "llava-hf/llava-1.5-7b-hf", "Lin-Chen/ShareGPT4V-7B"]


@pytest.mark.parametrize("kind", ["instructblip", "llava", "sharegpt4v"])
def test_templates_equal_those_of_the_tiny_models_training(kind):
    from lotlip_data.synthetic.recipes.language import PROMPTS

    config = registry.get_default(f"tiny-{kind}")
    assert registry.get_kind(kind).template.replace("{prompt}", config.prompt) == PROMPTS[kind]


def test_an_unknown_name_is_reported_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"captioner 'blip' is unknown; known are .*instructblip, instructblip-fp8, .*llava, llava-1.6"
    ):
        registry.get_default("blip")
    with pytest.raises(
        ValueError, match=r"captioner kind 'blip' is unknown; known are .*instructblip, llava, openai, share"
    ):
        registry.get_kind("blip")


def test_an_installed_package_adds_a_captioner_through_an_entry_point(tmp_path, monkeypatch, caption_all, scenes):
    (tmp_path / "fourth.py").write_text(
        """
from lotlip_data.captioners.base import Caption
from lotlip_data.captioners.models.base import Captioner

class Counter(Captioner):
    def load(self, config, engine, options):
        return CountingEngine(config)

class CountingEngine:
    window, burst = 4, 1
    def __init__(self, config):
        self.config = config
    def prepare(self, image):
        return image.width
    async def caption(self, width):
        return Caption(f"{self.config.prompt} {width}", "stop", 2)
    def close(self):
        pass
"""
    )
    metadata = tmp_path / "fourth-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fourth\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lotlip_data.captioners]\ncounter = fourth:Counter\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    engine = load_engine(CaptionerConfig(name="mine", kind="counter", model="none", prompt="Width:"))
    assert caption_all(engine, scenes(1)) == [Caption("Width: 96", "stop", 2)]


def test_the_guides_example_of_a_captioner_works_with_several_texts_and_fields(tmp_path, monkeypatch, runner):
    page = (ROOT / "docs" / "guides" / "write-captioner.md").read_text()
    blocks = re.findall(r"^```(?:python title=|toml|yaml)[^\n]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    code, project, manifest = blocks[:3]
    (tmp_path / "my_package.py").write_text(code)
    points = tomllib.loads(project)["project"]["entry-points"][registry.ENTRY_POINTS]
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [f"[{registry.ENTRY_POINTS}]", *(f"{name} = {target}" for name, target in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    (entry,) = yaml.safe_load(manifest)["captioners"]
    config = CaptionerConfig.from_dict(entry)
    engine = load_engine(config)
    inputs = engine.prepare_texts(
        Image.new("RGB", (64, 64), "red"), [TextRequest(text, text.prompt) for text in config.texts]
    )

    async def captions():
        return [await engine.caption(prepared) for prepared in inputs]

    texts = [caption.text for caption in runner.run(captions())]
    assert texts == ["The colour is #ff0000", 'As for "{raw}", it is #ff0000']
    for setting in (
        {"structured": {"choice": ["a"]}},
        {"temperature": 0.7},
        {"max_new_tokens": 9},
        {"dtype": "float16"},
    ):
        (name,) = setting
        with pytest.raises(LoadError, match=f"{name}: kind 'average' does not read this setting; leave it out"):
            load_engine(CaptionerConfig(name="x", kind="average", model="none", **setting))
    several = {"plain": "The colour is", "rich": {"prompt": "It is", "temperature": 0.7}}
    with pytest.raises(UserError, match="captioner 'x_rich': temperature: kind 'average' does not read this setting"):
        resolve_captioners([{"name": "x", "kind": "average", "model": "none", "prompts": several}])


@pytest.mark.parametrize(
    ("kind", "engine", "chosen"),
    [
        ("vlm", "auto", "transformers"),
        ("vlm", "vllm", "vllm"),
        ("llava", "auto", "transformers"),
        ("openai", "auto", "endpoint"),
        ("average", "auto", "mine"),
    ],
)
def test_auto_stands_for_an_engine_of_the_kind(kind, engine, chosen, monkeypatch):
    """Captions record it. Here there is no GPU."""
    monkeypatch.setattr("lotlip_data.captioners.models.base.default_engine", lambda: "transformers")
    config = CaptionerConfig(name="x", kind=kind, model="m")
    captioner = Average() if kind == "average" else registry.get_kind(kind)
    assert captioner.choose_engine(config, engine) == chosen


class Average(Captioner):
    """A kind of another package with one engine."""

    engines = ("mine",)


def test_the_presets_in_fp8_are_captioners_of_their_own():
    for kind in ("llava", "sharegpt4v", "instructblip"):
        plain, fp8 = registry.get_default(kind), registry.get_default(f"{kind}-fp8")
        assert (fp8.model, fp8.kind, fp8.name) == (plain.model, kind, f"{kind}-fp8")
        assert (fp8.quantization, fp8.kv_cache_dtype) == ("fp8_per_channel", "fp8_hopper")
        assert (plain.quantization, plain.kv_cache_dtype) == (None, "auto")
        assert fp8.id != fp8.replace(quantization=None).id != fp8.replace(quantization=None, kv_cache_dtype="auto").id


class OneTextEngine:
    closed = False

    def close(self):
        self.closed = True


def test_an_engine_that_makes_one_text_is_refused_for_several_with_the_fix_and_closed(monkeypatch):
    engine = OneTextEngine()

    class OneText(registry.Captioner):
        def load(self, config, engine_name, options):
            return engine

    monkeypatch.setitem(registry._KINDS, "one-text", OneText)
    config = CaptionerConfig(name="mine", kind="one-text", model="m", prompts={"long": "Describe.", "tags": "Tag."})
    with pytest.raises(
        UserError, match=r"captioner 'mine': `prompts`: .* 'one-text' makes one text .* one captioner for"
    ):
        load_engine(config)
    assert engine.closed
    assert load_engine(config.texts[0]) is engine
