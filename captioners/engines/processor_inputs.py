"""What a vision-language model of any family reads: everything that its checkpoint's processor makes of image and text.

Families differ in these inputs: tiles, flat patches with a grid, masks of pixels, sizes of images. This module names
none of them. It calls the processor for one image at a time, and `collate` joins the inputs of several.
"""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, ModelSpec, TextRequest
from lotlip_data.captioners.engines.chat_prompt import ChatPrompt
from lotlip_data.captioners.engines.images import check_shape, fitted, image_errors
from lotlip_data.captioners.engines.processor_loading import load_processor
from lotlip_data.captioners.engines.prompt import no_room
from lotlip_data.captioners.engines.stop_tokens import decode, read_stop_ids
from lotlip_data.captioners.prompt_fields import longest_requests, special_texts_of
from lotlip_data.captioners.sizing import ModelSizes
from lotlip_data.captioners.vlm_sizing import TYPICAL_SIDES, image_tokens, max_image_tokens, vlm_sizes
from lotlip_data.manifests.checkpoints.hub import find_model

Fields = dict[str, Any]
"""Inputs of a model by name: tensors with a batch dimension, or lists of one tensor per image."""

BLANK_SIZE = (64, 64)


@dataclass(frozen=True)
class ProcessedText:
    """One text that an image is to get, and the inputs of the model for it."""

    config: CaptionerConfig
    fields: Fields
    image_id: str
    """What the texts of one image have in common, and no other image's."""


