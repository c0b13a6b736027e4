"""Converts ShareGPT4V from its published layout to the Hugging Face LLaVA layout, which transformers and vLLM read.

Before anything is written, the name and shape of every tensor are checked against the target model. Then, in order:

    conversion.json      identifies the source, so that a restart continues the same conversion
    model-*.safetensors  one file per weight file of the source; a file appears only when it is complete
                         (every tensor is then read back and compared with the source)
    config.json          marks the conversion as complete; nothing loads a folder without it
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lotlip_data.captioners.convert import processor
from lotlip_data.manifests import wording
from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.manifests.checkpoints.conversion import MARK, RECORD
from lotlip_data.manifests.checkpoints.weights import (
    differences,
    model_shapes,
    read_weights,
    weight_files,
    write_index,
    write_weights,
)
from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)


_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model"]


@dataclass(frozen=True)
class Shard:
    """One output file, which takes its tensors from one weight file.

    Attributes:
        file: Name of the output file.
        source: The weight file.
        names: Published tensor name by new tensor name.
    """

    file: str
    source: Path
    names: dict[str, str]


def convert(
    source: str,
    target: str,
    *,
    revision: str | None = None,
    vision_tower: str | None = None,
    vision_tower_revision: str | None = None,
) -> bool:
    """Convert a published ShareGPT4V checkpoint.

    After an interruption at any moment, the same call continues and keeps finished files. Weights are memory-mapped, so
    memory is bounded by one weight file.

    Args:
        source: Folder or hub id of the checkpoint.
        target: Local folder for the result.
        revision: Revision of the checkpoint on the hub.
        vision_tower: Folder or hub id of the vision tower; default: the one that mm_vision_tower of the config names.
        vision_tower_revision: Revision of the vision tower on the hub.

    Returns:
        False if the conversion was complete already.

    Raises:
        UserError: The checkpoint, the target or the disk does not allow the conversion; the message has the fix.
    """
    folder = conversion.fetch(source, revision, "the checkpoint", _PATTERNS)
    published = processor.read_published(folder)
    tower = _vision_tower(folder, published, vision_tower, vision_tower_revision)
    out = conversion.make_target(target, {"the checkpoint": folder, "its vision tower": tower})
    with conversion.exclusive_lock(out):
        record = {"source": _identity(folder), "vision_tower": _identity(tower)}
        if (out / RECORD).exists() and processor.read_json(out / RECORD) != record:
            raise UserError(
                f"{out}: holds a conversion of a different or changed checkpoint; delete it, or give another folder"
            )
        if (out / MARK).exists():
            logger.info(f"{out}: converted already, nothing to do")
            return False
        with conversion.explain_full_disk(out):
            _convert(folder, tower, published, out, record)
    return True


def plan(files: list[Path], tower_files: list[Path]) -> tuple[list[Shard], int]:
    """Assign every tensor of the source to an output file.

    Args:
        files: Weight files of the language model and projector.
        tower_files: Weight files of the vision tower.

    Returns:
        The output files, and the number of tensors of a stray vision tower, which are left out.

    Raises:
        UserError: A tensor belongs to no part of the model, or occurs twice.
    """
    rules = [(file, language_name) for file in files]
    rules += [(file, tower_name) for file in tower_files]
    renamed_files: list[tuple[Path, dict[str, str]]] = []
    stray = 0
    for file, rule in rules:
        old_names = list(read_weights(file))
        stray += sum(name.startswith(STRAY_TOWER) for name in old_names)
        names = _renamed(file, old_names, rule)
        if duplicates := [new for new in names if any(new in earlier for _, earlier in renamed_files)]:
            raise UserError(f"{file}: {names[duplicates[0]]} is also in another file; fetch the checkpoint again")
        if names:
            renamed_files.append((file, names))
    total = len(renamed_files)
    shards = [
        Shard(f"model-{number:05d}-of-{total:05d}.safetensors", file, names)
        for number, (file, names) in enumerate(renamed_files, 1)
    ]
    return shards, stray


def shapes(shards: list[Shard], vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the shape by new name of every tensor of the result, whose vocabulary has `vocabulary` tokens."""
    return {name: tuple(weight.shape) for shard in shards for name, weight in _read(shard, vocabulary).items()}


