"""A captioner's configuration names each invalid setting, and its id covers exactly what can change a text."""

import dataclasses
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
}


@pytest.mark.parametrize("field", CHANGES)
def test_id_changes_with_every_setting_that_can_change_a_text(field):
    assert dataclasses.replace(CONFIG, **{field: CHANGES[field]}).id != CONFIG.id


@pytest.mark.parametrize("change", [{"seed": 1}, {"top_p": 0.9}])
def test_the_id_of_greedy_decoding_ignores_sampling_settings(change):
    assert dataclasses.replace(CONFIG, **change).id == CONFIG.id


@pytest.mark.parametrize("change", [{"seed": 1}, {"top_p": 0.9}])
def test_the_id_of_sampling_covers_its_settings(change):
    sampled = dataclasses.replace(CONFIG, temperature=1.0)
    assert dataclasses.replace(sampled, **change).id != sampled.id


def test_the_tests_above_cover_every_setting():
    considered = {*CHANGES, "name", "seed", "top_p"}
    assert considered == {field.name for field in dataclasses.fields(CaptionerConfig)}


def test_id_is_the_name_and_12_hex_digits_and_never_changes_between_releases():
    # If this id changes, all existing runs caption their images again.
    assert CONFIG.id == "llava@8573270c1f8f"


def test_to_dict_and_back_is_the_identity():
    config = dataclasses.replace(CONFIG, **CHANGES)
    assert CaptionerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "LLaVA 1.5"}, "captioner 'LLaVA 1.5': name='LLaVA 1.5': use a-z, 0-9, _ and - only"),
        ({"max_new_tokens": 0}, "captioner 'llava': max_new_tokens=0: must be at least 1"),
        ({"dtype": "fp16"}, "captioner 'llava': dtype='fp16': use one of auto, float32, bfloat16, float16"),
        ({"temperature": -1.0}, "captioner 'llava': temperature=-1.0: must be 0 (greedy) or more"),
        ({"top_p": 0.0}, "captioner 'llava': top_p=0.0: must be above 0 and at most 1"),
        ({"template": "USER:"}, "captioner 'llava': template='USER:': must contain {prompt}"),
        ({"prompt": " "}, "captioner 'llava': prompt=' ': say what to describe"),
        ({"tensor_parallel_size": 0}, "captioner 'llava': tensor_parallel_size=0: must be at least 1"),
    ],
)
def test_an_invalid_value_is_rejected_with_field_and_fix(change, message):
    with pytest.raises(ValueError) as raised:
        dataclasses.replace(CONFIG, **change)
    assert str(raised.value) == message


def test_an_unknown_setting_is_reported_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown setting promt; known are name, kind, model, revision, prompt,"):
        CaptionerConfig.from_dict({"name": "a", "kind": "llava", "model": "m", "promt": "x"})


def test_a_missing_setting_is_reported():
    with pytest.raises(ValueError, match="kind, model must be given"):
        CaptionerConfig.from_dict({"name": "a"})


def test_invalid_engine_options_are_rejected():
    with pytest.raises(ValueError, match="unknown engine option batch; known are batch_size,"):
        load_engine(CONFIG, batch=4)
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        EngineOptions(batch_size=0)
    with pytest.raises(ValueError, match=r"gpu_memory_utilization=1.5: a share, so at most 1"):
        EngineOptions(gpu_memory_utilization=1.5)


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
