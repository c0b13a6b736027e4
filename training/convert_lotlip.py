"""Converts the authors' released LoTLIP into a model folder of this project, and a model folder back into one file.

A folder with this project's config.json is written to a file in the authors' layout. Any other source is read as an
authors' checkpoint. Tensors are renamed and never computed with: each one keeps its type and its bits. What was written
is read back and compared with its source. Files of a model folder, in the order in which they are written:

    conversion.json    the source of the conversion
    model.safetensors  complete or absent
    config.json        last: a folder without it cannot be loaded

Names of the tensors:

    authors' code (open_clip)                   this project
    logit_scale                                 log_scale
    visual.trunk.*  (timm's names)              image.vit.*  (transformers' names: see timm_vit.py)
    text.transformer.*                          text.encoder.*
    text.proj.weight                            text.proj.weight
    text.transformer.embeddings.position_ids    dropped: 0, 1, 2, …, which old versions of transformers save
"""

import logging
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.checkpoints import conversion, model_folder
from lotlip_data.manifests.checkpoints import weights as checkpoint_files
from lotlip_data.manifests.checkpoints.conversion import MARK, RECORD
from lotlip_data.manifests.checkpoints.model_folder import WEIGHTS, ModelConfig, Towers
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.image_transforms import ImageTransform, load_transform
from lotlip_data.training.data.tokenizer import load_tokenizer
from lotlip_data.training.models import timm_vit, towers
from lotlip_data.training.models.lotlip import LoTLIP, make_tokenizer
from lotlip_data.training.models.pretrained import image_config, text_config
from lotlip_data.training.models.text_families import TextFamily, family_of
from lotlip_data.training.models.towers import TextSettings

logger = logging.getLogger(__name__)

LARGEST_EPS = 1e-5
"""Epsilons of layer normalisations up to this one change features in the last digits only."""
CONTEXT_LENGTH = 128
"""Context length of the authors' released checkpoints, which do not record it (paper: 128)."""

POSITION_IDS = "text.transformer.embeddings.position_ids"
_WORD_EMBEDDINGS = "text.transformer.embeddings.word_embeddings.weight"
_PATCH_EMBEDDING = "visual.trunk.patch_embed.proj.weight"
_PATCH_POSITIONS = "visual.trunk.pos_embed"
_CHECKPOINT_FILES = ("model.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def convert(
    source: str,
    target: str,
    *,
    revision: str | None = None,
    image_tower: str | None = None,
    text_tower: str | None = None,
) -> bool:
    """Convert `source` into `target`.

    Args:
        source: From the authors' layout: a `.pt` or `.safetensors` file, a folder with one, or a hub id. To the
            authors' layout: a model folder of this project.
        target: A new folder, or a new `.pt` or `.safetensors` file.
        revision: Revision of the hub id.
        image_tower: Folder or hub id with the image tower's configuration. Default: ViT-B, as in the authors' code.
        text_tower: Folder or hub id with the text tower's configuration and tokenizer. Default: bert-base-uncased.

    Returns:
        False if the conversion had been done before.

    Raises:
        UserError: The source is not a LoTLIP, or the target cannot be written.
    """
    if (config := _read_our_config(source)) is not None:
        with conversion.explain_full_disk(Path(target)):
            return _export_model(Path(source).expanduser(), config, Path(target).expanduser())
    image_tower, text_tower = (tower and resolve(tower) for tower in (image_tower, text_tower))
    file = _find_checkpoint(source, revision)
    out = conversion.make_target(target, {"the checkpoint": file.parent})
    with conversion.exclusive_lock(out), conversion.explain_full_disk(out):
        return _import_checkpoint(file, out, image_tower, text_tower)