def _vision_tower(folder: Path, published: dict[str, Any], override: str | None, revision: str | None) -> Path:
    """Return the folder of the vision tower: `override`, or what mm_vision_tower names.

    A relative path in mm_vision_tower starts at the checkpoint's folder.
    """
    if override:
        return conversion.fetch(override, revision, "the vision tower", _PATTERNS)
    name = published.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / 'config.json'}: mm_vision_tower is not set; give a tower with --vision-tower")
    if (folder / name).is_dir():
        return (folder / name).resolve()
    try:
        return conversion.fetch(name, revision, "the vision tower that mm_vision_tower names", _PATTERNS)
    except UserError as error:
        raise UserError(f"{error}; fetch it, and give its folder with --vision-tower") from error


def _identity(folder: Path) -> dict[str, Any]:
    """Return what identifies a checkpoint: its folder and the state of its config and weight files."""
    return conversion.identity(folder, [folder / "config.json", *weight_files(folder)])


def _renamed(file: Path, old_names: list[str], rule: Callable[[str], str | None]) -> dict[str, str]:
    """Return the published name by new name for the tensors of one file that `rule` keeps."""
    names = {}
    for old in old_names:
        try:
            new = rule(old)
        except KeyError:
            raise UserError(
                f"{file}: {old} belongs to neither ShareGPT4V nor a CLIP tower; the file may be of another model or "
                "an adapter; give a ShareGPT4V checkpoint"
            ) from None
        if new is not None:
            names[new] = old
    return names


def _convert(folder: Path, tower: Path, published: dict[str, Any], out: Path, record: dict[str, Any]) -> None:
    tokenizer = processor.read_tokenizer(folder)
    image_token = tokenizer.convert_tokens_to_ids(processor.IMAGE_TOKEN)
    config = processor.llava_config(published, tower, image_token)
    vocabulary = config.text_config.vocab_size
    shards, stray = plan(weight_files(folder), weight_files(tower))
    if stray:
        logger.info(f"ignored {stray} {STRAY_TOWER}* tensors of the checkpoint: its vision tower is {tower}")
    target_shapes = shapes(shards, vocabulary)
    if problems := differences(llava_shapes(config), target_shapes):
        raise UserError(
            f"{folder} with the vision tower {tower}: {'; '.join(problems)}; give a checkpoint and a vision tower "
            "that belong together"
        )
    _require_space(shards, out)
    conversion.write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    for shard in shards:
        if (out / shard.file).exists():
            logger.info(f"{shard.file}: kept")
        else:
            write_weights(out / shard.file, _read(shard, vocabulary))
            logger.info(f"{shard.file}: {wording.count(len(shard.names), 'tensor')} of {shard.source.name}")
    processor.write_processor(out, tokenizer, published, tower, config)
    size = sum(_verify(shard, vocabulary, out) for shard in shards)
    write_index(out, {name: shard.file for shard in shards for name in shard.names}, size)
    conversion.write_text(out / MARK, config.to_json_string())
    logger.info(f"{out}: done, {len(target_shapes)} tensors, {size:,} bytes, each compared with its source")


def _read(shard: Shard, vocabulary: int) -> dict[str, torch.Tensor]:
    """Return the tensors of an output file by new name, memory-mapped from its source."""
    weights = read_weights(shard.source)
    return {new: _padded(new, weights[old], vocabulary) for new, old in shard.names.items()}


