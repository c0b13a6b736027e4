"""Sizes of models, and the number of captions that fit next to them, against examples calculated by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.captioners import gpu_memory, sizing
from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_default
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError


def config_of(folder: Path, kind: str = "llava", **changes: Any) -> CaptionerConfig:
    """A captioner with a copy of the tiny checkpoint's config.json and `changes` to it; None removes a field."""
    layout = json.loads(Path(resolve(f"tiny-{kind}"), "config.json").read_text())
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (layout[part] if part else layout)[field] = value
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in layout.items() if value is not None})
    )
    return CaptionerConfig(name="mine", kind=kind, model=str(folder))


def test_the_sizes_of_a_checkpoint_are_read_from_its_config() -> None:
    """tiny-llava: 36 patches of 96 pixels; a key and a value for 3 layers × 4 heads × 32, 2 bytes each."""
    llava = gpu_memory.read_model_sizes(get_default("tiny-llava"))
    assert llava is not None and llava.image_tokens == 36
    assert llava.kv_bytes_per_token == 2 * 2 * 3 * 4 * 32
    assert 500_000 < llava.parameters < 5_000_000
    instructblip = gpu_memory.read_model_sizes(get_default("tiny-instructblip"))
    assert instructblip is not None and instructblip.image_tokens < 36


def test_without_the_hub_a_published_model_has_its_known_sizes_and_any_other_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert gpu_memory.read_model_sizes(get_default("llava")) == sizing.LLAVA
    assert gpu_memory.read_model_sizes(CaptionerConfig(name="mine", kind="llava", model="me/my-llava")) is None
    assert gpu_memory.read_model_sizes(CaptionerConfig(name="far", kind="openai", model="any")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama': captioners of this kind need 'llava'"),
        ({"model_type": None}, "model_type=None: captioners of this kind need 'llava'"),
        ({"model_type": "share4v"}, "model_type='share4v': captioners of this kind need 'llava'"),
        ({"vision_config": None}, "vision_config=None: must hold the settings"),
        ({"text_config": [1]}, r"text_config=\[1\]: must hold the settings"),
        ({"text_config__hidden_size": "x"}, "'hidden_size' expected int, got str"),
        ({"text_config__hidden_size": 0}, "text_config.hidden_size=0: must be a whole number above 0"),
        ({"text_config__model_type": "none of them"}, "none of them"),
        ({"text_config__vocab_size": -4}, "config.json of"),
        ({"vision_config__patch_size": 0}, "vision_config.patch_size=0: must be a whole number above 0"),
    ],
)
def test_a_config_of_another_kind_or_with_invalid_fields_is_reported(
    tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(UserError, match=f"captioner 'mine'.*{message}"):
        gpu_memory.read_model_sizes(config_of(tmp_path, **changes))


def test_an_unreadable_config_and_an_unconverted_checkpoint_are_reported(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert gpu_memory.read_model_sizes(config) == gpu_memory.read_model_sizes(get_default("tiny-llava"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"captioner 'mine': .*JSON"):
        gpu_memory.read_model_sizes(config)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"captioner 'mine': .*config\.json"):
        gpu_memory.read_model_sizes(config)
    (tmp_path / "config.json").write_text('{"model_type": "share4v"}')
    with pytest.raises(UserError, match=r"captioner 'mine': .*lotlip-data convert sharegpt4v"):
        gpu_memory.read_model_sizes(CaptionerConfig(name="mine", kind="sharegpt4v", model=str(tmp_path)))
    with pytest.raises(UserError, match="no such checkpoint comes with the project"):
        gpu_memory.read_model_sizes(CaptionerConfig(name="mine", kind="llava", model="tiny-none"))
