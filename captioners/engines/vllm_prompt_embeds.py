"""Takes the language model out of an InstructBLIP checkpoint, once, as a stock checkpoint that vLLM reads.

A captioner whose language model alone is in vLLM: transformers makes the prompt's embeddings, in batches.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions, ModelSpec
from lotlip_data.captioners.engines.batcher import Batcher
from lotlip_data.captioners.engines.preprocessing import Inputs
from lotlip_data.captioners.engines.transformers_engine import load_model
from lotlip_data.captioners.engines.vllm_engine import VllmEngine, embeds_request, engine_args
from lotlip_data.manifests.checkpoints.weights import (
    differences,
    model_shapes,
    read_weights,
    weight_files,
    write_index,
    write_weights,
)

PREFIX = "language_model."


def export_language_model(source: str, options: dict[str, Any], cache_dir: str) -> Path:
    """The folder in `cache_dir` with the language model of `source` (hub id or local folder), made if missing.

    The same checkpoint gives the same folder, a changed one another. Weights are copied from where they are mapped, so
    memory does not grow with them. The folder appears whole or not at all, so several actors of a machine may ask at
    once. Raises ValueError if the checkpoint has no weights, not those of its language model, or if that is not
    decoder-only.
    """
    checkpoint = _local_folder(source, options)
    files = weight_files(checkpoint)
    identity = [
        str(checkpoint.resolve()),
        *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files),
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    target = Path(cache_dir).expanduser() / "language_models" / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{key}-"))
    try:
        config = _text_config(checkpoint)
        _write_weights(files, unfinished, config)
        config.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # else another actor was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def stock_name(name: str) -> str | None:
    """What a tensor of InstructBLIP is called in its language model alone; None if it is of the image half.

    None, too, for the rotary frequencies that old versions of transformers saved with each layer.
    """
    if not name.startswith(PREFIX) or name.endswith(".rotary_emb.inv_freq"):
        return None
    return name.removeprefix(PREFIX)


def _local_folder(source: str, options: dict[str, Any]) -> Path:
    """Where the checkpoint lies. Of a repository with both formats, safetensors alone are fetched."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    def fetch(ending: str) -> Path:
        patterns = ["*.json", f"*.{ending}"]
        return Path(snapshot_download(source, revision=options["revision"], allow_patterns=patterns))

    folder = fetch("safetensors")
    return folder if any(folder.glob("*.safetensors")) else fetch("bin")


def _text_config(checkpoint: Path) -> Any:
    """The language model's configuration, as of a checkpoint of its own."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    whole: Any = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    text = whole.text_config
    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{checkpoint}: its language model, {text.model_type}, is not decoder-only; use transformers")
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    text.dtype = text.dtype or whole.dtype
    return text


def _write_weights(files: list[Path], folder: Path, config: Any) -> None:
    weight_map: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    size = 0
    for file in files:
        weights = read_weights(file)
        ours = {new: weights[old] for old in weights if (new := stock_name(old)) is not None}
        if ours:
            name = f"{file.stem}.safetensors"
            write_weights(folder / name, ours)
            weight_map |= dict.fromkeys(ours, name)
            shapes |= {new: tuple(tensor.shape) for new, tensor in ours.items()}
            size += sum(tensor.nbytes for tensor in ours.values())
    if problems := differences(model_shapes(config.architectures[0], config), shapes):
        raise ValueError(f"{files[0].parent}: its language model is not whole: {'; '.join(problems)}; fetch it again")
    write_index(folder, weight_map, size)


class VllmEmbedsEngine(VllmEngine):
    """InstructBLIP at vLLM's speed, with the captions that transformers' `generate` gives."""

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, resources: EngineOptions):
        inputs = Inputs(captioner, config)
        structure = AutoConfig.from_pretrained(inputs.source, **inputs.options)
        structure.text_config.num_hidden_layers = 0  # of the language model, only the token embeddings are needed here
        self._vision: Any = load_model(captioner.model_class, inputs, config, structure)
        self._prompt = {name: ids.to(self._vision.device) for name, ids in inputs.prompt.items()}
        arguments = engine_args(
            config,
            resources,
            inputs,
            model=str(export_language_model(inputs.source, inputs.options, resources.cache_dir)),
            revision=None,
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            limit_mm_per_prompt=None,
            gpu_memory_utilization=resources.gpu_memory_utilization - self._gpu_share(inputs, resources.batch_size),
        )
        super().__init__(config, inputs, arguments)
        self._embed = Batcher(self._embeddings, resources.batch_size)

    def close(self) -> None:
        super().close()
        self._embed.close()
        self._vision = None

    def _render(self, config: CaptionerConfig) -> None:
        """Nothing: embeddings are the whole of what vLLM is asked."""

    async def _request(self, pixels: torch.Tensor) -> Any:
        return embeds_request(await self._embed(pixels))

    @torch.inference_mode()
    def _embeddings(self, pixels: list[torch.Tensor]) -> list[torch.Tensor]:
        batch = torch.cat(pixels).to(self._vision.device, self._vision.dtype)
        return list(prompt_embeddings(self._vision, batch, self._prompt).cpu())

    def _gpu_share(self, inputs: Inputs, batch_size: int) -> float:
        """The share of the GPU that this half takes, measured on one full batch: vLLM must not count on it."""
        if not torch.cuda.is_available():
            return 0.0
        self._embeddings([inputs.pixels(Image.new("RGB", (64, 64)))] * batch_size)
        return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory


def prompt_embeddings(model: Any, pixels_BCHW: Any, prompt: dict[str, Any]) -> Any:
    """(B, L, D): what InstructBLIP's language model reads for B images under one prompt of (1, …) tensors.

    model: InstructBlipForConditionalGeneration, of which the language model's layers are not used. The computation is
    that of its `generate`: the prompt's token embeddings, with the projected query tokens in the image's places.
    """
    count = len(pixels_BCHW)
    ids_BL = prompt["input_ids"].expand(count, -1)
    image = model.get_image_features(
        pixels_BCHW,
        qformer_input_ids=prompt["qformer_input_ids"].expand(count, -1),
        qformer_attention_mask=prompt["qformer_attention_mask"].expand(count, -1),
        return_dict=True,
    ).pooler_output
    embeds_BLD = model.get_input_embeddings()(ids_BL)
    places = (ids_BL == model.config.image_token_id).unsqueeze(-1)
    return embeds_BLD.masked_scatter(places, image.to(embeds_BLD.dtype))
