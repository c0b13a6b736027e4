"""InstructBLIP in vLLM: transformers computes the prompts' embeddings, in batches, and vLLM runs the language model.

vLLM has no InstructBLIP. It runs the language model alone, from a stock checkpoint that is exported once from the
InstructBLIP checkpoint, and takes embeddings instead of tokens as prompts.
"""

import copy
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions, ModelSpec
from lotlip_data.captioners.engines.batcher import Batcher
from lotlip_data.captioners.engines.devices import current_gpu, defaults_of
from lotlip_data.captioners.engines.mixed_batches import SharedVision, distinct_images, padded
from lotlip_data.captioners.engines.preprocessing import PreparedText, Preprocessor, Prompt
from lotlip_data.captioners.engines.transformers_engine import load_model
from lotlip_data.captioners.engines.vllm_engine import VllmEngine, embeds_request, engine_args
from lotlip_data.captioners.sizing import language_dtype, resolve_dtype
from lotlip_data.manifests.checkpoints.weights import (
    differences,
    model_shapes,
    read_weights,
    weight_files,
    write_index,
    write_weights,
)

PREFIX = "language_model."
OUTPUT_MATRIX = "lm_head.weight"
MAX_COPIED_BYTES = 1 << 30
"""Converted weights that are held in memory before they are written."""


class VllmEmbedsEngine(VllmEngine):
    """InstructBLIP at vLLM's speed, with the captions of transformers' `generate`."""

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, options: EngineOptions):
        preprocessor = Preprocessor(captioner, config)
        model_config = AutoConfig.from_pretrained(preprocessor.source, **preprocessor.load_options)
        model_config.text_config.num_hidden_layers = 0  # only its token embeddings are needed in this process
        self._vision: Any = load_model(captioner.model_class, preprocessor, config, model_config)
        self._shared = SharedVision(self._vision)
        dtype = export_dtype(config, preprocessor.model_config)
        language_model = export_language_model(preprocessor.source, preprocessor.load_options, options.cache_dir, dtype)
        batch_size = options.batch_size or defaults_of(config, options, preprocessor).batch_size
        vision_share = self._vision_gpu_share(preprocessor, batch_size)
        arguments = engine_args(
            config,
            leave_for_vllm(config, options, vision_share),
            preprocessor,
            language_only=True,
            model=str(language_model),
            revision=None,
            **_tokenizer(config, preprocessor),
            enable_prompt_embeds=True,
            limit_mm_per_prompt=None,
            enable_prefix_caching=False,  # the image's embeddings depend on the prompt
        )
        super().__init__(config, preprocessor, arguments)
        self._embed = Batcher(self._embeddings, batch_size, preprocessor.blank_text)
        self.capacity = replace(self.capacity, batch_size=batch_size)

    def close(self) -> None:
        super().close()
        self._embed.close()
        self._vision = None

    def _prepare_requests(self, config: CaptionerConfig) -> None:
        """Do nothing: requests share no prompt, since the embeddings are a request's whole content."""

    async def _request(self, prepared: PreparedText) -> Any:
        return embeds_request(await self._embed(prepared))

    @torch.inference_mode()
    def _embeddings(self, batch: list[PreparedText]) -> list[torch.Tensor]:
        """Return (L, D) prompt embeddings for each text. The image encoder runs once for each image."""
        device, dtype = self._vision.device, self._vision.dtype
        images, rows = distinct_images(batch)
        with self._shared.images(torch.cat(images).to(device, dtype)) as shared:
            shared.rows = rows
            pixels_BCHW = torch.cat([prepared.pixels for prepared in batch]).to(device, dtype)
            prompts = [prepared.prompt for prepared in batch]
            return [embeds_LD.cpu() for embeds_LD in prompt_embeddings(self._vision, pixels_BCHW, prompts)]

    def _vision_gpu_share(self, preprocessor: Preprocessor, batch_size: int) -> float:
        """Measure the share of the GPU's memory that a full batch takes in this process; vLLM must leave it free."""
        if not torch.cuda.is_available():
            return 0.0
        self._embeddings([preprocessor.blank_text() for _ in range(batch_size)])
        return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory


