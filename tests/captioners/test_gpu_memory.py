"""How large a model is and how many captions fit beside it, against examples worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.captioners import gpu_memory
from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.gpu_memory import Sizes
from lotlip_data.captioners.registry import get_default
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError

KIB_A_GIB = 2**20
SMALL = Sizes(parameters=2**29, layers=16, kv_heads=4, head_size=4, image_tokens=30, prompt_tokens=10)
"""1 GiB of weights, 1 KiB of cache a token."""


def out_of_reach(*_: object, **__: object) -> None:
    raise OSError("offline")


def config_of(folder: Path, kind: str = "llava", **changes: Any) -> CaptionerConfig:
    """A captioner of a copy of the tiny checkpoint's config.json, whose fields `changes` change; None removes one."""
    layout = json.loads(Path(resolve(f"tiny-{kind}"), "config.json").read_text())
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (layout[part] if part else layout)[field] = value
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in layout.items() if value is not None})
    )
    return CaptionerConfig(name="mine", kind=kind, model=str(folder))


def test_the_cache_is_what_weights_and_working_memory_leave() -> None:
    """(0.5 × 40 − 6 − 1) GiB of 1 KiB a token; captions of 30 + 10 + 140 tokens: 75,730 of them, of 16 together."""
    assert gpu_memory.cache_tokens(SMALL, 40, 0.5) == 13 * KIB_A_GIB
    assert gpu_memory.sequences(SMALL, 40, 0.5) == 75_728
    assert gpu_memory.sequences(SMALL, 40, 0.5, caption=60.5) == 135_632  # of 100.5 tokens: 135,636.7
    assert gpu_memory.sequences(SMALL, 10, 0.5) == 0


def test_each_gpu_of_a_model_on_several_keeps_its_own_working_memory_and_the_weights_are_there_once() -> None:
    """2 × (0.5 × 40 − 6) − 1 GiB; or, where the cache's size is given, 2 × 3 GiB."""
    assert gpu_memory.cache_tokens(SMALL, 40, 0.5, gpus=2) == 27 * KIB_A_GIB
    assert gpu_memory.cache_tokens(SMALL, 40, 0.5, gpus=2, cache_gib=3) == 6 * KIB_A_GIB


def test_gpus_without_a_head_of_their_own_hold_that_of_another() -> None:
    """8 × (0.5 × 40 − 6) − 1 GiB; of 4 heads on 8 GPUs each is there twice, so a token takes 2 KiB. Or 8 × 3 GiB."""
    assert gpu_memory.cache_tokens(SMALL, 40, 0.5, gpus=4) == 55 * KIB_A_GIB
    assert gpu_memory.cache_tokens(SMALL, 40, 0.5, gpus=8) == 111 * KIB_A_GIB // 2
    assert gpu_memory.cache_tokens(SMALL, 40, 0.5, gpus=8, cache_gib=3) == 12 * KIB_A_GIB


def test_the_sizes_of_a_checkpoint_are_read_from_its_config() -> None:
    """tiny-llava: 36 patches of 96 pixels; a key and a value of 3 layers × 4 heads × 32, 2 bytes each."""
    found = gpu_memory.sizes_of(get_default("tiny-llava"))
    assert found is not None and found.image_tokens == 36
    assert found.kv_bytes_a_token == 2 * 2 * 3 * 4 * 32
    assert 500_000 < found.parameters < 5_000_000
    queries = gpu_memory.sizes_of(get_default("tiny-instructblip"))
    assert queries is not None and queries.image_tokens < 36


def test_a_published_model_out_of_reach_has_the_known_sizes_and_any_other_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", out_of_reach)
    assert gpu_memory.sizes_of(get_default("llava")) == gpu_memory.LLAVA
    assert gpu_memory.sizes_of(CaptionerConfig(name="mine", kind="llava", model="me/my-llava")) is None
    assert gpu_memory.sizes_of(CaptionerConfig(name="far", kind="openai", model="any")) is None


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_a_config_of_another_kind_or_with_bad_fields_is_told(tmp_path: Path, changes: Any, told: str) -> None:
    with pytest.raises(UserError, match=f"captioner 'mine'.*{told}"):
        gpu_memory.sizes_of(config_of(tmp_path, **changes))


def test_a_folder_without_a_readable_config_and_a_checkpoint_that_must_be_converted_are_told(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert gpu_memory.sizes_of(config) == gpu_memory.sizes_of(get_default("tiny-llava"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"captioner 'mine': .*JSON"):
        gpu_memory.sizes_of(config)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"captioner 'mine': .*config\.json"):
        gpu_memory.sizes_of(config)
    (tmp_path / "config.json").write_text('{"model_type": "share4v"}')
    with pytest.raises(UserError, match=r"captioner 'mine': .*lotlip-data convert sharegpt4v"):
        gpu_memory.sizes_of(CaptionerConfig(name="mine", kind="sharegpt4v", model=str(tmp_path)))
    with pytest.raises(UserError, match="no such checkpoint comes with the project"):
        gpu_memory.sizes_of(CaptionerConfig(name="mine", kind="llava", model="tiny-none"))
