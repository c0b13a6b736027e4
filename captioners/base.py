"""The interface of captioners: configuration and identity, captions, engines and their errors.

A package that adds a captioner imports from here and from `models.base`. This module imports no model library, so that
a driver process reads configurations without loading torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, cast

from PIL import Image
from pydantic import model_validator

from lotlip_data.manifests import wording
from lotlip_data.manifests.settings.captioners import CaptionerSettings, TextEntry, text_name
from lotlip_data.manifests.settings.captioners import EngineOptions as EngineOptions
from lotlip_data.manifests.settings.prompt_syntax import uses_braces

FinishReason = Literal["stop", "length"]


class CaptionError(Exception):
    """One image cannot be captioned; the message states the reason. Other images are not affected."""


class EngineDead(RuntimeError):
    """The engine has failed and every later call will fail too. The caller must replace it."""


class BlankImageFailed(EngineDead):
    """The engine has failed on an image, and then on a blank one, with errors that are not the device's."""


class EngineUnreachable(EngineDead):
    """A remote engine does not answer. No image caused this failure."""


@dataclass(frozen=True)
class Caption:
    """One long text.

    Attributes:
        text: Generated text without special tokens and surrounding white space.
        finish_reason: `stop` if the model wrote its end token, `length` if it reached a token limit.
        tokens: Number of generated tokens, including the end token; 0 if an endpoint does not report it.
        stripped: Whether something that the model wrote was removed from the text.
    """

    text: str
    finish_reason: FinishReason
    tokens: int
    stripped: bool = False


class CaptionerConfig(CaptionerSettings):
    """Model + prompt + sampling: everything that decides which text an image gets."""

    @property
    def id(self) -> str:
        """`name@` and 12 hex digits of the sha256 over every setting that can change the text.

        Several GPUs to one model count, since they add numbers up in another order. Left out are the sampling settings
        that greedy decoding ignores, those of fields that the prompt does not have, and, so that ids last, settings
        that came later while they are at their default.
        """
        settings = self.to_dict()
        greedy = ("top_p", "seed", "top_k", "min_p") if self.temperature == 0 else ()
        later = {
            "tensor_parallel_size": 1,
            "request": {},
            "repetition_penalty": 1,
            "top_k": 0,
            "min_p": 0,
            "min_new_tokens": 0,
            "image_fit": "checkpoint",
            "system": None,
            "chat_template_kwargs": {},
            "min_pixels": None,
            "max_pixels": None,
            "size": {},
            "stop": [],
            "trust_remote_code": False,
            "lora": None,
            "lora_revision": None,
            "strip": None,
            "kv_cache_dtype": "auto",
            "prompts": {},
            "prompt_without_raw": None,
            "structured": None,
        }
        if not uses_braces(*self.instructions):
            later["max_field_characters"] = self.max_field_characters
        if len(self.prompts_of_images) == 1:
            later["prompt_without_raw"] = self.prompt_without_raw
        if self.structured is not None:
            settings["structured"] = self.structured.decisive
        for field in {"name", *greedy, *(field for field, default in later.items() if settings[field] == default)}:
            del settings[field]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"

    @property
    def texts(self) -> tuple[Self, ...]:
        """The configuration of each text that an image gets. Engines read prompts and sampling settings from these.

        It is the captioner itself, or with `prompts` one captioner for each, whose id covers no other prompt.
        """
        return tuple(self._text(key, entry) for key, entry in self.prompts.items()) or (self,)

    def _text(self, key: str, entry: TextEntry) -> Self:
        shared = {name: value for name, value in self.explicit.items() if name != "prompts"}
        return self.parse(shared | entry.explicit | {"name": text_name(self.name, key)}, f"`prompts.{key}`")

    @model_validator(mode="after")
    def _has_valid_texts(self) -> Self:
        for key, entry in self.prompts.items():
            self._text(key, entry)
        return self

    def to_dict(self) -> dict[str, Any]:
        """All settings, with those at their default; of `prompt` and `prompts`, the one that has an effect."""
        settings = self.model_dump(mode="json")  # as it is recorded: with lists, not tuples
        if self.prompts:
            del settings["prompt"]
        return settings

    @classmethod
    def parse(cls, settings: Any, where: str = "") -> Self:
        name = settings.get("name") if isinstance(settings, Mapping) else None
        return super().parse(settings, where or (f"captioner {name!r}" if name else "captioner"))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "CaptionerConfig":
        """The configuration with these settings. Raises UserError for a wrong setting or value."""
        return cls.parse(settings)


