"""The authors' released LoTLIP → our checkpoint folder, and ours → one file of their layout.

A folder with our config.json is written to a file; anything else is read as theirs. Weights are renamed, never
computed with: each keeps its type and its bits, and what was written is read back and compared with its source.

    conversion.json    first: what is being converted
    model.safetensors  whole or not there
    config.json        last: nothing loads a folder without it

The tensors of the authors' released LoTLIP under our names, and back, bit for bit.

open_clip, as the authors use it        ours
logit_scale                             log_scale
visual.trunk.*  (timm's names)          image.vit.*  (transformers' names: see timm_vit.py)
text.transformer.*                      text.encoder.*
text.proj.weight                        text.proj.weight
text.transformer.embeddings.position_ids    left out: 0, 1, 2, …, which old versions of transformers saved
"""

import json
import math
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.manifests.checkpoints import weights as checkpoint_files
from lotlip_data.manifests.checkpoints.conversion import MARK, RECORD
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.image_transforms import ImageTransform, transform_of
from lotlip_data.training.data.tokenizer import TextTokenizer, load_tokenizer
from lotlip_data.training.models import timm_vit, towers
from lotlip_data.training.models.lotlip import FORMAT, WEIGHTS, LoTLIP
from lotlip_data.training.models.pretrained import image_config, text_config
from lotlip_data.training.models.towers import TextSettings

Say = Callable[[str], None]
CONTEXT_LENGTH = 128
"""Of the authors' released checkpoints, which do not record it."""

_FILES = ("model.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def convert(
    source: str,
    target: str,
    *,
    revision: str | None = None,
    image_tower: str | None = None,
    text_tower: str | None = None,
    say: Say = print,
) -> bool:
    """Converts `source` into `target`; False if that had been done already.

    Theirs: a `.pt` or `.safetensors` file, a folder with one, or a hub id, into a new folder. image_tower, text_tower:
    folders or hub ids whose configuration and tokenizer it has, by default the authors': ViT-B and bert-base-uncased.
    Ours: a model's folder, into a new `.pt` or `.safetensors` file. Raises UserError for what a person can mend.
    """
    if (config := _our_config(source)) is not None:
        with conversion.explain_full_disk(Path(target)):
            return _write(Path(source).expanduser(), config, Path(target).expanduser(), say)
    file = _their_file(source, revision)
    out = conversion.make_target(target, {"the checkpoint": file.parent})
    with conversion.exclusive_lock(out), conversion.explain_full_disk(out):
        return _read(file, out, image_tower, text_tower, say)


