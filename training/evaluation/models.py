"""Models that can be evaluated: ours, any of open_clip's, any CLIP of transformers. `load_embedder` takes their names:

runs/demo/train/lotlip/model          a folder that `train` or `convert lotlip` wrote
open_clip:ViT-B-16/openai             open_clip's model and its published weights, or a file of weights
open_clip:hf-hub:ORG/NAME             open_clip's configuration and weights of a hub id; local-dir:FOLDER for a folder
clip:openai/clip-vit-base-patch16     transformers' CLIPModel: a hub id or a folder
"""

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.training.data.tokenizer import TextForm
from lotlip_data.training.models import lotlip
from lotlip_data.training.models.lotlip import LoTLIP

BATCH = 64
SPECIAL = 8
"""More tokens than any tokenizer puts around a text."""


@dataclass(frozen=True)
class TextFeatures:
    """Unit float32 features [N, D] on the CPU, and how many tokens, special ones included, each text has when whole."""

    features: Tensor
    lengths: Sequence[int]


class Embedder(Protocol):
    """A model of images and texts, as evaluation sees it."""

    @property
    def identity(self) -> str:
        """A digest of the weights and of all else that the features depend on."""

    @property
    def context_length(self) -> int:
        """Tokens that a text may have, special ones included."""

    @property
    def text_form(self) -> TextForm:
        """How it takes long texts: `authors` has their evaluation's rule applied, `punkt` takes them as they are."""

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        """Unit float32 features [N, D] on the CPU; the images may come from a generator."""

    def embed_texts(self, texts: Sequence[str]) -> TextFeatures: ...


NAMED = ("open_clip:", "clip:")
"""How names begin that are no folders or URLs of ours."""


