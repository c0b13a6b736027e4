"""What every engine puts into a model and reads out of it: pixels, prompt tokens and decoded captions.

All engines share this module, so that they see the same pixels and prompts and can only agree on captions.
"""

import copy
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, ModelSpec, TextRequest
from lotlip_data.captioners.engines.images import check_shape, fitted, image_errors
from lotlip_data.captioners.engines.prompt import no_room, prompt_text
from lotlip_data.captioners.engines.stop_tokens import decode, read_stop_ids
from lotlip_data.captioners.prompt_fields import longest_requests, special_texts_of
from lotlip_data.captioners.sizing import ModelSizes, sizes_of
from lotlip_data.manifests.checkpoints.hub import find_model

BLANK_SIZES = ((64, 64), (96, 64), (64, 128), (16, 16))
"""Width and height of the blank images that are rendered with the prompt."""

BLANKS = ("black", "white", "grey", "black")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as a model reads it.

    Attributes:
        text: The prompt inside its template.
        inputs: (1, L) tensor by name: all inputs of the model except pixels. The image's placeholder tokens are
            expanded.
    """

    text: str
    inputs: dict[str, torch.Tensor]

    @property
    def length(self) -> int:
        """Number of tokens of image and prompt that the language model reads."""
        return self.inputs["input_ids"].shape[1]


@dataclass(frozen=True, eq=False)
class PreparedText:
    """One text that an image is to get.

    Attributes:
        pixels: (1, 3, H, W). The texts of one image share the tensor.
        prompt: The prompt of the text.
        config: Its sampling.
        image_id: What the texts of one image have in common, and no other image's.
    """

    pixels: torch.Tensor
    prompt: Prompt
    config: CaptionerConfig
    image_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Preprocessor:
    """The image processor, tokenizer and prompts of one captioner.

    Attributes:
        source: Local folder or hub id of the checkpoint.
        load_options: Keyword arguments (`revision`, `local_files_only`) for every `from_pretrained` call on `source`.
        architecture: Class of transformers that loads the checkpoint.
        model_config: The checkpoint's config.json.
        first: The prompt of the captioner's first text.
        positions: Number of tokens that the language model can read and write; None if it has no limit.
        special_texts: As in `MultiTextEngine`.
        stop_ids: Tokens that end a caption.
    """

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig):
        import transformers
        from transformers import AutoConfig

        folder = find_model(config.model, config.revision)
        self.source = str(folder or config.model)
        self.load_options: dict[str, Any] = {
            "revision": config.revision,
            "local_files_only": folder is not None,
        }
        captioner.check(self.source, self.load_options)
        self.architecture: Any = getattr(transformers, captioner.model_class)
        self.model_config = AutoConfig.from_pretrained(self.source, **self.load_options)
        # The PIL backend: torchvision need not be installed, and captions do not depend on whether it is.
        processor_class = getattr(transformers, captioner.processor_class)
        self._processor: Any = processor_class.from_pretrained(self.source, backend="pil", **self.load_options)
        for part in ("tokenizer", "image_processor"):
            if not hasattr(self._processor, part):
                raise ValueError(
                    f"{self.source}: has no processor with a {part} but a {type(self._processor).__name__}; check its "
                    "processor_config.json, such as processor_class, and preprocessor_config.json"
                )
        self.tokenizer = self._processor.tokenizer
        self._check_patch_size()
        self._captioner, self._texts, self._fit = captioner, config.texts, config.image_fit
        self.blank = Image.new("RGB", BLANK_SIZES[0])
        self._check_shapes(config)
        self._prompt_processor = copy.copy(self._processor)
        self._prompts: dict[tuple[str | None, str], Prompt] = {}
        self._prompt_processor.image_processor = _Fixed(self._processor.image_processor, self.blank)
        self._prompts = {_prompt_key(text, text.prompt): self._prompt(text, text.prompt) for text in self._texts}
        self.first = self._prompts[_prompt_key(self._texts[0], self._texts[0].prompt)]
        self.special_texts = self._special_texts()
        self.stop_ids = read_stop_ids(self.source, self.load_options, self.model_config, self.tokenizer)
        self.positions: int | None = getattr(self.model_config.get_text_config(), "max_position_embeddings", None)
        for text in self._texts:
            self._check_length(text)

    @property
    def longest(self) -> int:
        """Largest number of tokens of image, prompt and caption together, with fields of the largest length.

        It is at most the model's own limit.
        """
        requests = (request for text in self._texts for request in longest_requests(text))
        needed = max(
            self._prompt(request.config, request.prompt).length + request.config.max_new_tokens for request in requests
        )
        return min(needed, self.positions or needed)

    def prepare(self, image: Image.Image, limit: int | None) -> PreparedText:
        """As `prepare_texts` for the captioner's first text alone. Raises CaptionError if it cannot be made."""
        text = self._texts[0]
        (prepared,) = self.prepare_texts(image, [TextRequest(text, text.prompt)], limit)
        if isinstance(prepared, CaptionError):
            raise prepared
        return prepared

    def prepare_texts(
        self, image: Image.Image, requests: Sequence[TextRequest], limit: int | None
    ) -> list[PreparedText | CaptionError]:
        """Preprocess one image for several texts.

        Args:
            image: Image of any size and mode.
            requests: The texts.
            limit: Number of tokens that the engine can read and write; None if there is no limit.

        Returns:
            One entry per request, in order; the reason in place of a text that cannot be made.

        Raises:
            CaptionError: The image cannot be decoded, or is too elongated.
        """
        pixels, image_id = self.pixels(image), uuid.uuid4().hex

        def prepare(request: TextRequest) -> PreparedText | CaptionError:
            try:
                prompt = self._prompt(request.config, request.prompt)
                _check_room(prompt, request.config, limit)
                self._check_qformer_length(prompt)
            except ValueError as error:
                return CaptionError(str(error))
            return PreparedText(pixels, prompt, request.config, image_id)

        return list(map(prepare, requests))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return the image as (1, 3, H, W) float32: resized, cropped and normalised.

        Raises:
            CaptionError: The image cannot be decoded, or is too elongated.
        """
        check_shape(image)
        with image_errors("image cannot be read"):
            return self._processor.image_processor(self._fitted(image), return_tensors="pt")["pixel_values"]

    def blank_text(self) -> PreparedText:
        """Return the first text of a black image."""
        return PreparedText(self.pixels(self.blank), self.first, self._texts[0])

    def sizes(self) -> ModelSizes:
        """The sizes of the model, with the captioner's first prompt."""
        sizes = sizes_of(self.architecture, self.model_config)
        return replace(sizes, prompt_tokens=max(sizes.prompt_tokens, self.first.length - sizes.image_tokens))

    def decode(self, token_ids: list[int], config: CaptionerConfig) -> Caption:
        """Return the caption of generated token ids; those after the first end token are padding."""
        return decode(token_ids, self.tokenizer, self.stop_ids, config.stop)

    def _fitted(self, image: Image.Image) -> Image.Image:
        """The image in RGB, made square if the captioner's `image_fit` says so."""
        return fitted(image, self._fit, self._processor.image_processor)

    def _prompt(self, config: CaptionerConfig, prompt: str) -> Prompt:
        """The prompt of one text. Raises ValueError if the model cannot read it."""
        known = self._prompts.get(_prompt_key(config, prompt))
        if known is None:
            known = self._render(config, prompt)
            self._check_vocabulary(known.inputs)
        return known

    def _render(self, config: CaptionerConfig, prompt: str) -> Prompt:
        text = prompt_text(self._captioner, config, prompt, self._processor, self.source)
        inputs = dict(self._prompt_processor(images=self.blank, text=text, return_tensors="pt"))
        del inputs["pixel_values"]
        return Prompt(text, inputs)

    def _special_texts(self) -> frozenset[str]:
        """The special tokens of all tokenizers, and the marks in the templates around the prompts."""
        tokenizers = [self.tokenizer, *filter(None, [getattr(self._processor, "qformer_tokenizer", None)])]
        templates = (self._prompt(text, text.prompt).text.replace(text.prompt, " ") for text in self._texts)
        return special_texts_of(*tokenizers, template=" ".join(templates))

    def _check_shapes(self, config: CaptionerConfig) -> None:
        """Make the inputs of the first text for blank images of several shapes.

        Raises:
            ValueError: They differ, so that no image could share its prompt with another.
        """
        text = prompt_text(self._captioner, self._texts[0], self._texts[0].prompt, self._processor, self.source)
        blanks = [self._fitted(Image.new("RGB", size, color)) for size, color in zip(BLANK_SIZES, BLANKS, strict=True)]
        first, *others = [dict(self._processor(images=blank, text=text, return_tensors="pt")) for blank in blanks]
        differing = {name for other in others for name in _differing(first, other)}
        if differing:
            raise ValueError(
                f"captioner {config.name!r}: {self.source}: its inputs depend on an image's shape "
                f"({', '.join(sorted(differing))}), but kind {config.kind!r} gives all images the same prompt; use "
                "kind 'vlm'"
            )

    def _check_patch_size(self) -> None:
        """Raise ValueError if the processor needs a patch size to count an image's tokens, and has none."""
        if hasattr(self._processor, "patch_size") and self._processor.patch_size is None:
            patch_size = getattr(getattr(self.model_config, "vision_config", None), "patch_size", None)
            value = f"{patch_size}, as in config.json's vision_config" if patch_size else "the vision tower's"
            raise ValueError(f"{self.source}: processor_config.json lacks patch_size; set it to {value}")

    def _check_vocabulary(self, inputs: dict[str, torch.Tensor]) -> None:
        """Raise ValueError if a token of the prompt has no word embedding. The image's placeholder needs none."""
        placeholder = getattr(self.model_config, "image_token_id", None)
        for name, part in (("input_ids", "text_config"), ("qformer_input_ids", "qformer_config")):
            vocabulary = getattr(getattr(self.model_config, part, None), "vocab_size", None)
            tokens = set(inputs[name].flatten().tolist()) - {placeholder} if name in inputs else set()
            if vocabulary and tokens and max(tokens) >= vocabulary:
                raise ValueError(
                    f"{self.source}: the prompt has the token {max(tokens)}, but {part} has word embeddings for "
                    f"{vocabulary} tokens only; use the tokenizer and the weights of one model"
                )

    def _check_length(self, config: CaptionerConfig) -> None:
        """Raise ValueError if image, prompt and the longest caption exceed the model's number of positions."""
        length, positions = self._prompt(config, config.prompt).length, self.positions
        if positions and length + config.max_new_tokens > positions:
            raise ValueError(
                f"captioner {config.name!r}: max_new_tokens={config.max_new_tokens}: image and prompt take "
                f"{length} of the model's {positions} tokens; use at most {positions - length}"
            )

    def _check_qformer_length(self, prompt: Prompt) -> None:
        """Raise ValueError if a prompt exceeds the positions of InstructBLIP's Q-Former, which reads it, too."""
        part = getattr(self.model_config, "qformer_config", None)
        tokens = prompt.inputs["qformer_input_ids"].shape[1] if "qformer_input_ids" in prompt.inputs else 0
        if part is not None and tokens > part.max_position_embeddings:
            raise ValueError(
                f"the prompt takes {tokens} tokens, but the Q-Former reads {part.max_position_embeddings}; shorten it"
            )


class _Fixed:
    """An image processor that returns the pixels of one image for every image, since only the prompt is wanted."""

    def __init__(self, image_processor: Any, image: Image.Image):
        self._image_processor = image_processor
        self._pixels = image_processor(image, return_tensors="pt")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return copy.copy(self._pixels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)


def _prompt_key(config: CaptionerConfig, prompt: str) -> tuple[str | None, str]:
    """What decides how a prompt is rendered."""
    return config.template, prompt


def _check_room(prompt: Prompt, config: CaptionerConfig, limit: int | None) -> None:
    """Raise ValueError if a prompt leaves no room for its caption."""
    if problem := no_room(config, prompt.length, limit):
        raise ValueError(problem)


def _differing(first: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The inputs in which two images differ beside the values of their pixels."""
    names = {
        name
        for name in first.keys() & other.keys()
        if _shape(first[name]) != _shape(other[name])
        or (name != "pixel_values" and not torch.equal(torch.as_tensor(first[name]), torch.as_tensor(other[name])))
    }
    return names | (first.keys() ^ other.keys())


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for a list of tensors, one per image, which need not have equal shapes."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
