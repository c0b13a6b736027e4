"""Models that can be evaluated: of this project, of open_clip, and CLIPs of transformers.

`load_embedder` takes their names:

runs/demo/train/lotlip/model          a folder that `train` or `convert lotlip` wrote
open_clip:ViT-B-16/openai             an open_clip model and the tag of its published weights, or a file of weights
open_clip:hf-hub:ORG/NAME             open_clip configuration and weights of a hub id; local-dir:FOLDER for a folder
clip:openai/clip-vit-base-patch16     a CLIPModel of transformers: a hub id or a folder

Shapes: N images or texts, D feature dimensions.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.training.data.feature_cache import tower_id
from lotlip_data.training.data.tokenizer import TextForm, check_vocabulary, has_words
from lotlip_data.training.devices import pick_device
from lotlip_data.training.evaluation import protocol
from lotlip_data.training.models import lotlip
from lotlip_data.training.models.lotlip import LoTLIP
from lotlip_data.training.models.open_clip_models import import_open_clip, load_open_clip

NAME_PREFIXES = ("open_clip:", "clip:")
"""Prefixes of model names that are not folders or URLs of this project's models."""
BATCH_SIZE = 64
_DIGITS = 16
"""Digits of a digest that identify a model in a run."""
MIN_DIFFERENCE = 1e-5
"""Smallest distance of the unit features of two images that have nothing in common."""
MAX_SPECIAL_TOKENS = 8
"""More special tokens than any tokenizer adds to a text."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of N texts."""

    features: Tensor
    """Unit float32 features [N, D] on the CPU."""
    lengths: Sequence[int]
    """Tokens of each text before truncation, special tokens included."""


