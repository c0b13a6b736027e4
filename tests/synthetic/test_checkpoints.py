"""The committed tiny captioners have the layout of the Hub, a few megabytes, and captions with correct facts."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from lotlip_data.synthetic import measure_captioners
from lotlip_data.synthetic.scenes import SPLITS

CHECKPOINTS = Path(measure_captioners.__file__).parent / "checkpoints"
NAMES = ("tiny-instructblip", "tiny-llava", "tiny-sharegpt4v")
LLAVA_NAMES = (
    "vision_tower.vision_model.",
    "language_model.model.",
    "language_model.lm_head.",
    "multi_modal_projector.",
)


def weight_names(name: str) -> list[str]:
    with safe_open(CHECKPOINTS / name / "model.safetensors", "pt") as tensors:
        return list(tensors.keys())


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_has_the_files_of_the_hub_and_less_than_five_megabytes(name: str) -> None:
    folder = CHECKPOINTS / name
    for file in ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"):
        assert json.loads((folder / file).read_text())
    assert (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file()
    assert "knows nothing but" in (folder / "README.md").read_text()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5_000_000


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-sharegpt4v"])
def test_llava_weights_have_the_names_of_the_hub(name: str) -> None:
    names = weight_names(name)
    assert all(tensor.startswith(LLAVA_NAMES) for tensor in names)
    for prefix in LLAVA_NAMES:
        assert any(tensor.startswith(prefix) for tensor in names)


def test_sharegpt4v_has_its_own_vision_tower() -> None:
    tower = [name for name in weight_names("tiny-llava") if name.startswith("vision_tower.") and ".layers.1." in name]
    with (
        safe_open(CHECKPOINTS / "tiny-llava" / "model.safetensors", "pt") as llava,
        safe_open(CHECKPOINTS / "tiny-sharegpt4v" / "model.safetensors", "pt") as sharegpt4v,
    ):
        assert all(not llava.get_tensor(name).equal(sharegpt4v.get_tensor(name)) for name in tower)


@pytest.mark.parametrize("name", NAMES)
def test_a_captioner_states_the_facts_of_unseen_scenes(name: str) -> None:
    """At least 95% precision and recall on 40 scenes; the model ends every text itself."""
    result = measure_captioners.measure(CHECKPOINTS / name, SPLITS["captioner_test"][1000:1040], batch=40)
    assert min(result["facts_precision"], result["facts_recall"]) >= 0.95
    assert result["texts_without_end"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [96, 256])
@pytest.mark.parametrize("name", NAMES)
def test_a_captioner_states_the_facts_of_500_unseen_scenes_at_two_sizes(name: str, pixels: int) -> None:
    """At least 95% precision and recall, at the training size and at a larger one."""
    result = measure_captioners.measure(CHECKPOINTS / name, SPLITS["captioner_test"][:500], pixels)
    assert min(result["facts_precision"], result["facts_recall"]) >= 0.95
    assert result["texts_without_end"] == 0