def _padded(name: str, weight: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Pad the two matrices that have one row per token: each added token gets the mean of the existing rows.

    The logit of such a token is the mean of the others, so it is never the highest.
    """
    if name not in TOKEN_ROWS or weight.shape[0] >= vocabulary:
        return weight
    mean = weight.mean(dim=0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(vocabulary - weight.shape[0], -1)])


def _require_space(shards: list[Shard], out: Path) -> None:
    """Raise UserError if the files that are still missing do not fit on the disk."""
    needed_bytes = sum(shard.source.stat().st_size for shard in shards if not (out / shard.file).exists())
    free_bytes = shutil.disk_usage(out).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{out}: needs {needed_bytes / 2**30:.1f} GiB, and {free_bytes / 2**30:.1f} GiB are free; make room first"
        )


def _verify(shard: Shard, vocabulary: int, out: Path) -> int:
    """Read one file back and compare each tensor with its source, bit for bit. Returns the bytes of its tensors."""
    written, source = read_weights(out / shard.file), read_weights(shard.source)
    if written.keys() != shard.names.keys() or not all(
        _is_equal(written[new], source[old], vocabulary if new in TOKEN_ROWS else 0) for new, old in shard.names.items()
    ):
        raise UserError(f"{out / shard.file}: differs from {shard.source}; delete it and run the command again")
    return sum(weight.nbytes for weight in written.values())


def _is_equal(written: torch.Tensor, source: torch.Tensor, rows: int) -> bool:
    """Return whether `written` equals `source` bit for bit, except for rows that were appended to reach `rows`."""
    if written.shape != source.shape and written.shape != (max(rows, len(source)), *source.shape[1:]):
        return False
    kept = written if written.shape == source.shape else written[: len(source)]
    return written.dtype == source.dtype and torch.equal(_bits(kept), _bits(source))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, so that NaNs compare equal too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


STRAY_TOWER = "model.vision_tower."
"""Prefix of a vision tower's weights inside the language model's files. ShareGPT4V's own loader ignores them too."""

TOKEN_ROWS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""The matrices that have one row per token of the vocabulary."""

_PROJECTOR = {"model.mm_projector.0.": "linear_1.", "model.mm_projector.2.": "linear_2."}
_TOWER_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_TEXT_HALF = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")


def language_name(name: str) -> str | None:
    """Return the hub's name of a tensor of ShareGPT4V's own files; None if it is left out.

    Left out are a stray vision tower, and the rotary frequencies that old versions of transformers saved with each
    layer. Raises KeyError for an unknown name.
    """
    if name.startswith(STRAY_TOWER) or name.endswith(".rotary_emb.inv_freq"):
        return None
    for prefix, linear in _PROJECTOR.items():
        if name.startswith(prefix):
            return f"multi_modal_projector.{linear}{name.removeprefix(prefix)}"
    if name == "lm_head.weight" or re.match(r"model\.(embed_tokens|layers|norm)\.", name):
        return f"language_model.{name}"
    raise KeyError(name)


def tower_name(name: str) -> str | None:
    """Return the hub's name of a tensor of the vision tower's files; None if it is left out.

    Left out are position ids, which the model computes, and the text half of a whole CLIP. Raises KeyError for an
    unknown name.
    """
    if name.endswith("embeddings.position_ids") or name.startswith(_TEXT_HALF):
        return None
    inner = name.removeprefix("vision_model.")  # transformers 5 does not write this prefix
    if inner.startswith(_TOWER_PARTS):
        return f"vision_tower.vision_model.{inner}"
    raise KeyError(name)


def hub_name(parameter: str) -> str:
    """Return the hub's name, which vLLM reads too, of a parameter of transformers' LlavaForConditionalGeneration."""
    for prefix, hub_prefix in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if parameter.startswith(prefix):
            return hub_prefix + parameter.removeprefix(prefix)
    raise KeyError(parameter)


def llava_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape by hub name of every weight of a LLaVA with this LlavaConfig."""
    return {hub_name(name): shape for name, shape in model_shapes("LlavaForConditionalGeneration", config).items()}
