"""A model is a local folder, a checkpoint that comes with the project, or a hub id."""

from pathlib import Path

import pytest

from lotlip_data.manifests.checkpoints.resolve import resolve


def test_a_folder_a_shipped_name_and_a_hub_id(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert (Path(resolve("tiny-llava")) / "config.json").is_file()
    assert resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_an_unknown_short_name_is_an_error_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"'tiny-blip': no such checkpoint.*known are .*tiny-llava"):
        resolve("tiny-blip")