def load_embedder(name: str, device: str | None = None) -> Embedder:
    """The model of that name (see above) on `device`: by default a GPU where there is one. Raises UserError."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # the first where torch is built without CUDA
        raise UserError(f"device {device!r}: cannot be used ({_first_line(error)}); cpu always can") from error
    kind, colon, rest = name.partition(":")
    if colon and kind == "open_clip":
        return OpenClip(rest, device)
    if colon and kind == "clip":
        return TransformersClip(rest, device)
    return LoTLIPModel(name, device)


class LoTLIPModel:
    """A model folder of this project."""

    def __init__(self, url: str, device: str) -> None:
        self.identity = _digest_of_folder(url)
        self.model = LoTLIP.load(storage.normalise(url))
        self.model.towers.to(device)
        self.context_length = self.model.tokenizer.context_length
        self.text_form: TextForm = self.model.tokenizer.form

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        return self.model.embed_images(images, BATCH)

    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        encoded = self.model.tokenizer.encode(texts)
        return TextFeatures(self.model.embed_tokens(encoded, BATCH), encoded.lengths)


class OpenClip:
    """`MODEL/WEIGHTS`, where WEIGHTS is a tag of open_clip's or a file; or `hf-hub:ID`, or `local-dir:FOLDER`."""

    text_form: TextForm = "authors"

    def __init__(self, name: str, device: str) -> None:
        try:
            import open_clip
        except ImportError:
            raise UserError(
                f"open_clip:{name}: open_clip is not installed; pip install open-clip-torch==3.3.0"
            ) from None
        model, weights = (name, None) if name.startswith(("hf-hub:", "local-dir:")) else _model_and_weights(name)
        try:
            built = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
            self._tokenize = open_clip.get_tokenizer(model)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"open_clip:{name}: cannot be loaded ({_first_line(error)})") from error
        self._model, self._transform, self._device = built[0].eval(), built[2], device
        self.context_length = int(self._tokenize.context_length)
        self._padding = int(self._tokenize([""], context_length=SPECIAL)[0, -1])
        self._end = int(self._tokenize(["a " * SPECIAL], context_length=SPECIAL)[0, -1])
        self.identity = _digest_of_weights(self._model, repr(self._transform), type(self._tokenize).__name__)

    @torch.no_grad()
    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        return _in_batches(
            images,
            lambda some: self._model.encode_image(torch.stack(list(map(self._transform, some))).to(self._device)),
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        features = _in_batches(texts, lambda some: self._model.encode_text(self._tokenize(some).to(self._device)))
        return TextFeatures(features, list(map(self._length, texts)))

    def _length(self, text: str) -> int:
        """Tokens of the text when it is whole.

        open_clip's tokenizers do not tell. With room for all, a byte being at least a token, what is not padding is
        the text; where the padding is the token that ends a text, its own last one looks like padding.
        """
        whole = self._tokenize([text], context_length=2 * len(text.encode()) + SPECIAL)[0]
        held = (whole != self._padding).nonzero()
        return (int(held.max()) + 1 if len(held) else 0) + int(self._end == self._padding)


class TransformersClip:
    """transformers' CLIPModel with its tokenizer and image processor: a hub id or a folder."""

    text_form: TextForm = "authors"

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        try:
            loaded: Any = CLIPModel.from_pretrained(name, output_loading_info=True)
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"clip:{name}: cannot be loaded ({_first_line(error)})") from error
        model, loading = loaded
        if missing := sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]):
            raise UserError(
                f"clip:{name}: {len(missing)} weights of a CLIPModel are not there or of other shapes, such as "
                f"{missing[0]}, and would be random; name a folder or hub id of a whole CLIPModel"
            )
        if self._tokenizer("a")["input_ids"] == self._tokenizer("b")["input_ids"]:
            raise UserError(f"clip:{name}: its tokenizer knows no words; add the tokenizer's files of that model")
        self._model, self._device = model.eval().to(device), device
        self.context_length = int(self._model.config.text_config.max_position_embeddings)
        self.identity = _digest_of_weights(
            self._model, str(self._processor), self._tokenizer.backend_tokenizer.to_str()
        )

    @torch.no_grad()
    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        return _in_batches(images, self._images)

    def _images(self, images: list[Image.Image]) -> Tensor:
        pixels = self._processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        return self._model.get_image_features(pixel_values=pixels.to(self._device)).pooler_output

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
        features = _in_batches(texts, self._texts)
        lengths = [len(ids) for some in batched(texts, BATCH) for ids in self._tokenizer(some)["input_ids"]]
        return TextFeatures(features, lengths)

    def _texts(self, texts: list[str]) -> Tensor:
        encoded = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return self._model.get_text_features(**encoded.to(self._device)).pooler_output


def _in_batches(items: Iterable[Any], embed: Callable[[list[Any]], Tensor]) -> Tensor:
    def parts() -> Iterator[Tensor]:
        for some in batched(items, BATCH):
            yield F.normalize(embed(some).float(), dim=-1).cpu()

    found = list(parts())
    return torch.cat(found) if found else torch.zeros(0, 1)


def _model_and_weights(name: str) -> tuple[str, str]:
    model, slash, weights = name.partition("/")
    if not (slash and weights):
        raise UserError(
            f"open_clip:{name}: names no weights, and a model without would be random; "
            f"write open_clip:{model}/TAG (see open_clip.list_pretrained()) or open_clip:{model}/FILE"
        )
    return model, weights


def _digest_of_folder(url: str) -> str:
    """The sha256 of the model's files: configuration, weights, tokenizer. Raises CheckpointError where it is none."""
    url, digest = storage.normalise(url), hashlib.sha256()
    names = [name for name in storage.list_names(url) if name.endswith((".json", ".safetensors", ".txt"))]
    for name in (lotlip.CONFIG, lotlip.WEIGHTS):
        if name not in names:
            raise lotlip.CheckpointError(
                f"{url}: there is no {name}, so no trained model; name the folder `model` of a training, "
                "open_clip:MODEL/WEIGHTS, or clip:FOLDER_OR_HUB_ID"
            )
    for name in names:
        digest.update(name.encode() + storage.read_bytes(storage.join(url, name)))
    return digest.hexdigest()


def _digest_of_weights(model: nn.Module, *settings: str) -> str:
    digest = hashlib.sha256("\n".join(settings).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
