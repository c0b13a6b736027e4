"""Presets name published models with their licences; their sizes are those of the published configurations."""

import json
from pathlib import Path

import pytest
import transformers

from lotlip_data.captioners import families
from lotlip_data.captioners.engines.processor_loading import load_processor
from lotlip_data.captioners.presets import LICENCES, PRESETS, VLM_SIZES
from lotlip_data.captioners.vlm_sizing import TYPICAL_SIDES, image_tokens, max_image_tokens, vlm_sizes
from lotlip_data.manifests.checkpoints.fetched import is_commit
from tests.captioners import tiny_vlms

PUBLISHED = json.loads((Path(__file__).parents[1] / "goldens/published/vlm.json").read_text())
"""By preset: config.json and the processor's files as published, without what has no effect on sizes; and the number of
parameters that the model's page states."""

FAMILIES = {
    "qwen3-vl-4b": "qwen3-vl",
    "qwen3-vl-8b": "qwen3-vl",
    "qwen2.5-vl-7b": "qwen2.5-vl",
    "internvl3-8b": "internvl",
    "smolvlm2": "smolvlm",
    "gemma-3-4b": "gemma3",
    "joycaption": "joycaption",
    "llava-onevision": "llava-onevision",
    "llava-1.6": "llava-next",
}
MOST_TOKENS = {
    "qwen3-vl-4b": 1024,
    "qwen3-vl-8b": 1024,
    "qwen2.5-vl-7b": 1337,
    "internvl3-8b": 13 * 256 + 2,
    "gemma-3-4b": 256,
    "joycaption": 730,
    "llava-1.6": 2928,
}
"""The largest number of tokens of an image, as the models' papers have it."""


def published_config(name):
    settings = dict(PUBLISHED[name]["config"])
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


def published_processor(name, folder):
    """The published image processor, beside a tiny tokenizer of the same family."""
    if name == "smolvlm2":
        pytest.importorskip("num2words")
    tiny_vlms.write(FAMILIES[name], folder)
    for file, content in (("preprocessor_config.json", "preprocessor"), ("processor_config.json", "processor")):
        if settings := PUBLISHED[name][content]:
            (folder / file).write_text(json.dumps(settings))
    processor = load_processor(str(folder), {"local_files_only": True}, published_config(name))
    if limit := PRESETS[name].max_pixels:
        size = processor.image_processor.size
        processor.image_processor.size = type(size)(shortest_edge=size["shortest_edge"], longest_edge=limit)
    return processor


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sizes_of_a_preset_are_those_of_its_published_configuration(name):
    sizes = VLM_SIZES[PRESETS[name].model]
    assert vlm_sizes(published_config(name), sizes.image_tokens) == sizes
    assert sizes.parameters == pytest.approx(PUBLISHED[name]["parameters"], rel=0.003)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_of_a_preset_is_known_without_the_hub(name):
    family = families.MODEL_TYPES[PRESETS[name].model]
    assert family == PUBLISHED[name]["config"]["model_type"] and family in families.FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_of_an_image_are_those_of_the_published_processor(name, tmp_path):
    processor = published_processor(name, tmp_path / "model")
    assert image_tokens(processor, [TYPICAL_SIDES]) == [VLM_SIZES[PRESETS[name].model].image_tokens]
    if most := MOST_TOKENS.get(name):
        assert most <= max_image_tokens(processor) <= 1.06 * most + 1


def test_each_preset_of_a_published_model_has_a_licence_and_a_commit_except_for_sharegpt4v():
    published = {config.model for name, config in PRESETS.items() if not name.startswith("tiny-")}
    assert published == set(LICENCES)
    assert {config.model for config in PRESETS.values() if not is_commit(config.revision)} == {
        "Lin-Chen/ShareGPT4V-7B",
        *(config.model for name, config in PRESETS.items() if name.startswith("tiny-")),
    }
    assert {name for name, config in PRESETS.items() if config.kind == "vlm"} == set(FAMILIES)


def test_layers_with_a_sliding_window_hold_no_more_tokens_than_the_window():
    config = published_config("gemma-3-4b")
    assert vlm_sizes(config, 256).layers == 34
    config.text_config.sliding_window = 57
    assert vlm_sizes(config, 256).layers == 5 + 4  # 29 of 34 layers have the window, an eighth of the 456 tokens