def build_model(
    weights: dict[str, Tensor], where: str, image_tower: str | None = None, text_tower: str | None = None
) -> LoTLIP:
    """The LoTLIP that the authors' tensors belong to, with its towers on the `meta` device.

    Args:
        weights: The tensors under the authors' names.
        where: The checkpoint, for messages.
        image_tower: As in `convert`.
        text_tower: As in `convert`.

    Raises:
        UserError: A tensor is missing, unknown or of the wrong shape.
    """
    try:
        words, patch, positions = (
            weights[name].shape for name in (_WORD_EMBEDDINGS, _PATCH_EMBEDDING, _PATCH_POSITIONS)
        )
    except KeyError as error:
        raise UserError(f"{where}: has no {error.args[0]}; give a LoTLIP checkpoint") from None
    size = math.isqrt(positions[1] - 1) * patch[-1]
    image = image_config(image_tower) if image_tower else _vit_base(patch[-1], size)
    text, tokenizer = (text_config(text_tower), load_tokenizer(text_tower)) if text_tower else _bert_base()
    corners = words[0] - text.vocab_size
    if corners < 0:
        raise UserError(
            f"{where}: has {words[0]} word embeddings, but its text tower has {text.vocab_size}; "
            "give the right --text-tower"
        )
    with torch.device("meta"):
        model = towers.build(towers.describe_parts(image, text, TextSettings(corners)))
    actual = {name: tuple(value.shape) for name, value in to_ours(weights, where).items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if problems := checkpoint_files.differences(expected, actual):
        raise UserError(f"{where}: {'; '.join(problems)}; give the right --image-tower and --text-tower")
    context_length = min(CONTEXT_LENGTH, model.text.max_length)
    text_tokenizer = make_tokenizer(tokenizer, model.text, context_length, "authors")
    return LoTLIP(model, text_tokenizer, load_transform(image_tower, size) if image_tower else ImageTransform(size))


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of an authors' `.pt` or `.safetensors` file, mapped from disk. Executes no code of the file.

    Raises:
        UserError: The file is damaged or not a checkpoint.
    """
    if file.suffix == ".safetensors":
        return unwrap_state_dict(checkpoint_files.read_weights(file), str(file))
    return unwrap_state_dict(checkpoint_files.read_pickle(file), str(file))


def _import_checkpoint(file: Path, out: Path, image_tower: str | None, text_tower: str | None) -> bool:
    """Convert an authors' checkpoint file into the model folder `out`."""
    weights = read_checkpoint(file)
    model = build_model(weights, str(file), image_tower, text_tower)
    positions = weights[POSITION_IDS].shape[-1] if POSITION_IDS in weights else 0
    record = {
        "source": conversion.identity(file.parent, [file]),
        "image_tower": image_tower,
        "text_tower": text_tower,
        "position_ids": positions,
    }
    if (out / RECORD).exists() and _read_record(out) != record:
        raise UserError(f"{out}: has a conversion of other or changed files; delete it, or choose another folder")
    if (out / MARK).exists():
        logger.info(f"{out}: already converted; nothing to do")
        return False
    conversion.write_text(out / RECORD, artifacts.encode_json(record, indent=2).decode())
    checkpoint_files.write_weights(out / WEIGHTS, to_ours(weights, str(file)))
    written = checkpoint_files.read_weights(out / WEIGHTS)
    if not equal_bits(to_authors(written, str(out), positions), weights):
        raise UserError(f"{out / WEIGHTS}: differs from {file}; delete it and run the command again")
    names = {WEIGHTS, *(Path(file).name for file in model.tokenizer.tokenizer.save_pretrained(out))}
    names = {name for name in names if (out / name).is_file()}
    conversion.write_text(out / MARK, model_folder.encode_config(model.config(), out, names).decode())
    logger.info(
        f"{out}: done, {len(weights)} tensors, each compared with its source; "
        f"{model.towers.text.settings.corner_tokens} corner tokens, images of {model.transform.size} pixels"
    )
    return True


def _read_record(folder: Path) -> dict[str, Any]:
    """The content of conversion.json; empty if there is none."""
    file = folder / RECORD
    remedy = "Remove the folder and convert again."
    return artifacts.read_json(str(file), remedy, artifacts.JsonObject) if file.exists() else {}


def _export_model(source: Path, config: ModelConfig, target: Path) -> bool:
    """Convert the model folder `source` into a file of the authors' layout."""
    if target.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{target}: the file of an authors' checkpoint ends in .pt or .safetensors; rename the target")
    if target.exists():
        raise UserError(f"{target}: exists already; choose another file or remove it")
    model_folder.check_files(str(source), config, str(source))
    _require_exportable(source, config["towers"])
    if config["text_form"] != "authors":
        logger.warning(
            f"{source}: its texts are split by {config['text_form']}, but the authors' code splits them at '. '"
        )
    record = _read_record(source)
    weights = checkpoint_files.read_weights(source / WEIGHTS)
    renamed = to_authors(weights, str(source), record.get("position_ids", 0))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        checkpoint_files.write_weights(target, renamed)
    else:
        checkpoint_files.write_pickle(target, renamed)
    if not equal_bits(to_ours(read_checkpoint(target), str(target)), weights):
        target.unlink()
        raise UserError(f"{target}: differed from {source} after writing and was removed; run the command again")
    logger.info(f"{target}: done, {len(renamed)} tensors, each compared with its source")
    return True


def _require_exportable(source: Path, description: Towers) -> None:
    """Raise UserError for a model that the authors' code would compute differently: their layout has no settings."""
    image = description["image"]
    if type(family_of(description["text"]["model_type"])) is not TextFamily:
        raise UserError(f"{source}: its text tower is not BERT-like, which the authors' layout requires")
    required = {"model_type": "vit", "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True}
    eps = image.get("layer_norm_eps")
    if isinstance(eps, float) and eps != required["layer_norm_eps"] and eps <= LARGEST_EPS:
        logger.warning(
            f"{source}: the image tower's layer_norm_eps is {eps:g}, and the authors' code uses 1e-06: its features "
            "differ in the last digits there"
        )
        image = {**image, "layer_norm_eps": required["layer_norm_eps"]}
    if different := [name for name in required if image.get(name) != required[name]]:
        name = different[0]
        raise UserError(
            f"{source}: the image tower's {name} is {image.get(name)!r}, but timm's plain ViTs have "
            f"{required[name]!r}: its features would change in the authors' layout"
        )
    if description["corner_tokens"] and not description["mask"]:
        raise UserError(f"{source}: its corner tokens have no attention mask, but the authors' layout always has it")


def _read_our_config(source: str) -> ModelConfig | None:
    """The config.json of a model folder of this project, or None for any other source."""
    file = Path(source).expanduser() / MARK
    if not file.is_file():
        return None
    return model_folder.parse_config(file.read_bytes(), str(file))


def _find_checkpoint(source: str, revision: str | None) -> Path:
    """The checkpoint file of a path or hub id, downloaded if needed."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    folder = conversion.fetch(source, revision, "the checkpoint", _CHECKPOINT_FILES)
    for name in _CHECKPOINT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: has none of {', '.join(_CHECKPOINT_FILES)}; give the path of the checkpoint file")


def _vit_base(patch: int, size: int) -> Any:
    return timm_vit.vit_config(
        {"architecture": f"vit_base_patch{patch}_224", "model_args": {"img_size": size}}, "image tower"
    )


def _bert_base() -> tuple[Any, Any]:
    """The configuration of bert-base-uncased (BERT's default) and its tokenizer, from the packaged vocabulary."""
    from transformers import BertConfig, BertTokenizer

    with resources.as_file(
        resources.files("lotlip_data.manifests") / "vocab" / "bert-base-uncased-vocab.txt"
    ) as vocabulary:
        return BertConfig(), BertTokenizer(str(vocabulary))


def unwrap_state_dict(content: Any, where: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, which may be under `state_dict` and may have DDP's prefix `module.`.

    Args:
        content: The loaded content of the file.
        where: The file, for messages.

    Raises:
        UserError: The content is not a mapping of names to tensors.
    """
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{where}: has no mapping of names to tensors; give a LoTLIP checkpoint")
    wrapped = [name.startswith("module.") for name in content]
    if any(wrapped) and not all(wrapped):
        raise UserError(f"{where}: only some names begin with module.; the file mixes two checkpoints")
    return {name.removeprefix("module.") if all(wrapped) else name: value for name, value in content.items()}


def to_ours(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The authors' tensors under this project's names. Raises UserError for an unknown tensor."""
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
        elif (trunk_name := name.removeprefix("visual.trunk.")) != name and trunk_name not in timm_vit.HEAD:
            trunk[trunk_name] = tensor
        else:
            raise _unknown_tensor(where, name)
    try:
        image = timm_vit.from_timm(trunk)
    except KeyError as error:
        raise _unknown_tensor(where, f"visual.trunk.{error.args[0]}") from None
    return {**{f"image.vit.{name}": tensor for name, tensor in image.items()}, **renamed}


def to_authors(weights: Mapping[str, Tensor], where: str, positions: int = 0) -> dict[str, Tensor]:
    """This project's tensors under the authors' names, in open_clip's order.

    Args:
        weights: The tensors under this project's names.
        where: The model, for messages.
        positions: Length of the `position_ids` to add; 0 for none.

    Raises:
        UserError: A tensor is unknown or missing.
    """
    image = {name.removeprefix("image.vit."): value for name, value in weights.items() if name.startswith("image.vit.")}
    text = {name: value for name, value in weights.items() if name.startswith("text.encoder.")}
    known = {"log_scale", "text.proj.weight", *text, *(f"image.vit.{name}" for name in image)}
    if unknown := sorted(weights.keys() ^ known):
        raise _unknown_tensor(where, unknown[0])
    try:
        trunk = timm_vit.to_timm(image)
    except KeyError as error:
        raise _unknown_tensor(where, f"image.vit.{error.args[0]}") from None
    return {
        "logit_scale": weights["log_scale"],
        **{f"visual.trunk.{name}": tensor for name, tensor in trunk.items()},
        **({POSITION_IDS: position_ids(positions)} if positions else {}),
        **{f"text.transformer.{name.removeprefix('text.encoder.')}": tensor for name, tensor in text.items()},
        "text.proj.weight": weights["text.proj.weight"],
    }


def position_ids(positions: int) -> Tensor:
    """int64 [1, positions], as old versions of transformers save them."""
    return torch.arange(positions)[None]


def equal_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names, shapes, types and bits."""
    return first.keys() == second.keys() and all(_equal_bits(first[name], second[name]) for name in first)


def _equal_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _unknown_tensor(where: str, name: str) -> UserError:
    return UserError(
        f"{where}: {name} is missing, or is not a tensor of a LoTLIP with a plain ViT and a BERT-like encoder; "
        "give a LoTLIP checkpoint"
    )