def _tokenizer(config: CaptionerConfig, preprocessor: Preprocessor) -> dict[str, Any]:
    """Arguments for vLLM's tokenizer. It reads and writes numbers only, unless a text must have a form."""
    if all(text.structured is None for text in config.texts):
        return {"skip_tokenizer_init": True}
    return {"tokenizer": preprocessor.source, "tokenizer_revision": config.revision}


def prompt_embeddings(model: Any, pixels_BCHW: Any, prompts: Sequence[Prompt]) -> list[Any]:
    """Return (L, D) for each of B images and its prompt: what InstructBLIP's language model reads.

    The computation is that of InstructBLIP's `generate`: the prompt's token embeddings, with the projected query tokens
    at the positions of the image.

    Args:
        model: InstructBlipForConditionalGeneration; its language model's layers are not used.
        pixels_BCHW: Preprocessed images.
        prompts: The prompt of each image.
    """
    inputs = padded([prompt.inputs for prompt in prompts])
    ids_BL = inputs["input_ids"].to(pixels_BCHW.device)
    image_features = model.get_image_features(
        pixels_BCHW,
        qformer_input_ids=inputs["qformer_input_ids"].to(pixels_BCHW.device),
        qformer_attention_mask=inputs["qformer_attention_mask"].to(pixels_BCHW.device),
        return_dict=True,
    ).pooler_output
    embeds_BLD = model.get_input_embeddings()(ids_BL)
    is_image_BL1 = (ids_BL == model.config.image_token_id).unsqueeze(-1)
    embeds_BLD = embeds_BLD.masked_scatter(is_image_BL1, image_features.to(embeds_BLD.dtype))
    return [embeds_LD[-prompt.length :] for embeds_LD, prompt in zip(embeds_BLD, prompts, strict=True)]


def leave_for_vllm(config: CaptionerConfig, options: EngineOptions, vision_share: float) -> EngineOptions:
    """The options of vLLM's part of the engine.

    Args:
        config: The captioner.
        options: Those of the whole engine.
        vision_share: Share of the GPU's memory that the image half takes.

    Raises:
        ValueError: The image half takes all that the engine may use.
    """
    left = round(options.gpu_memory_utilization - vision_share, 4)
    if left <= 0:
        raise ValueError(
            f"captioner {config.name!r}: ViT-g and Q-Former take {vision_share:.0%} of the GPU's memory, and the "
            f"engine may use {options.gpu_memory_utilization:.0%} in all; raise gpu_memory_utilization, give the actor "
            "a larger part of a GPU (`num_gpus`), or lower batch_size"
        )
    return options.replace(gpu_memory_utilization=left)


def export_dtype(config: CaptionerConfig, model_config: Any) -> str:
    """The precision in which this machine's engines of a captioner read its exported language model."""
    return resolve_dtype(config.dtype, language_dtype(model_config), current_gpu())


