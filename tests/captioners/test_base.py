"""A captioner's configuration names each invalid setting, and its id covers exactly what can change a text."""

import subprocess
import sys

import pytest

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.registry import load_engine

CONFIG = CaptionerConfig(name="llava", kind="llava", model="llava-hf/llava-1.5-7b-hf")
CHANGES = {
    "kind": "sharegpt4v",
    "model": "elsewhere",
    "revision": "a1b2c3",
    "prompt": "What is shown?",
    "template": "{prompt} <image>",
    "max_new_tokens": 255,
    "dtype": "float32",
    "temperature": 0.7,
    "quantization": "awq",
    "tensor_parallel_size": 2,
    "max_model_len": 1024,
    "request": {"repetition_penalty": 1.1},
    "repetition_penalty": 1.1,
    "min_new_tokens": 4,
    "image_fit": "pad",
    "system": "You describe images.",
    "chat_template_kwargs": {"enable_thinking": False},
    "min_pixels": 3136,
    "max_pixels": 1_000_000,
    "size": {"longest_edge": 768},
    "stop": ["\n\n"],
    "trust_remote_code": True,
    "lora": "someone/adapter",
    "lora_revision": "main",
    "structured": {"choice": ["yes", "no"]},
    "strip": ["preamble"],
    "kv_cache_dtype": "fp8",
}
PROMPTS = {"long": "Describe it.", "tags": {"prompt": "Tag it.", "max_new_tokens": 48}}
SAMPLING = [{"seed": 1}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}]


@pytest.mark.parametrize("field", CHANGES)
def test_id_changes_with_every_setting_that_can_change_a_text(field):
    assert CONFIG.replace(**{field: CHANGES[field]}).id != CONFIG.id


@pytest.mark.parametrize("change", SAMPLING)
def test_the_id_of_greedy_decoding_ignores_sampling_settings(change):
    assert CONFIG.replace(**change).id == CONFIG.id


@pytest.mark.parametrize("change", SAMPLING)
def test_the_id_of_sampling_covers_its_settings(change):
    sampled = CONFIG.replace(temperature=1.0)
    assert sampled.replace(**change).id != sampled.id


@pytest.mark.parametrize(
    ("prompt", "counts"), [("Describe {raw}.", True), ("Describe {{raw}}.", True), ('As {"a": 1} and {text}.', False)]
)
def test_the_id_covers_the_length_of_fields_if_the_prompt_has_any(prompt, counts):
    config = CONFIG.replace(prompt=prompt)
    assert (config.replace(max_field_characters=20).id != config.id) == counts


@pytest.mark.parametrize(("prompt", "counts"), [("Describe {raw}.", True), ("Describe {width}.", False)])
def test_the_id_covers_the_prompt_without_a_raw_text_if_the_other_one_has_it(prompt, counts):
    config = CONFIG.replace(prompt=prompt)
    assert (config.replace(prompt_without_raw="Describe it.").id != config.id) == counts


def test_prompts_with_fields_have_other_ids_than_the_same_prompts_before_fields_existed():
    """The second prompt has no field, so its id is that of earlier releases; the first one means something else now."""
    assert CONFIG.replace(prompt='Answer as {"text": "…"} or {x}.').id == "llava@d264bb5416ba"
    assert CONFIG.replace(prompt="Repeat {raw}.").id != "llava@a6111bbae5e9"


def test_the_tests_above_cover_every_setting():
    sampling = {field for change in SAMPLING for field in change}
    considered = {*CHANGES, *sampling, "name", "prompts", "max_field_characters", "prompt_without_raw"}
    assert considered == set(CaptionerConfig.model_fields)


def test_id_is_the_name_and_12_hex_digits_and_never_changes_between_releases():
    # If this id changes, all existing runs caption their images again.
    assert CONFIG.id == "llava@8573270c1f8f"


def test_a_text_of_several_is_the_captioner_of_that_prompt_alone_whatever_other_prompts_there_are():
    long, tags = CONFIG.replace(prompts=PROMPTS).texts
    assert long == CONFIG.replace(name="llava_long", prompt="Describe it.")
    assert tags == CONFIG.replace(name="llava_tags", prompt="Tag it.", max_new_tokens=48)
    assert long.id == "llava_long@05563039174b"
    assert CONFIG.replace(prompts={"more": "Say more.", "long": "Describe it."}).texts[1].id == long.id
    assert CONFIG.replace(prompts=PROMPTS).id != CONFIG.id
    assert CONFIG.texts == (CONFIG,)