class ProcessorInputs:
    """The processor, the prompt and the end tokens of one captioner.

    Attributes:
        source: Local folder or hub id of the checkpoint.
        load_options: Keyword arguments for every `from_pretrained` call on `source`.
        model_config: The content of config.json, as transformers' class.
        processor: The checkpoint's processor.
        tokenizer: Its tokenizer.
        images_kwargs: What the captioner's size limits change in a call of the image processor.
        stop_ids: Tokens that end a caption.
        special_texts: As in `MultiTextEngine`.
    """

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig):
        from transformers import AutoConfig

        folder = find_model(config.model, config.revision)
        self.source = str(folder or config.model)
        self.load_options: dict[str, Any] = {
            "revision": config.revision,
            "local_files_only": folder is not None,
            "trust_remote_code": config.trust_remote_code,
        }
        captioner.check(self.source, self.load_options)
        self._config = config
        self.model_config = AutoConfig.from_pretrained(self.source, **self.load_options)
        self.processor = load_processor(self.source, self.load_options, self.model_config)
        self.tokenizer = self.processor.tokenizer
        self.images_kwargs = size_limits(config, self.source, self.processor.image_processor)
        if self.images_kwargs:
            own_size = self.processor.image_processor.size
            self.processor.image_processor.size = type(own_size)(**self.images_kwargs["size"])
        self.prompt = ChatPrompt(captioner, config, self.processor, self.source)
        self.stop_ids = read_stop_ids(self.source, self.load_options, self.model_config, self.tokenizer)
        templates = [self.text(TextRequest(text, text.prompt)).replace(text.prompt, " ") for text in config.texts]
        self.special_texts = special_texts_of(self.tokenizer, template=" ".join(templates)) | _placeholders(
            self.processor
        )
        self.shared_images = SharedImages(self.processor.image_processor)
        self.positions: int | None = getattr(self.model_config.get_text_config(), "max_position_embeddings", None)
        self.pad_id: int = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.stop_ids)
        )
        self._check_blank()

    def prepare(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[ProcessedText | CaptionError]:
        """Return the inputs for each text of an image. The image processor runs once.

        Returns:
            One entry per request, in order; the reason in place of a text that cannot be made.

        Raises:
            CaptionError: The image cannot be decoded, or is too elongated.
        """
        picture, image_id = self.picture(image), uuid.uuid4().hex

        def prepare(request: TextRequest) -> ProcessedText | CaptionError:
            try:
                return ProcessedText(request.config, self._fields(picture, request), image_id)
            except CaptionError as error:
                return error

        with self.shared_images.of_one_image():
            return list(map(prepare, requests))

    def picture(self, image: Image.Image) -> Image.Image:
        """Return the image in RGB and in the shape that the captioner's `image_fit` says.

        Raises:
            CaptionError: The image cannot be decoded, or is too elongated.
        """
        check_shape(image)
        with image_errors("image cannot be read"):
            return fitted(image, self._config.image_fit, self.processor.image_processor)

    def text(self, request: TextRequest) -> str:
        """Return the text of a request in its template, with one placeholder for the image."""
        return self.prompt.render(request)

    def decode(self, token_ids: Sequence[int], config: CaptionerConfig) -> Caption:
        """Return the caption of generated tokens; those after the first end token are padding."""
        return decode(token_ids, self.tokenizer, self.stop_ids, config.stop)

    def blank(self) -> ProcessedText:
        """Return the inputs for a black image and the captioner's first text."""
        config = self._config.texts[0]
        fields = self._fields(_blank_image(), TextRequest(config, config.prompt))
        return ProcessedText(config, fields, uuid.uuid4().hex)

    @property
    def longest(self) -> int:
        """Number of tokens of the largest image, the prompt and the caption together, of the captioner's longest text.

        Its fields have the largest length.
        The model's number of positions limits it.
        """
        image = max_image_tokens(self.processor)
        requests = (request for text in self._config.texts for request in longest_requests(text))
        tokens = max(self._text_tokens(request) + request.config.max_new_tokens for request in requests)
        return min(image + tokens, self.positions or image + tokens)

    def sizes(self) -> ModelSizes:
        """The sizes of the model, with an image of TYPICAL_SIDES and the captioner's first prompt."""
        text = self._config.texts[0]
        prompt = len(self.tokenizer(self.text(TextRequest(text, text.prompt)))["input_ids"])
        (tokens,) = image_tokens(self.processor, [TYPICAL_SIDES])
        return vlm_sizes(self.model_config, tokens, prompt)

    def _text_tokens(self, request: TextRequest) -> int:
        """Number of tokens around those of an image. A processor can add some, such as PaliGemma's line break."""
        text = self.text(request)
        read = self.processor(images=[_blank_image()], text=[text], return_tensors="pt", **self.images_kwargs)
        (image,) = image_tokens(self.processor, [BLANK_SIZE])
        return max(len(self.tokenizer(text)["input_ids"]), read["input_ids"].shape[1] - image)

    def _fields(self, picture: Image.Image, request: TextRequest) -> Fields:
        with image_errors("image cannot be preprocessed"):
            inputs = self.processor(
                images=[picture], text=[self.text(request)], return_tensors="pt", **self.images_kwargs
            )
        fields = {name: value for name, value in inputs.items() if name != "labels"}
        tokens = fields["input_ids"].shape[1]
        if problem := no_room(request.config, tokens, self.positions, is_whole=True, resizes=True):
            raise CaptionError(problem)
        return fields

    def _check_blank(self) -> None:
        """Raise ValueError if the processor or the word embeddings do not fit the prompt."""
        try:
            fields = self.blank().fields
        except CaptionError as error:
            raise ValueError(
                f"captioner {self._config.name!r}: {self.source}: its processor fails on a black image of 64×64 "
                f"pixels: {error}"
            ) from error
        vocabulary = getattr(self.model_config.get_text_config(), "vocab_size", None)
        largest = int(fields["input_ids"].max())
        placeholder = getattr(self.model_config, "image_token_id", None)
        if vocabulary and largest >= vocabulary and largest != placeholder:
            raise ValueError(
                f"{self.source}: the prompt has the token {largest}, but the model has word embeddings for "
                f"{vocabulary} tokens only; use the tokenizer and the weights of one model"
            )


def _blank_image() -> Image.Image:
    return Image.new("RGB", BLANK_SIZE)


def _placeholders(processor: Any) -> frozenset[str]:
    """The texts at which a processor puts tokens of an image."""
    named = (value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str))
    return frozenset(text for text in named if text.strip())


