"""ShareGPT4V as published → the Hugging Face LLaVA layout, which transformers and vLLM read.

checked before anything is written: name and shape of every tensor, against the model that they must fill
conversion.json      first: what is being converted, so that a second start goes on with the same
model-*.safetensors  one for each weight file of the source, each whole or not there
verified             every tensor read back and compared with the source
config.json          last: the mark that all of it is done; nothing loads a folder without it

What ShareGPT4V's published weights are called in the Hugging Face LLaVA layout, and whether they are all there.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lotlip_data.captioners.convert import processor
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

Say = Callable[[str], None]

_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model"]


@dataclass(frozen=True)
class Shard:
    """One output file: what is taken from one weight file, as new name → name there."""

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
    say: Say = print,
) -> bool:
    """Converts `source`, a folder or hub id, into the local folder `target`; False if that had been done already.

    vision_tower: folder or hub id to read the tower from, instead of what the checkpoint's mm_vision_tower names.
    Killed at any moment, the same call goes on: finished files are kept. Weights are mapped from disk, so memory is
    bounded by one weight file. Raises UserError for everything that a person can mend.
    """
    folder = conversion.fetch(source, revision, "the checkpoint", _PATTERNS)
    published = processor.read_published(folder)
    tower = _vision_tower(folder, published, vision_tower, vision_tower_revision)
    out = conversion.make_target(target, {"the checkpoint": folder, "its vision tower": tower})
    with conversion.exclusive_lock(out):
        record = {name: _identity(at) for name, at in (("source", folder), ("vision_tower", tower))}
        if (out / RECORD).exists() and processor.read_json(out / RECORD) != record:
            raise UserError(f"{out}: holds a conversion of other or changed files; delete it, or give another folder")
        if (out / MARK).exists():
            say(f"{out}: converted already, nothing to do")
            return False
        with conversion.explain_full_disk(out):
            _convert(folder, tower, published, out, record, say)
    return True


def plan(files: list[Path], tower_files: list[Path]) -> tuple[list[Shard], int]:
    """What goes where, and the number of stray vision tower tensors that are left out.

    Raises UserError for a tensor that no rule knows, and for one that is there twice.
    """
    rules = [(file, language_name) for file in files]
    rules += [(file, tower_name) for file in tower_files]
    named: list[tuple[Path, dict[str, str]]] = []
    stray = 0
    for file, rule in rules:
        old_names = list(read_weights(file))
        stray += sum(name.startswith(STRAY_TOWER) for name in old_names)
        names = _renamed(file, old_names, rule)
        if twice := [new for new in names if any(new in before for _, before in named)]:
            raise UserError(f"{file}: {names[twice[0]]} is in another file, too; fetch the checkpoint again")
        if names:
            named.append((file, names))
    return [Shard(f"model-{n:05d}-of-{len(named):05d}.safetensors", *each) for n, each in enumerate(named, 1)], stray


def shapes(shards: list[Shard], vocabulary: int) -> dict[str, tuple[int, ...]]:
    """New name → shape of every tensor of the result, its vocabulary padded to so many tokens."""
    return {name: tuple(weight.shape) for shard in shards for name, weight in _take(shard, vocabulary).items()}


def _vision_tower(folder: Path, published: dict[str, Any], given: str | None, revision: str | None) -> Path:
    """The vision tower's folder: the given one, or what mm_vision_tower names, also relative to the checkpoint."""
    if given:
        return conversion.fetch(given, revision, "the vision tower", _PATTERNS)
    named = published.get("mm_vision_tower")
    if not isinstance(named, str) or not named:
        raise UserError(f"{folder / 'config.json'}: mm_vision_tower names none; give one with --vision-tower")
    if (folder / named).is_dir():
        return (folder / named).resolve()
    try:
        return conversion.fetch(named, revision, "the vision tower that mm_vision_tower names", _PATTERNS)
    except UserError as error:
        raise UserError(f"{error}; fetch it, and give its folder with --vision-tower") from error


def _identity(folder: Path) -> dict[str, Any]:
    return conversion.identity(folder, [folder / "config.json", *weight_files(folder)])


def _renamed(file: Path, old_names: list[str], rule: Callable[[str], str | None]) -> dict[str, str]:
    names = {}
    for old in old_names:
        try:
            new = rule(old)
        except KeyError:
            raise UserError(
                f"{file}: {old} belongs to neither ShareGPT4V nor a CLIP tower; is it another model, or an adapter?"
            ) from None
        if new is not None:
            names[new] = old
    return names


