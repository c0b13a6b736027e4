"""The trained model as a folder. Loading it takes two lines:

    from lotlip_data.training.models.lotlip import LoTLIP
    model = LoTLIP.load("RUN/train/lotlip/model")
    similarity = model.embed_images([picture]) @ model.embed_texts(["A long text. Of several sentences."]).T

The folder has config.json (the configurations of both towers for transformers, the corner tokens, the text form, the
preprocessing, the digests of the other files), model.safetensors and the tokenizer's files. Loading needs nothing else.

Shapes: N images or texts, D width of a feature.
"""

import contextlib
import logging
import math
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints import model_folder
from lotlip_data.manifests.checkpoints.fetched import fetched_folder
from lotlip_data.manifests.checkpoints.model_folder import (
    CLIP_FORMAT,
    CONFIG,
    FORMAT,
    POOLED_FORMAT,
    REMEDY,
    WEIGHTS,
    CheckpointError,
    ModelConfig,
)
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.run_layout import TRAINED_MODEL, TRAINING_DONE, Run
from lotlip_data.training.config import ConfigError, TrainConfig
from lotlip_data.training.data.image_transforms import ImageTransform, load_transform
from lotlip_data.training.data.tokenizer import (
    BertTextTokenizer,
    ClipTextTokenizer,
    EncodedTexts,
    TextForm,
    TextTokenizer,
    load_tokenizer,
)
from lotlip_data.training.models import towers
from lotlip_data.training.models.clip_checkpoints import load_clip
from lotlip_data.training.models.pretrained import load_image_tower, load_text_encoder, stretch_text_encoder
from lotlip_data.training.models.text_families import TextFamily, family_of
from lotlip_data.training.models.towers import ImageTower, TextSettings, TextTower, TwoTowers

logger = logging.getLogger(__name__)

CLIP_PREFIXES = ("clip:", "open_clip:")
"""Prefixes of the names of whole CLIPs, in transformers' layout and of open_clip, where towers have names too."""

_TRAINING_FILES = (TRAINING_DONE, "metrics.jsonl")
"""Files that a training's folder has and a model's folder does not have."""