class Embedder(Protocol):
    """What evaluation needs of a model of images and texts."""

    @property
    def identity(self) -> str:
        """A digest of the weights and of everything else that the features depend on."""

    @property
    def context_length(self) -> int:
        """The most tokens that a text can have, special tokens included."""

    @property
    def text_form(self) -> TextForm:
        """The form of long texts: `authors` as in the authors' evaluation, `punkt` as published."""

    @property
    def preprocessing(self) -> Mapping[str, str]:
        """How images are made pixels, as `describe_preprocessing` says it. Results state it."""

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        """Unit float32 features [N, D] on the CPU. The images may come from a generator."""

    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Unit features and lengths of the texts."""

    @property
    def image_identity(self) -> str:
        """Identifies what image features depend on, as a run stores them."""

    def image_features(self, images: Iterable[Image.Image]) -> Tensor:
        """As `embed_images`, in the form in which a run stores them, which need not be normalised."""

    def pixels(self, image: Image.Image) -> Tensor:
        """The pixels [3, height, width] of an image, as the model reads them. Threads may call it at once."""

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """As `embed_images`, for pixels [N, 3, height, width] that `pixels` has made."""


def load_embedder(name: str, device: str | None = None) -> Embedder:
    """Load a model for evaluation.

    Args:
        name: See the description of this module.
        device: Such as "cpu" or "cuda:1". Default: a GPU if there is one.

    Raises:
        UserError: If the device cannot be used, or if the model does not exist, is incomplete or damaged, or cannot
            embed plain images and texts.
    """
    device = str(pick_device(device))
    kind, colon, model = name.partition(":")
    embedder: Embedder
    if colon and kind == "open_clip":
        embedder = OpenClipModel(model, device)
    elif colon and kind == "clip":
        embedder = TransformersClipModel(model, device)
    else:
        embedder = LoTLIPModel(name, device)
    _probe(embedder, name)
    return embedder


def _probe(embedder: Embedder, name: str) -> None:
    """Embed two images and two texts. Raises UserError if that fails, or if the features say nothing of them."""
    with _damage_explained(name):
        gradients = Image.linear_gradient("L"), Image.radial_gradient("L")
        images = embedder.embed_images(gradient.convert("RGB") for gradient in gradients)
        texts = embedder.embed_texts(["two red cars", "a dog on a beach"]).features
    for kind, features in (("images", images), ("texts", texts)):
        if not features.isfinite().all() or not features.any(dim=1).all():
            raise UserError(
                f"{name}: its features of {kind} are zero or not finite numbers, so nothing can be measured; the "
                "training has diverged or the weights are damaged: use an earlier checkpoint, or get the files again"
            )
    if (images[0] - images[1]).norm() < MIN_DIFFERENCE:
        raise UserError(f"{name}: gives different images the same feature; check the settings of its image processor")


class LoTLIPModel:
    """A model folder of this project."""

    def __init__(self, url: str, device: str) -> None:
        self.identity = _folder_digest(url)
        self.model = LoTLIP.load(storage.normalise(url))
        self.model.towers.to(device)
        self.context_length = self.model.tokenizer.context_length
        self.text_form: TextForm = self.model.tokenizer.form
        transform = self.model.transform
        self.preprocessing: Mapping[str, str] = protocol.describe_preprocessing(
            (transform.size, transform.size),
            transform.resize_mode,
            transform.interpolation,
            transform.mean,
            transform.std,
        )

    @functools.cached_property
    def image_identity(self) -> str:
        """Trainings with this locked tower have it too."""
        return tower_id(self.model.towers.image, self.model.transform)

    def image_features(self, images: Iterable[Image.Image]) -> Tensor:
        return self.model.image_features(images, BATCH_SIZE)

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        return self.model.embed_images(images, BATCH_SIZE)

    def pixels(self, image: Image.Image) -> Tensor:
        return self.model.transform.normalize(self.model.transform.square(image))

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return self.model.embed_pixels(pixels)

    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        encoded = self.model.tokenizer.encode(texts)
        return TextFeatures(self.model.embed_tokens(encoded, BATCH_SIZE), encoded.lengths)


class OpenClipModel:
    """A model of open_clip: MODEL/WEIGHTS (a tag of open_clip or a file), hf-hub:ID or local-dir:FOLDER."""

    text_form: TextForm = "authors"

    def __init__(self, name: str, device: str) -> None:
        with _damage_explained(f"open_clip:{name}"):
            loaded = load_open_clip(name, device)
        self._model, self._device = loaded.model, device
        self._transform, self._tokenize = loaded.transform, loaded.tokenize
        self.context_length = int(self._tokenize.context_length)
        self._padding_id = int(self._tokenize([""], context_length=MAX_SPECIAL_TOKENS)[0, -1])
        self._end_id = int(self._tokenize(["a " * MAX_SPECIAL_TOKENS], context_length=MAX_SPECIAL_TOKENS)[0, -1])
        self.preprocessing: Mapping[str, str] = protocol.open_clip_preprocessing(
            import_open_clip().get_model_preprocess_cfg(self._model)
        )
        gelu = ["quick_gelu"] if loaded.quick_gelu else []
        settings = [repr(self._transform), type(self._tokenize).__name__, *gelu]
        self.identity = _weights_digest(self._model, *settings)
        self.image_identity = self.identity[:_DIGITS]

    def image_features(self, images: Iterable[Image.Image]) -> Tensor:
        return self.embed_images(images)

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        return _embed_in_batches(images, lambda batch: self.embed_pixels(torch.stack(list(map(self.pixels, batch)))))

    def pixels(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self._transform(image)
        return pixels

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return _unit(self._model.encode_image(pixels.to(self._device)))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        features = _embed_in_batches(
            texts, lambda batch: self._model.encode_text(self._tokenize(batch).to(self._device))
        )
        return TextFeatures(features, list(map(self._token_count, texts)))

    def _token_count(self, text: str) -> int:
        """Number of tokens of the text before truncation.

        open_clip's tokenizers do not return it. A token has at least one byte, so the text is encoded with room for all
        its bytes, and the tokens before the padding are counted. If the padding is the token that ends a text, that
        token looks like padding and is added.
        """
        ids = self._tokenize([text], context_length=2 * len(text.encode()) + MAX_SPECIAL_TOKENS)[0]
        token_positions = (ids != self._padding_id).nonzero()
        count = int(token_positions.max()) + 1 if len(token_positions) else 0
        return count + int(self._end_id == self._padding_id)


class TransformersClipModel:
    """A CLIPModel of transformers with its tokenizer and image processor: a hub id or a folder."""

    text_form: TextForm = "authors"

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would show the reading of one file
        with _damage_explained(f"clip:{name}"):
            loaded: Any = CLIPModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        model, loading_info = loaded
        _check_all_weights_loaded(name, loading_info)
        if not has_words(self._tokenizer):
            raise UserError(f"clip:{name}: the tokenizer has no vocabulary; add the tokenizer files of this model")
        try:
            check_vocabulary(self._tokenizer, int(model.config.text_config.vocab_size), "the tokenizer")
        except ValueError as error:
            raise UserError(f"clip:{name}: {error}") from None
        self._model, self._device = model.eval().to(device), device
        self.context_length = int(self._model.config.text_config.max_position_embeddings)
        self.preprocessing: Mapping[str, str] = protocol.transformers_preprocessing(self._processor.to_dict())
        self.identity = _weights_digest(self._model, str(self._processor), self._tokenizer.backend_tokenizer.to_str())
        self.image_identity = self.identity[:_DIGITS]

    def image_features(self, images: Iterable[Image.Image]) -> Tensor:
        return self.embed_images(images)

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        return _embed_in_batches(images, lambda batch: self.embed_pixels(torch.stack(list(map(self.pixels, batch)))))

    def pixels(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self._processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self._device)).pooler_output)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        features = _embed_in_batches(texts, self._embed_text_batch)
        # `verbose` would warn of texts that are longer than the context, which `_embed_text_batch` truncates.
        batches = (self._tokenizer(batch, verbose=False)["input_ids"] for batch in batched(texts, BATCH_SIZE))
        lengths = [len(ids) for batch in batches for ids in batch]
        return TextFeatures(features, lengths)

    def _embed_text_batch(self, texts: list[str]) -> Tensor:
        encoded = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return self._model.get_text_features(**encoded.to(self._device)).pooler_output


@contextmanager
def _damage_explained(name: str) -> Iterator[None]:
    """Turn every error of loading the model `name` into a UserError of one line.

    Libraries raise errors of any type for files of unknown origin: a damaged tokenizer.json raises a plain Exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if answer := hub.explain(error, name.removeprefix("clip:")):
            raise UserError(str(answer)) from error
        raise UserError(f"{name}: cannot be loaded ({_first_line(error)})") from error


