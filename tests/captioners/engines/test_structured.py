"""Texts with a form: vLLM writes no other ones, and other engines say that they cannot enforce it."""

import asyncio

import pytest

from lotlip_data.captioners.base import CaptionerConfig, TextRequest
from lotlip_data.captioners.load_errors import LoadError
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.manifests.settings.structured import column_values
from tests.captioners import tiny_checkpoints

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["photo", "drawing"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["kind", "count", "tags"],
    "additionalProperties": False,
}
JSON = {"json_schema": SCHEMA, "columns": ["kind", "count", "tags"]}
PROMPTS = {
    "plain": "Describe it.",
    "facts": {"prompt": "List the facts.", "structured": JSON, "max_new_tokens": 90},
    "cut": {"prompt": "List the facts.", "structured": JSON, "max_new_tokens": 8},
    "name": {"prompt": "Name it.", "structured": {"regex": "[A-Z][a-z]{2,5} [0-9]{3}"}},
    "choice": {"prompt": "Which one?", "structured": {"choice": ["a photo", "a drawing", "none of them"]}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "instructblip", "vlm"])
def test_vllm_writes_texts_of_the_form_that_each_must_have(kind, tmp_path, scenes, caption_all, runner):
    write = tiny_checkpoints.write_instructblip if kind == "instructblip" else tiny_checkpoints.write_llava
    model = write(tmp_path / "model", byte_level=True)
    settings = {"kind": kind, "model": str(model), "max_new_tokens": 20, "dtype": "float32"}
    config = CaptionerConfig(name="x", prompts=PROMPTS, **settings)
    engine = load_engine(config, "vllm", cache_dir=str(tmp_path / "cache"))

    async def caption(image):
        return await asyncio.gather(
            *map(engine.caption, engine.prepare_texts(image, [TextRequest(text, text.prompt) for text in config.texts]))
        )

    async def caption_images():
        return await asyncio.gather(*map(caption, scenes(8)))

    captions = dict(zip(config.prompts, zip(*runner.run(caption_images()), strict=True), strict=True))
    engine.close()
    texts = {text.name.removeprefix("x_"): text for text in config.texts}
    for name in ("facts", "name", "choice"):
        assert [caption.text for caption in captions[name] if not texts[name].structured.accepts(caption.text)] == []
        assert {caption.finish_reason for caption in captions[name]} == {"stop"}
        assert {tuple(find_flags(caption, texts[name])) for caption in captions[name]} <= {(), ("repetition",)}
    types = texts["facts"].structured.column_types
    for caption in captions["facts"]:
        values = column_values(caption.text, types)
        assert values["kind"] in ("photo", "drawing") and 0 <= values["count"] <= 99 and values["tags"]
    assert {tuple(find_flags(caption, texts["cut"])) for caption in captions["cut"]} == {("truncated", "invalid_json")}
    plain = load_engine(texts["plain"], "transformers")
    assert list(captions["plain"]) == caption_all(plain, scenes(8))
    plain.close()


@pytest.mark.slow
def test_a_form_that_vllm_cannot_enforce_is_an_error_and_names_what(tmp_path):
    model = tiny_checkpoints.write_llava(tmp_path / "model", byte_level=True)
    structured = {"regex": "(?=a)b"}
    config = CaptionerConfig(name="x", kind="llava", model=str(model), structured=structured, max_new_tokens=8)
    with pytest.raises(LoadError, match=r"captioner 'x': structured: vLLM cannot enforce it: .*backend: guidance"):
        load_engine(config, "vllm")


@pytest.mark.parametrize("kind", ["llava", "sharegpt4v", "instructblip", "vlm"])
def test_transformers_refuses_a_form_and_names_vllm(kind, random_llava, random_instructblip):
    model = random_instructblip if kind == "instructblip" else random_llava
    config = CaptionerConfig(name="x", kind=kind, model=model, structured={"choice": ["yes", "no"]}, max_new_tokens=8)
    message = "captioner 'x': structured: only vLLM has this"
    with pytest.raises(LoadError, match=message):
        load_engine(config, "transformers")
    with pytest.raises(ValueError, match=message):
        get_kind(kind).check_options(config, "transformers", None)