class SharedImages:
    """Lets an image processor preprocess an image once, although the processor is called once per text.

    It takes the place of the image processor's `preprocess`.
    """

    def __init__(self, image_processor: Any):
        self._preprocess = image_processor.preprocess
        self._local = threading.local()
        image_processor.preprocess = self

    @contextmanager
    def of_one_image(self) -> Iterator[None]:
        """Within this block, all calls of this thread are for the same image."""
        self._local.results = {}
        try:
            yield
        finally:
            self._local.results = None

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> Any:
        results = getattr(self._local, "results", None)
        if results is None:
            return self._preprocess(images, *arguments, **options)
        key = repr((arguments, sorted(options.items(), key=lambda option: option[0])))
        if key not in results:
            results[key] = self._preprocess(images, *arguments, **options)
        return type(results[key])(dict(results[key]))  # a processor removes fields from what it gets


def size_limits(config: CaptionerConfig, source: str, image_processor: Any) -> dict[str, Any]:
    """Return the keyword arguments for the image processor that a captioner's size limits mean.

    Raises:
        ValueError: The image processor has no such limit.
    """
    where = f"captioner {config.name!r}"
    name = type(image_processor).__name__
    size = dict(getattr(image_processor, "size", None) or {})
    size = {key: value for key, value in size.items() if value is not None}
    limits = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    pixels = {key: value for key, value in limits.items() if value is not None}
    if pixels and not _limits_pixels(image_processor):
        keys = f"; it has `size` with {', '.join(size)}" if size else ""
        raise ValueError(
            f"{where}: min_pixels and max_pixels: the image processor of {source}, {name}, has no such limits{keys}; "
            "leave them out"
        )
    if unknown := sorted(config.size.keys() - size.keys()):
        raise ValueError(
            f"{where}: size.{unknown[0]}: the `size` of {source}'s image processor, {name}, has "
            f"{', '.join(size) or 'no entries'}; use these"
        )
    changed = size | dict(config.size) | pixels
    if not pixels and not config.size:
        return {}
    if _limits_pixels(image_processor) and changed["shortest_edge"] > changed["longest_edge"]:
        raise ValueError(
            f"{where}: min_pixels={changed['shortest_edge']} exceeds max_pixels={changed['longest_edge']}; set both"
        )
    return {"size": changed}


def _limits_pixels(image_processor: Any) -> bool:
    """Whether `shortest_edge` and `longest_edge` of an image processor's size are numbers of pixels, as in Qwen's."""
    accepted = getattr(image_processor, "valid_kwargs", None)
    return "max_pixels" in getattr(accepted, "__annotations__", {})


def collate(items: Sequence[Fields], pad_id: int) -> Fields:
    """Join the inputs of several texts into those of a batch.

    Inputs with one value per token are padded on the left. Others, which belong to images, are put one after another;
    where their shapes differ, such as for other numbers of tiles, they are padded with zeros at the end.

    Args:
        items: The inputs of one text each, under the same names.
        pad_id: Token of the padding.
    """
    if len(items) == 1:
        return dict(items[0])
    lengths = [item["input_ids"].shape[1] for item in items]
    batch: Fields = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if isinstance(values[0], list):
            batch[name] = [part for value in values for part in value]
        elif all(tuple(value.shape) == (1, length) for value, length in zip(values, lengths, strict=True)):
            fill = pad_id if name == "input_ids" else 0
            pads = [(max(lengths) - length, 0) for length in lengths]
            padded = zip(values, pads, strict=True)
            batch[name] = torch.cat([torch.nn.functional.pad(value, pad, value=fill) for value, pad in padded])
        else:
            batch[name] = torch.cat(_equal_shapes(values))
    return batch


def _equal_shapes(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, padded with zeros to one shape behind their first dimension."""
    largest = [max(sides) for sides in zip(*(value.shape[1:] for value in values), strict=True)]

    def padded(value: torch.Tensor) -> torch.Tensor:
        missing = [side - own for side, own in zip(largest, value.shape[1:], strict=True)]
        pads = [amount for side in reversed(missing) for amount in (0, side)]
        return torch.nn.functional.pad(value, pads) if any(missing) else value

    return [padded(value) for value in values]