def _embed_in_batches(items: Iterable[Any], embed: Callable[[list[Any]], Tensor]) -> Tensor:
    """Unit float32 features [N, D] on the CPU, from `embed` of a batch of at most BATCH_SIZE items."""

    def batches() -> Iterator[Tensor]:
        for batch in batched(items, BATCH_SIZE):
            yield _unit(embed(batch))

    features = list(batches())
    return torch.cat(features) if features else torch.zeros(0, 1)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1).cpu()


def _check_all_weights_loaded(name: str, loading_info: dict[str, Any]) -> None:
    """Raises UserError if a weight is missing or has another shape: transformers draws such weights at random."""
    random = sorted([*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])])
    if random:
        raise UserError(
            f"clip:{name}: {len(random)} weights of a CLIPModel are missing or have other shapes, such as {random[0]}, "
            "and would be random; name a folder or hub id of a complete CLIPModel"
        )


def _folder_digest(url: str) -> str:
    """The sha256 of a model's configuration, weights and tokenizer. Raises CheckpointError if `url` is not a model."""
    url, digest = storage.normalise(url), hashlib.sha256()
    names = [name for name in storage.list_names(url) if name.endswith((".json", ".safetensors", ".txt"))]
    for name in (lotlip.CONFIG, lotlip.WEIGHTS):
        if name not in names:
            raise lotlip.CheckpointError(
                f"{url}: has no {name}, so it is not a model; give the `model` folder of a training, "
                "open_clip:MODEL/WEIGHTS, or clip:FOLDER_OR_HUB_ID"
            )
    for name in names:
        digest.update(name.encode() + storage.read_bytes(storage.join(url, name)))
    return digest.hexdigest()


def _weights_digest(model: nn.Module, *settings: str) -> str:
    """The sha256 of the settings and of all weights with their names."""
    digest = hashlib.sha256("\n".join(settings).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