@dataclass
class LoTLIP:
    """Two towers, and the tokenizer and image transform that make their inputs.

    It computes on the device of its towers (`model.towers.to("cuda")`) and returns features on the CPU.
    """

    towers: TwoTowers
    tokenizer: TextTokenizer
    transform: ImageTransform

    def embed_images(self, images: Iterable[Image.Image], batch: int = 64) -> Tensor:
        """Image features, float32 [N, D] with unit rows. A generator works too: it is read `batch` images at a time."""
        return F.normalize(self.image_features(images, batch), dim=-1)

    def embed_pixels(self, pixels_NCHW: Tensor) -> Tensor:
        """As `embed_images`, for images that `transform` has made pixels of."""
        return F.normalize(self._pixel_features(pixels_NCHW), dim=-1)

    def image_features(self, images: Iterable[Image.Image], batch: int = 64) -> Tensor:
        """As `embed_images`, but not normalised: what the image tower gives, float32 [N, D] on the CPU."""
        features = [self._pixel_features(self.transform(part)) for part in batched(images, batch)]
        return torch.cat(features) if features else torch.zeros(0, self.towers.image.dim)

    @torch.no_grad()
    def _pixel_features(self, pixels_NCHW: Tensor) -> Tensor:
        self.towers.eval()
        return self.towers.image(pixels_NCHW.to(self.device)).float().cpu()

    def embed_texts(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """Features of texts, float32 [N, D] with unit rows.

        Texts are truncated at the context length; `tokenizer.encode` reports which ones.
        """
        return self.embed_tokens(self.tokenizer.encode(texts), batch)

    @torch.no_grad()
    def embed_tokens(self, encoded: EncodedTexts, batch: int = 64) -> Tensor:
        """As `embed_texts`, for texts that `tokenizer.encode` has encoded."""
        self.towers.eval()
        features = torch.zeros(len(encoded.ids), self.towers.image.dim)
        by_length = sorted(range(len(encoded.ids)), key=lambda index: len(encoded.ids[index]))
        for indices in batched(by_length, batch):  # batches of texts of similar length need little padding
            ids = self.tokenizer.pad([encoded.ids[index] for index in indices]).to(self.device)
            features[indices] = self.towers.text(ids)[:, 0].float().cpu()
        return F.normalize(features, dim=-1)

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        return next(self.towers.parameters()).device

    def save(self, url: str) -> None:
        """Write the folder (a local path or fsspec URL). config.json is written last."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            self.tokenizer.tokenizer.save_pretrained(folder)
            weights = {name: value.detach().contiguous() for name, value in self.towers.state_dict().items()}
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
            names = sorted(path.name for path in folder.iterdir())
            for name in names:
                storage.replace_from_file(storage.join(url, name), str(folder / name))
            storage.replace(storage.join(url, CONFIG), model_folder.encode_config(self.config(), folder, names))

    def config(self) -> dict[str, Any]:
        """The content of config.json without the digests of the files."""
        return {
            "format": self._format(),
            "context_length": self.tokenizer.context_length,
            "text_form": self.tokenizer.form,
            "towers": towers.describe(self.towers),
            "transform": self.transform.settings(),
        }

    def _format(self) -> int:
        image, text, bias = self.towers.image, self.towers.text, self.towers.logit_bias
        if image.proj is not None or type(text.family) is not TextFamily or bias is not None:
            return CLIP_FORMAT
        return FORMAT if image.pooling == "class_token" else POOLED_FORMAT

    @classmethod
    def load(cls, url: str) -> "LoTLIP":
        """Load the model of a folder (a local path or fsspec URL), in evaluation mode.

        Raises:
            CheckpointError: The folder has no model, or a file of it is missing or damaged.
        """
        config = _read_config(url)
        with _local_copy(url) as folder:
            model_folder.check_files(folder, config, url)
            model = build(config, _load_tokenizer(folder, url), url)
            try:
                model.towers.load_state_dict(load_file(pathlib.Path(folder, WEIGHTS)))
            except (OSError, RuntimeError, SafetensorError) as error:
                raise CheckpointError(
                    f"{url}/{WEIGHTS}: cannot read the weights, or they do not match {CONFIG} ({error})"
                ) from error
        model.towers.eval()
        return model


def _read_config(url: str) -> ModelConfig:
    try:
        content = storage.read_bytes(storage.join(url, CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        reject_training_folder(url)
        raise CheckpointError(
            f"{url}: has no {CONFIG}, so it is not a model; give the `model` folder of a training"
        ) from None
    config = model_folder.parse_config(content, storage.join(url, CONFIG))
    if config is None:
        reject_training_folder(url)
        raise CheckpointError(
            f"{url}: not a model of this project, or from an incompatible release (this release reads "
            f"formats {FORMAT} to {CLIP_FORMAT})"
        )
    return config


def _load_tokenizer(folder: str, url: str) -> Any:
    try:
        return load_tokenizer(folder)
    except ValueError as error:  # transformers' own message is long and about its hub
        raise CheckpointError(
            f"{url}: cannot read the tokenizer; copy the tokenizer's files into this folder"
        ) from error


def build(config: ModelConfig, tokenizer: Any, url: str) -> LoTLIP:
    """The model of a config.json, with fresh weights. `url` names it in errors.

    Raises:
        CheckpointError: The configuration is none, or of another tokenizer.
    """
    description, transform = config["towers"], config["transform"]
    try:
        model = towers.build(description)
        text_tokenizer = make_tokenizer(tokenizer, model.text, config["context_length"], config["text_form"])
        return LoTLIP(model, text_tokenizer, ImageTransform(**transform))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{url}: the settings in {CONFIG} do not fit together or to the tokenizer ({reason}). {REMEDY}"
        ) from error


def reject_training_folder(url: str) -> None:
    """Raise CheckpointError if `url` is no folder, or that of a run or a training, easily confused with its model."""
    names, model = storage.list_names(url), storage.join(url, TRAINED_MODEL)
    if WEIGHTS in names:
        return
    if not names:
        raise CheckpointError(f"{url}: there is no such folder, or it is empty")
    if storage.exists(Run(url).manifest):
        raise CheckpointError(f"{url}: is a run; give the folder of one of its models, {url}/train/NAME/model")
    if storage.exists(storage.join(model, CONFIG)):
        raise CheckpointError(f"{url}: is not a model, but its subfolder `model` is one; give {model}")
    if set(_TRAINING_FILES) & set(names):
        raise CheckpointError(
            f"{url}: is the folder of a training that has not finished; give {model} after the training finishes"
        )


@contextlib.contextmanager
def _local_copy(url: str) -> Iterator[str]:
    """The folder itself if it is local, else a temporary copy."""
    if storage.is_local(url):
        yield storage.normalise(url)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in storage.list_names(url):
            pathlib.Path(scratch, name).write_bytes(storage.read_bytes(storage.join(url, name)))
        yield scratch


def load_model(config: TrainConfig) -> LoTLIP:
    """The model of a configuration before its first step.

    Corner tokens have fresh weights. The towers are pre-trained or fresh, as the configuration says, and the projection
    is fresh, unless the training starts from a whole CLIP or from a model of this project.

    Raises:
        UserError: A tower cannot be loaded, or its tokenizer is another one's.
        ConfigError: The settings do not fit the text tower, such as a context length beyond its positions.
    """
    try:
        return _make_model(config)
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _make_model(config: TrainConfig) -> LoTLIP:
    settings = TextSettings(config.corner_tokens, config.corner_mask)
    start = _start_model(config.start_from, config.image_size) if config.start_from else None
    if start is not None:
        _warn_of_other_texts(start, config)
        text = _continued(start.towers.text, start.towers.image.dim, settings, config)
        bias = start.towers.logit_bias
        logits = start.towers.log_scale.item(), None if bias is None else bias.item()
        towers = TwoTowers(start.towers.image, text, *_initial_logits(config, logits))
        tokenizer, transform = start.tokenizer.tokenizer, start.transform
    elif config.start_from:
        clip = load_clip(_local_name(config.start_from), image_size=config.image_size)
        text = TextTower(_stretched(clip.text_encoder, config), clip.image.dim, settings)
        text.proj.load_state_dict(dict(clip.text_projection))
        towers = TwoTowers(clip.image, text, *_initial_logits(config, (clip.log_scale, clip.logit_bias)))
        tokenizer, transform = clip.tokenizer, clip.transform
    else:
        image_tower, text_tower = _local_name(config.image_tower), _local_name(config.text_tower)
        image = load_image_tower(image_tower, pretrained=config.pretrained_image, image_size=config.image_size)
        encoder = load_text_encoder(text_tower, pretrained=config.pretrained_text)
        text = TextTower(_stretched(encoder, config), image.dim, settings)
        towers = TwoTowers(image, text, *_initial_logits(config))
        tokenizer = load_tokenizer(text_tower)
        transform = load_transform(image_tower, image.vit.config.image_size)
    if config.prefix_padding and text.family.is_padded:
        raise ConfigError("prefix_padding: SigLIP's texts are as long as the context already; switch it off")
    return LoTLIP(towers, make_tokenizer(tokenizer, towers.text, config.context_length, config.text_form), transform)


def _start_model(name: str, image_size: int | None) -> LoTLIP | None:
    """The model of this project from which a training starts; None if `name` is that of another model.

    Raises:
        UserError: It is the folder of a run or a training, or a damaged model, or its images have another size.
    """
    folder = pathlib.Path(_local_name(name))
    if not folder.is_dir():
        return None
    reject_training_folder(str(folder))
    file = folder / CONFIG
    if not file.is_file() or model_folder.parse_config(file.read_bytes(), str(file)) is None:
        return None
    model = LoTLIP.load(str(folder))
    if image_size not in (None, model.transform.size):
        raise ConfigError(f"image_size: {name} has images of {model.transform.size} pixels; remove it")
    return model


def _continued(start: TextTower, dim: int, settings: TextSettings, config: TrainConfig) -> TextTower:
    """The text tower of a model from which a training starts. Corner tokens that the model lacks have fresh weights."""
    words = start.encoder.get_input_embeddings()
    rows, corners = words.weight.detach().split([start.vocab_size, start.settings.corner_tokens])
    start.encoder.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=words.padding_idx))
    text = TextTower(_stretched(start.encoder, config), dim, settings)
    kept = min(len(corners), settings.corner_tokens)
    with torch.no_grad():
        text.encoder.get_input_embeddings().weight[len(rows) : len(rows) + kept] = corners[:kept]
    text.proj.load_state_dict(start.proj.state_dict())
    if text.pooler is not None and start.pooler is not None:
        text.pooler.load_state_dict(start.pooler.state_dict())
    return text


def _warn_of_other_texts(start: LoTLIP, config: TrainConfig) -> None:
    """Warn if the training gives the model texts of another form than those that it has learned."""
    before: dict[str, Any] = {"context_length": start.tokenizer.context_length}
    if not start.towers.text.family.summary_is_last:  # others read a text as it is
        before["text_form"] = start.tokenizer.form
    changed = [
        f"{name} {value} (here {getattr(config, name)})"
        for name, value in before.items()
        if value != getattr(config, name)
    ]
    if changed:
        logger.warning(f"start_from: {config.start_from} was trained with {' and '.join(changed)}")


def _initial_logits(
    config: TrainConfig, start: tuple[float, float | None] | None = None
) -> tuple[float | None, float | None]:
    """The logarithm of the scale, and the bias of the sigmoid loss. None: the default, and no bias.

    `start` has both of the model that the training starts from. Those of a SigLIP are kept together. The scale of a
    softmax says nothing about the sigmoid: SigLIP's initial values.
    """
    if config.loss == "softmax":
        return None if start is None else start[0], None
    if start is not None and start[1] is not None:
        return start
    return math.log(TwoTowers.SIGMOID_SCALE), TwoTowers.SIGMOID_BIAS


def load_image_side(name: str, image_size: int | None = None) -> tuple[ImageTower, ImageTransform]:
    """An image tower by its name, and the transform that makes its inputs.

    Args:
        name: A hub id or folder of an image tower; `clip:NAME` or `open_clip:NAME` for that of a whole CLIP, with its
            projection, and `clip:FOLDER` for that of a model of this project.
        image_size: Side of the images in pixels. Default: the tower's own.

    Raises:
        UserError: It cannot be loaded.
    """
    if name.startswith("clip:") and (start := _start_model(name.removeprefix("clip:"), image_size)):
        return start.towers.image, start.transform
    if name.startswith(CLIP_PREFIXES):
        clip = load_clip(_local_name(name.removeprefix("clip:")), image_size=image_size)
        return clip.image, clip.transform
    tower = load_image_tower(_local_name(name), image_size=image_size)
    return tower, load_transform(_local_name(name), tower.vit.config.image_size)


def make_tokenizer(tokenizer: Any, text: TextTower, context_length: int, form: TextForm) -> TextTokenizer:
    """The tokenizer of a text tower.

    Args:
        tokenizer: That of transformers.
        text: The tower.
        context_length: Largest number of tokens of a text.
        form: How a text of a BERT-like tower is split into sub-captions.

    Raises:
        ValueError: The tokenizer is not the tower's, or the context leaves no room for text.
    """
    family, vocab_size, corners = text.family, text.vocab_size, text.settings.corner_tokens
    if not family.summary_is_last:
        return BertTextTokenizer(
            tokenizer, vocab_size=vocab_size, context_length=context_length, corner_tokens=corners, form=form
        )
    end = family.end_id(text.encoder.config)
    if end is not None and tokenizer.eos_token_id != end:
        raise ValueError(
            f"tokenizer: ends texts with token {tokenizer.eos_token_id}, but the text tower reads token {end}; use the "
            "tokenizer of the same model"
        )
    return ClipTextTokenizer(
        tokenizer,
        vocab_size=vocab_size,
        context_length=context_length,
        corner_tokens=corners,
        form=form,
        is_padded=family.is_padded,
    )


def _local_name(name: str) -> str:
    """The folder of a model that is on this machine, else the name itself."""
    model = resolve(name)
    return str(fetched_folder(model) or model)


def _stretched(encoder: Any, config: TrainConfig) -> Any:
    """The text encoder, with at least as many positions as the context length if `stretch` is set.

    Raises ConfigError if the context length exceeds the positions without it.
    """
    positions, _ = family_of(encoder.config.model_type).positions(encoder)
    name = config.start_from or config.text_tower
    if config.context_length <= positions:
        if config.stretch:
            logger.warning(
                f"stretch: {name} has {positions} positions, enough for a context_length of {config.context_length}; "
                "nothing is stretched"
            )
        return encoder
    if not config.stretch:
        raise ConfigError(f"context_length: {name} has {positions} positions; use at most {positions}, or set stretch")
    return stretch_text_encoder(encoder, config.context_length, config.stretch)
