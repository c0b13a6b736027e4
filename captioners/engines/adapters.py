"""LoRA adapters: where their files are, and what vLLM has to know of them."""

import json
from pathlib import Path
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests.checkpoints.fetched import fetched_folder
from lotlip_data.manifests.checkpoints.hub import explain

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks of adapters between which vLLM lets one choose."""


def adapter_folder(config: CaptionerConfig) -> str:
    """Return the local folder of a captioner's adapter, which is downloaded if it is on the hub.

    Raises:
        ModelUnavailable: There is no such folder, or the hub has no such repository or does not answer.
        ValueError: There is no adapter in PEFT's format.
    """
    assert config.lora
    folder = Path(config.lora).expanduser()
    if not folder.is_dir():
        folder = fetched_folder(config.lora, config.lora_revision) or _download(config.lora, config.lora_revision)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"captioner {config.name!r}: lora={config.lora!r}: has no adapter_config.json, so it is no adapter in "
            "PEFT's format; give the folder or hub id of one"
        )
    return str(folder)


def _download(adapter: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter, revision=revision))
    except Exception as error:
        if explained := explain(error, adapter, revision):
            raise explained from error
        raise


def vllm_arguments(config: CaptionerConfig) -> dict[str, Any]:
    """Return vLLM's arguments for a captioner's adapter: none without one."""
    if not config.lora:
        return {}
    settings = json.loads((Path(adapter_folder(config)) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = next((rank for rank in RANKS if rank >= settings["r"]), RANKS[-1])
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