def model_of(
    weights: dict[str, Tensor], where: str, image_tower: str | None = None, text_tower: str | None = None
) -> LoTLIP:
    """A LoTLIP for the authors' tensors, its towers on `meta`. Raises UserError unless each has its place in it."""
    try:
        words, patch, places = (weights[name].shape for name in (WORDS, PATCHES, POSITIONS))
    except KeyError as error:
        raise UserError(f"{where}: has no {error.args[0]}; is it another model?") from None
    size = math.isqrt(places[1] - 1) * patch[-1]
    image = image_config(image_tower) if image_tower else _vit_base(patch[-1], size)
    text, tokenizer = (text_config(text_tower), load_tokenizer(text_tower)) if text_tower else _bert_base()
    corners = words[0] - text.vocab_size
    if corners < 0:
        raise UserError(f"{where}: has {words[0]} words, its text tower {text.vocab_size}; name the right --text-tower")
    settings = TextSettings(corners)
    with torch.device("meta"):
        model = towers.build(image.to_dict(), text.to_dict(), settings)
    found = {name: tuple(value.shape) for name, value in to_ours(weights, where).items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if problems := checkpoint_files.differences(expected, found):
        raise UserError(f"{where}: {'; '.join(problems)}; name its --image-tower and --text-tower")
    encoder = TextTokenizer(
        tokenizer,
        vocab_size=text.vocab_size,
        context_length=min(CONTEXT_LENGTH, model.text.max_length),
        corner_tokens=corners,
    )
    return LoTLIP(model, encoder, transform_of(image_tower, size) if image_tower else ImageTransform(size))


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The authors' tensors of a `.pt` or `.safetensors` file, mapped from disk. Raises UserError; executes nothing."""
    if file.suffix == ".safetensors":
        return unwrapped(checkpoint_files.read_weights(file), str(file))
    return unwrapped(checkpoint_files.read_pickle(file), str(file))


def _read(file: Path, out: Path, image_tower: str | None, text_tower: str | None, say: Say) -> bool:
    weights = read_checkpoint(file)
    model = model_of(weights, str(file), image_tower, text_tower)
    positions = weights[POSITION_IDS].shape[-1] if POSITION_IDS in weights else 0
    record = {
        "source": conversion.identity(file.parent, [file]),
        "image_tower": image_tower,
        "text_tower": text_tower,
        "position_ids": positions,
    }
    if (out / RECORD).exists() and json.loads((out / RECORD).read_text()) != record:
        raise UserError(f"{out}: holds a conversion of other or changed files; delete it, or give another folder")
    if (out / MARK).exists():
        say(f"{out}: converted already, nothing to do")
        return False
    conversion.write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    checkpoint_files.write_weights(out / WEIGHTS, to_ours(weights, str(file)))
    written = checkpoint_files.read_weights(out / WEIGHTS)
    if not same(to_authors(written, str(out), positions), weights):
        raise UserError(f"{out / WEIGHTS}: differs from {file}; delete it and run the command again")
    model.tokenizer.tokenizer.save_pretrained(out)
    conversion.write_text(out / MARK, json.dumps(model.config(), indent=1))
    say(
        f"{out}: done, {len(weights)} tensors, each compared with its source; "
        f"{model.towers.text.settings.corner_tokens} corner tokens, images of {model.transform.size} pixels"
    )
    return True


def _write(source: Path, config: dict[str, Any], target: Path, say: Say) -> bool:
    if target.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{target}: name a file that ends in .pt or .safetensors, the authors' layout in one file")
    if target.exists():
        raise UserError(f"{target}: is there already; choose another name, or remove it")
    _require_expressible(source, config["towers"])
    if config["text_form"] != "authors":
        say(f"{source}: its texts are split by {config['text_form']}; the authors' code will split them at '. '")
    record = json.loads((source / RECORD).read_text()) if (source / RECORD).exists() else {}
    weights = checkpoint_files.read_weights(source / WEIGHTS)
    renamed = to_authors(weights, str(source), record.get("position_ids", 0))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        checkpoint_files.write_weights(target, renamed)
    else:
        checkpoint_files.write_pickle(target, renamed)
    if not same(to_ours(read_checkpoint(target), str(target)), weights):
        target.unlink()
        raise UserError(f"{target}: what was written differs from {source}, so it was removed; run the command again")
    say(f"{target}: done, {len(renamed)} tensors, each compared with its source")
    return True


def _require_expressible(source: Path, described: dict[str, Any]) -> None:
    """Raises UserError for a model that the authors' code would compute otherwise: their layout has no settings."""
    image = described["image"]
    wanted = {"model_type": "vit", "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True}
    if wrong := [name for name in wanted if image.get(name) != wanted[name]]:
        raise UserError(
            f"{source}: the image tower's {wrong[0]} is {image.get(wrong[0])!r}, timm's plain ViTs have "
            f"{wanted[wrong[0]]!r}, so its features would change in the authors' layout"
        )
    if described["corner_tokens"] and not described["mask"]:
        raise UserError(f"{source}: its corner tokens have no attention mask; the authors' layout always has it")


def _our_config(source: str) -> dict[str, Any] | None:
    """The config.json of a model's folder of ours; None for anything else."""
    file = Path(source).expanduser() / MARK
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); fetch it again") from error
    return config if isinstance(config, dict) and config.get("format") == FORMAT and "towers" in config else None


def _their_file(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    folder = conversion.fetch(source, revision, "the checkpoint", _FILES)
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: has none of {', '.join(_FILES)}; name the checkpoint's file itself")


def _vit_base(patch: int, size: int) -> Any:
    return timm_vit.vit_config(
        {"architecture": f"vit_base_patch{patch}_224", "model_args": {"img_size": size}}, "image tower"
    )


def _bert_base() -> tuple[Any, Any]:
    """bert-base-uncased's configuration, which is BERT's default, and its tokenizer, whose vocabulary comes with us."""
    from transformers import BertConfig, BertTokenizer

    with resources.as_file(
        resources.files("lotlip_data.manifests") / "vocab" / "bert-base-uncased-vocab.txt"
    ) as vocabulary:
        return BertConfig(), BertTokenizer(str(vocabulary))


POSITION_IDS = "text.transformer.embeddings.position_ids"
WORDS = "text.transformer.embeddings.word_embeddings.weight"
PATCHES = "visual.trunk.patch_embed.proj.weight"
POSITIONS = "visual.trunk.pos_embed"


def unwrapped(found: Any, where: str) -> dict[str, Tensor]:
    """The tensors of what a checkpoint file holds: alone or under `state_dict`, with or without DDP's `module.`.

    Raises UserError where it holds something else.
    """
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{where}: holds no table of named tensors, as a LoTLIP checkpoint does")
    wrapped = [name.startswith("module.") for name in found]
    if any(wrapped) and not all(wrapped):
        raise UserError(f"{where}: some names begin with module. and some do not; two checkpoints were mixed")
    return {name.removeprefix("module.") if all(wrapped) else name: value for name, value in found.items()}


def to_ours(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The authors' tensors under our names. Raises UserError for one that has no place."""
    renamed, trunk = {}, {}
    for name, tensor in weights.items():
        if name == POSITION_IDS:
            if not torch.equal(tensor, position_ids(tensor.shape[-1])):
                raise UserError(f"{where}: {name} is not 0, 1, 2, …; such a text tower is not supported")
        elif name == "logit_scale":
            renamed["log_scale"] = tensor
        elif name == "text.proj.weight":
            renamed[name] = tensor
        elif name.startswith("text.transformer."):
            renamed[f"text.encoder.{name.removeprefix('text.transformer.')}"] = tensor
        elif (inner := name.removeprefix("visual.trunk.")) != name and inner not in timm_vit.HEAD:
            trunk[inner] = tensor
        else:
            raise _foreign(where, name)
    try:
        image = timm_vit.from_timm(trunk)
    except KeyError as error:
        raise _foreign(where, f"visual.trunk.{error.args[0]}") from None
    return {**{f"image.vit.{name}": tensor for name, tensor in image.items()}, **renamed}


def to_authors(weights: Mapping[str, Tensor], where: str, positions: int = 0) -> dict[str, Tensor]:
    """Our tensors under the authors' names, in open_clip's order; with `position_ids` of so many positions, if any.

    Raises UserError for one that has no place.
    """
    image = {name.removeprefix("image.vit."): value for name, value in weights.items() if name.startswith("image.vit.")}
    text = {name: value for name, value in weights.items() if name.startswith("text.encoder.")}
    known = {"log_scale", "text.proj.weight", *text, *(f"image.vit.{name}" for name in image)}
    if foreign := sorted(weights.keys() ^ known):
        raise _foreign(where, foreign[0])
    try:
        trunk = timm_vit.to_timm(image)
    except KeyError as error:
        raise _foreign(where, f"image.vit.{error.args[0]}") from None
    return {
        "logit_scale": weights["log_scale"],
        **{f"visual.trunk.{name}": tensor for name, tensor in trunk.items()},
        **({POSITION_IDS: position_ids(positions)} if positions else {}),
        **{f"text.transformer.{name.removeprefix('text.encoder.')}": tensor for name, tensor in text.items()},
        "text.proj.weight": weights["text.proj.weight"],
    }


def position_ids(positions: int) -> Tensor:
    """int64 [1, positions], as old versions of transformers saved them."""
    return torch.arange(positions)[None]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names, shapes, types and bits."""
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _foreign(where: str, name: str) -> UserError:
    return UserError(
        f"{where}: {name} has no place in a LoTLIP with a plain ViT and a BERT-like encoder, or is missing; "
        "is it another model?"
    )