def test_to_dict_and_back_is_the_identity():
    together = {name: value for name, value in CHANGES.items() if name != "structured"}  # it excludes min_new_tokens
    structured = CONFIG.replace(structured=CHANGES["structured"])
    for config in (CONFIG.replace(**together), structured, CONFIG.replace(prompts=PROMPTS)):
        assert CaptionerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "LLaVA 1.5"},
            "captioner 'LLaVA 1.5': `name`: 'LLaVA 1.5' may contain only lowercase letters, digits, - and _",
        ),
        ({"max_new_tokens": 0}, "captioner 'llava': `max_new_tokens`: 0 is too small; it must be at least 1"),
        (
            {"dtype": "fp16"},
            "captioner 'llava': `dtype`: 'fp16' is unknown; known are auto, float32, bfloat16, float16",
        ),
        ({"temperature": -1.0}, "captioner 'llava': `temperature`: -1.0 is too small; it must be at least 0"),
        ({"top_p": 0.0}, "captioner 'llava': `top_p`: 0.0 is too small; it must be above 0"),
        ({"template": "USER:"}, "captioner 'llava': `template`: 'USER:' must contain {prompt}"),
        ({"prompt": " "}, "captioner 'llava': `prompt`: is empty; say what the model should describe"),
        (
            {"prompt": "What is this?", "prompts": PROMPTS},
            "captioner 'llava': `prompt`: has no effect beside `prompts`; move it there and give it a name",
        ),
        (
            {"prompts": {"Long": "Describe it."}},
            "captioner 'llava': `prompts.Long`: 'Long' may contain only lowercase letters, digits, - and _",
        ),
        (
            {"prompts": {"long_sub": "Describe it."}},
            "captioner 'llava': `prompts.long_sub`: 'long_sub': columns of sub-captions and of flags end like this; "
            "choose another name",
        ),
        (
            {"prompts": {"long": {"prompt": "Describe it.", "model": "other"}}},
            "captioner 'llava': `prompts.long`: `model`: holds for all texts of a captioner; set it beside `prompts`",
        ),
        (
            {"prompts": {"long": {"prompt": "Describe it.", "max_tokens": 9}}},
            "captioner 'llava': `prompts.long.max_tokens`: there is no such setting; did you mean `max_new_tokens`?",
        ),
        ({"prompts": {"long": {}}}, "captioner 'llava': `prompts.long.prompt`: is missing"),
        (
            {"prompts": {"long": " "}},
            "captioner 'llava': `prompts.long.prompt`: is empty; say what the model should describe",
        ),
        (
            {"prompts": {"long": {"prompt": "x", "min_new_tokens": 300}}},
            "captioner 'llava': `prompts.long`: `min_new_tokens`: 300 must not exceed max_new_tokens=256",
        ),
        (
            {"tensor_parallel_size": 0},
            "captioner 'llava': `tensor_parallel_size`: 0 is too small; it must be at least 1",
        ),
    ],
)
def test_an_invalid_value_is_rejected_with_field_and_fix(change, message):
    with pytest.raises(ValueError) as raised:
        CONFIG.replace(**change)
    assert str(raised.value) == message


def test_an_unknown_setting_is_reported_with_the_known_ones():
    with pytest.raises(ValueError, match="`promt`: there is no such setting; did you mean `prompt`"):
        CaptionerConfig.from_dict({"name": "a", "kind": "llava", "model": "m", "promt": "x"})


def test_a_missing_setting_is_reported():
    with pytest.raises(ValueError, match="`kind`: is missing; `model`: is missing"):
        CaptionerConfig.from_dict({"name": "a"})


def test_invalid_engine_options_are_rejected():
    with pytest.raises(ValueError, match="`batch`: there is no such setting; did you mean `batch_size`"):
        load_engine(CONFIG, batch=4)
    with pytest.raises(ValueError, match="`batch_size`: 0 is too small; it must be at least 1"):
        EngineOptions.parse({"batch_size": 0})
    with pytest.raises(ValueError, match=r"`gpu_memory_utilization`: 1.5 is too large; it must be at most 1"):
        EngineOptions.parse({"gpu_memory_utilization": 1.5})


def test_an_unknown_engine_is_rejected():
    with pytest.raises(ValueError, match="engine='tgi': use auto, vllm or transformers"):
        load_engine(CONFIG, engine="tgi")


def test_importing_configuration_registry_and_flags_imports_no_model_library():
    code = (
        "import sys; import lotlip_data.captioners.base, lotlip_data.captioners.registry;"
        "import lotlip_data.captioners.quality_flags;"
        "sys.exit(bool({'torch', 'transformers', 'vllm', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