def _convert(folder: Path, tower: Path, published: dict[str, Any], out: Path, record: dict[str, Any], say: Say) -> None:
    tokenizer = processor.read_tokenizer(folder)
    image_token = tokenizer.convert_tokens_to_ids(processor.IMAGE_TOKEN)
    config = processor.llava_config(published, tower, image_token)
    vocabulary = config.text_config.vocab_size
    shards, stray = plan(weight_files(folder), weight_files(tower))
    if stray:
        say(f"ignored {stray} {STRAY_TOWER}* tensors of the checkpoint: its vision tower is {tower}")
    found = shapes(shards, vocabulary)
    if problems := differences(llava_shapes(config), found):
        raise UserError(f"{folder} with the vision tower {tower}: {'; '.join(problems)}; fetch what belongs together")
    _require_space(shards, out)
    conversion.write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    for shard in shards:
        if (out / shard.file).exists():
            say(f"{shard.file}: kept")
        else:
            write_weights(out / shard.file, _take(shard, vocabulary))
            say(f"{shard.file}: {len(shard.names)} tensors of {shard.source.name}")
    processor.write_processor(out, tokenizer, published, tower, config)
    size = sum(_verify(shard, vocabulary, out) for shard in shards)
    write_index(out, {name: shard.file for shard in shards for name in shard.names}, size)
    conversion.write_text(out / MARK, config.to_json_string())
    say(f"{out}: done, {len(found)} tensors, {size:,} bytes, each compared with its source")


def _take(shard: Shard, vocabulary: int) -> dict[str, torch.Tensor]:
    weights = read_weights(shard.source)
    return {new: _padded(new, weights[old], vocabulary) for new, old in shard.names.items()}


def _padded(name: str, weight: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The two matrices with a row a token, with the mean of their rows for each token that is new.

    Such a token's logit is the mean of the others', so it is never the highest.
    """
    if name not in TOKEN_ROWS or weight.shape[0] >= vocabulary:
        return weight
    mean = weight.mean(dim=0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(vocabulary - weight.shape[0], -1)])


def _require_space(shards: list[Shard], out: Path) -> None:
    """Raises UserError if what is still to be written does not fit on the disk."""
    needed = sum(shard.source.stat().st_size for shard in shards if not (out / shard.file).exists())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out}: needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; make room first")


def _verify(shard: Shard, vocabulary: int, out: Path) -> int:
    """Reads one file back and compares each tensor, bit for bit, with its source. Returns the bytes of its tensors."""
    written, source = read_weights(out / shard.file), read_weights(shard.source)
    if written.keys() != shard.names.keys() or not all(
        _same(written[new], source[old], vocabulary if new in TOKEN_ROWS else 0) for new, old in shard.names.items()
    ):
        raise UserError(f"{out / shard.file}: differs from {shard.source}; delete it and run the command again")
    return sum(weight.nbytes for weight in written.values())


def _same(written: torch.Tensor, source: torch.Tensor, rows: int) -> bool:
    """Whether `written` is `source`, bit for bit, but for further rows up to `rows` of them."""
    if written.shape != source.shape and written.shape != (max(rows, len(source)), *source.shape[1:]):
        return False
    kept = written if written.shape == source.shape else written[: len(source)]
    return written.dtype == source.dtype and torch.equal(_bits(kept), _bits(source))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


STRAY_TOWER = "model.vision_tower."
"""Weights of a vision tower beside the language model's. ShareGPT4V's own loader ignores them too."""

TOKEN_ROWS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""The matrices with one row a token of the vocabulary."""

_PROJECTOR = {"model.mm_projector.0.": "linear_1.", "model.mm_projector.2.": "linear_2."}
_TOWER_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_OTHER_HALF = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")


def language_name(name: str) -> str | None:
    """The hub's name of a tensor of ShareGPT4V's own files; None for what is left out on purpose.

    Left out: a stray vision tower, and the rotary frequencies that old versions of transformers saved with each layer.
    Raises KeyError for any other name.
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
    """The hub's name of a tensor of the vision tower's files; None for what is left out on purpose.

    Left out: position ids, which are counted anew, and the text half of a whole CLIP. Raises KeyError for other names.
    """
    if name.endswith("embeddings.position_ids") or name.startswith(_OTHER_HALF):
        return None
    inner = name.removeprefix("vision_model.")  # which transformers 5 does not write
    if inner.startswith(_TOWER_PARTS):
        return f"vision_tower.vision_model.{inner}"
    raise KeyError(name)


def hub_name(parameter: str) -> str:
    """The name on the hub, which vLLM reads too, of a parameter of transformers' LlavaForConditionalGeneration."""
    for ours, hub in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if parameter.startswith(ours):
            return hub + parameter.removeprefix(ours)
    raise KeyError(parameter)


def llava_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name on the hub → shape of every weight of a LLaVA with this LlavaConfig."""
    return {hub_name(name): shape for name, shape in model_shapes("LlavaForConditionalGeneration", config).items()}