def export_language_model(source: str, load_options: dict[str, Any], cache_dir: str, dtype: str = "auto") -> Path:
    """Export the language model of an InstructBLIP checkpoint as a stock checkpoint, unless that has been done.

    The same checkpoint and precision map to the same folder, others to another. Weights are copied from memory-mapped
    files, and converted a part at a time, so memory does not grow with their size. Several actors of a machine may
    call this at once: one of them writes the tens of gigabytes, and the others wait. What a killed process left is
    removed.

    Args:
        source: Local folder or hub id.
        load_options: `revision` and `local_files_only`, as in `Preprocessor.load_options`.
        cache_dir: Folder that holds exported language models.
        dtype: Precision of the exported weights: those of a wider one are converted, others stay as they are. `auto`
            converts none.

    Raises:
        ValueError: Weights are missing, or the language model is not decoder-only.
    """
    checkpoint = _fetch(source, load_options)
    files = weight_files(checkpoint)
    target = Path(cache_dir).expanduser() / "language_models" / _content_key(checkpoint, files, dtype)
    locks = target.parent.with_name("locks")
    for folder in (target.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{target.name}.lock"):  # held by a living process only
        if not target.is_dir():
            _export(checkpoint, files, target, dtype)
    return target


def _export(checkpoint: Path, files: list[Path], target: Path, dtype: str) -> None:
    """Write the language model to the folder `target`, which appears as a whole. The caller holds the folder's lock."""
    for killed in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(killed, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        config = _text_config(checkpoint)
        _write_weights(files, unfinished, config, dtype)
        config.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def stock_name(name: str) -> str | None:
    """Return the name in a stock language model of a tensor of InstructBLIP; None if it is left out.

    Left out are the image half, and the rotary frequencies that old versions of transformers saved with each layer.
    """
    if not name.startswith(PREFIX) or name.endswith(".rotary_emb.inv_freq"):
        return None
    return name.removeprefix(PREFIX)


def _content_key(checkpoint: Path, files: list[Path], dtype: str) -> str:
    """Return 16 hex digits that change with the checkpoint's folder, its weight files, and a conversion of them."""
    stats = [(file.name, file.stat()) for file in files]
    identity = [str(checkpoint.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]
    if dtype not in ("auto", "float32"):  # float32 converts no weights in practice
        identity.append(dtype)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _fetch(source: str, load_options: dict[str, Any]) -> Path:
    """Return the checkpoint's local folder. From a hub repository with both formats, only safetensors are fetched."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    def fetch(ending: str) -> Path:
        patterns = ["*.json", f"*.{ending}"]
        return Path(snapshot_download(source, revision=load_options["revision"], allow_patterns=patterns))

    folder = fetch("safetensors")
    return folder if any(folder.glob("*.safetensors")) else fetch("bin")


def _text_config(checkpoint: Path) -> Any:
    """Return the language model's configuration, as a checkpoint of its own has it.

    Raises:
        ValueError: The language model is not decoder-only.
    """
    whole: Any = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    text = whole.text_config
    reason = f"{checkpoint}: its language model, {text.model_type}, is not decoder-only; use engine='transformers'"
    if text.is_encoder_decoder:
        raise ValueError(reason)
    try:
        with torch.device("meta"):
            # A copy, since building a model writes into its configuration.
            model = AutoModelForCausalLM.from_config(copy.deepcopy(text))
    except ValueError as error:
        raise ValueError(reason) from error
    text.architectures = [type(model).__name__]
    return text


def _write_weights(files: list[Path], folder: Path, config: Any, dtype: str) -> None:
    """Write the language model's tensors and their index, and set the precision of its configuration to theirs.

    Raises:
        ValueError: The tensors are not those of the model that `config` describes.
    """
    weight_map: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: Counter[torch.dtype] = Counter()
    for file in files:
        weights = read_weights(file)
        exported = {new: weights[old] for old in weights if (new := stock_name(old)) is not None}
        for number, part in enumerate(_converted(exported, dtype)):
            name = f"{file.stem}-{number}.safetensors" if number else f"{file.stem}.safetensors"
            write_weights(folder / name, part)
            weight_map |= dict.fromkeys(part, name)
            shapes |= {new: tuple(tensor.shape) for new, tensor in part.items()}
            for tensor in part.values():
                sizes[tensor.dtype] += tensor.nbytes
    expected = model_shapes(config.architectures[0], config)
    if config.tie_word_embeddings:  # the output matrix is the input matrix, and a file may hold it once
        expected = {name: shape for name, shape in expected.items() if name in shapes or name != OUTPUT_MATRIX}
    if problems := differences(expected, shapes):
        raise ValueError(
            f"{files[0].parent}: its language model is incomplete: {'; '.join(problems)}; fetch the checkpoint again"
        )
    write_index(folder, weight_map, sizes.total())
    config.dtype = max(sizes, key=lambda kind: sizes[kind])


def _converted(weights: Mapping[str, torch.Tensor], dtype: str) -> Iterator[dict[str, torch.Tensor]]:
    """The weights, those of a wider precision than `dtype` converted to it, in parts of bounded memory."""
    part: dict[str, torch.Tensor] = {}
    copied = 0
    for name, tensor in weights.items():
        if _is_wider(tensor, dtype):
            tensor = tensor.to(getattr(torch, dtype))
            copied += tensor.nbytes
        part[name] = tensor
        if copied > MAX_COPIED_BYTES:
            yield part
            part, copied = {}, 0
    if part:
        yield part


def _is_wider(tensor: torch.Tensor, dtype: str) -> bool:
    return dtype != "auto" and tensor.is_floating_point() and tensor.itemsize > getattr(torch, dtype).itemsize