@dataclass(frozen=True)
class Capacity:
    """What an engine has become with its settings on its machine.

    Attributes:
        dtype: Precision of the weights, such as `bfloat16`.
        device: Name of the GPU, or `the CPU`.
        sequences: Largest number of captions that it generates at a time.
        cache_tokens: Number of tokens that the KV cache holds; None if it has no fixed size.
        quantization: Quantization of the language model, as vLLM names it.
        cache_dtype: Precision of the KV cache; None if it is that of the weights.
        batch_size: Number of images that an image half outside vLLM takes at a time; None if there is none.
    """

    dtype: str
    device: str
    sequences: int
    cache_tokens: int | None = None
    quantization: str | None = None
    cache_dtype: str | None = None
    batch_size: int | None = None

    def __str__(self) -> str:
        precision = f"{self.dtype} with {self.quantization} weights" if self.quantization else self.dtype
        kind = f"{self.cache_dtype} KV cache" if self.cache_dtype else "KV cache"
        cache = "" if self.cache_tokens is None else f", {kind} of {self.cache_tokens:,} tokens"
        batch = f", {wording.count(self.batch_size, 'image')} per batch of the image half" if self.batch_size else ""
        at_a_time = f"up to {wording.count(self.sequences, 'caption')} at a time"
        return f"{precision} on {self.device}{cache}, {at_a_time}{batch}"


class ModelSpec(Protocol):
    """The part of `models.base.Captioner` that an engine reads; that class documents each attribute."""

    template: ClassVar[str]
    model_class: ClassVar[str]
    processor_class: ClassVar[str]
    uses_chat_template: ClassVar[bool]

    def check(self, source: str, load_options: dict[str, Any]) -> None:
        """Raise ValueError with the fix if the checkpoint `source` does not have the layout of this architecture."""


class Engine(Protocol):
    """A loaded captioner. All calls of `caption` come from one event loop.

    An engine may have an attribute `capacity`, a `Capacity`, which is shown and recorded when it has started.

    Attributes:
        window: Number of `caption` calls in flight that keep the engine busy.
        burst: Number of calls that the caller should issue together once the window has that many free places; 1 if
            the engine gains nothing from that.
    """

    window: int
    burst: int

    def prepare(self, image: Image.Image) -> Any:
        """Preprocess one decoded image of any size and mode. Any thread may call this.

        Returns:
            The input of `caption`.

        Raises:
            CaptionError: This image cannot be captioned.
        """

    async def caption(self, prepared: Any) -> Caption:
        """Generate the long text of one image that `prepare` returned.

        Raises:
            CaptionError: This image cannot be captioned.
            EngineDead: The engine has failed and cannot caption any further image.
        """

    def close(self) -> None:
        """Free the model and end every process and thread of the engine. A second call does nothing."""


@dataclass(frozen=True)
class TextRequest:
    """One text that an image is to get.

    Attributes:
        config: One of the captioner's `texts`: prompt, sampling and output settings.
        prompt: Its prompt, with the columns of the sample in place of its fields.
        system: Its system prompt likewise. None: that of the configuration, which has no fields.
    """

    config: CaptionerConfig
    prompt: str
    system: str | None = None


class MultiTextEngine(Engine, Protocol):
    """An engine that makes several texts of an image from one preprocessing, with prompts that differ by image.

    Attributes:
        special_texts: Texts that mean something else to the model than what they say, such as special tokens and the
            role names of its template. No field of a sample may bring one into a prompt.
    """

    special_texts: frozenset[str]

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[Any]:
        """Preprocess one decoded image once, for several texts. Any thread may call this.

        Returns:
            The input of `caption` for each request, in order; a CaptionError in place of a text that cannot be made,
            such as one whose prompt is too long.

        Raises:
            CaptionError: This image cannot be captioned.
        """


def prepare_texts(
    engine: Engine, config: CaptionerConfig, image: Image.Image, requests: Sequence[TextRequest]
) -> list[Any]:
    """The engine's inputs for some texts of an image. Any thread may call this.

    A captioner with one prompt that is the same for all images needs no more than `Engine.prepare`.

    Args:
        engine: The engine.
        config: The captioner that it was loaded as.
        image: A decoded image.
        requests: The texts that the image is to get.

    Raises:
        CaptionError: This image cannot be captioned.
    """
    if not config.prompts and [request.prompt for request in requests] == [config.prompt]:
        return [engine.prepare(image)]
    return cast(MultiTextEngine, engine).prepare_texts(image, requests)
