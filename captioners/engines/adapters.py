"""LoRA adapters: where their files are, and what vLLM has to know of them."""

import json
from pathlib import Path
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks of adapters between which vLLM lets one choose."""


def adapter_folder(config: CaptionerConfig) -> str:
    """Return the local folder of a captioner's adapter, which is downloaded if it is on the hub.

    Raises:
        ValueError: There is no adapter in PEFT's format.
    """
    assert config.lora
    folder = Path(config.lora).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(config.lora, revision=config.lora_revision))
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"captioner {config.name!r}: lora={config.lora!r}: has no adapter_config.json, so it is no adapter in "
            "PEFT's format; give the folder or hub id of one"
        )
    return str(folder)


def vllm_arguments(config: CaptionerConfig) -> dict[str, Any]:
    """Return vLLM's arguments for a captioner's adapter: none without one."""
    if not config.lora:
        return {}
    settings = json.loads((Path(adapter_folder(config)) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = next((rank for rank in RANKS if rank >= settings["r"]), RANKS[-1])
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
