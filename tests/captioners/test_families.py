"""What is said of a family before its checkpoint is loaded is what its own processor says when it is loaded."""

import importlib.util
import json
from pathlib import Path

import pytest
import transformers

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.engines.processor_inputs import _limits_pixels
from lotlip_data.captioners.engines.processor_loading import load_processor
from lotlip_data.captioners.families import FAMILIES
from lotlip_data.captioners.models.vlm import Vlm
from lotlip_data.captioners.presets import PRESETS
from tests.captioners import tiny_vlms


def family_of(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


@pytest.mark.parametrize("name", tiny_vlms.FAMILIES)
def test_the_limits_of_a_family_are_those_of_its_image_processor(name: str, tmp_path: Path) -> None:
    folder = tiny_vlms.write(name, tmp_path / "model")
    family = FAMILIES[family_of(folder)]
    for package in family.packages:
        pytest.importorskip(package)
    options = {"local_files_only": True}
    processor = load_processor(str(folder), options, transformers.AutoConfig.from_pretrained(folder, **options))
    assert _limits_pixels(processor.image_processor) is family.pixel_limits


def test_limits_of_pixels_that_a_family_lacks_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    message = "min_pixels and max_pixels: models of the family gemma3 have no limit of pixels; leave it out"
    preset = PRESETS["gemma-3-4b"].replace(min_pixels=64, max_pixels=1000)
    with pytest.raises(ValueError, match=message):
        Vlm().check_settings(preset)  # without the hub
    folder = tiny_vlms.write("gemma3", tmp_path / "model")
    mine = CaptionerConfig(name="mine", kind="vlm", model=str(folder), min_pixels=64, max_pixels=1000)
    with pytest.raises(ValueError, match=message):
        Vlm().check_model(mine)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "of_next_year"}')
    Vlm().check_settings(mine)
    Vlm().check_model(mine)  # its own processor says it when the engine starts


def test_a_package_that_a_family_needs_is_named_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    mine = CaptionerConfig(name="mine", kind="vlm", model=str(tmp_path))
    installed = set[str]()
    find_spec = importlib.util.find_spec

    def find(name: str, *rest: object) -> object:
        return name in installed if name in ("num2words", "peft") else find_spec(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib.util, "find_spec", find)
    for config in (PRESETS["smolvlm2"], mine):
        with pytest.raises(ValueError, match=r"needs the package num2words: pip install num2words where its engine"):
            Vlm().check_options(config, "vllm", EngineOptions())
    with pytest.raises(ValueError, match=r"needs the packages num2words and peft: pip install num2words peft"):
        Vlm().check_options(mine.replace(lora="adapter"), "transformers", EngineOptions())
    installed.update(("num2words", "peft"))
    Vlm().check_options(mine.replace(lora="adapter"), "transformers", EngineOptions())
