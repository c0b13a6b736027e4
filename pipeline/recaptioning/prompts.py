"""The prompt of each image: the captioner's, with the columns of the image's sample in place of its fields.

What is filled in is recorded with the caption as a hash, so that a raw text that changes later is noticed.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, TextRequest
from lotlip_data.captioners.prompt_fields import FieldValue, clean, fill
from lotlip_data.captioners.quality_flags import WITHOUT_RAW_TEXT
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.prompt_syntax import FIELDS, RAW_FIELDS, fields_of, possible_prompts, uses_braces

Meta = Mapping[str, Any]
"""The json member of a downloaded image: a row of `schema.IMAGES`."""

_NUMBERS = ("width", "height", "original_width", "original_height")


class PromptsNotSupported(UserError):
    """The engine takes one prompt for all images, and the captioner has another one for each."""


@dataclass(frozen=True)
class SampleRequest(TextRequest):
    """The text that one image is to get.

    Attributes:
        fields_sha256: From `fields_digest`.
        flags: Flags of the caption that follow from the sample.
    """

    fields_sha256: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def as_read(self) -> CaptionerConfig:
        """The configuration with the prompt that the model reads."""
        is_same = self.prompt == self.config.prompt
        return self.config if is_same else self.config.model_copy(update={"prompt": self.prompt})


class PromptFiller:
    """Fills the prompts of one captioner. Any thread may call its methods."""

    def __init__(self, texts: Iterable[CaptionerConfig], engine: Engine) -> None:
        """Args:
        texts: The captioner's texts.
        engine: The loaded engine.

        Raises:
            PromptsNotSupported: A prompt has fields, and the engine is no MultiTextEngine.
        """
        self._special_texts: frozenset[str] = getattr(engine, "special_texts", frozenset())
        for config in texts:
            if uses_braces(*config.instructions) and not hasattr(engine, "prepare_texts"):
                raise PromptsNotSupported(
                    f"captioner {config.name!r}: its prompt has fields in braces, but the engine of kind "
                    f"{config.kind!r} takes one prompt for all images. Remove them from the prompt, or use another "
                    "kind. An engine takes a prompt for each image if it has the method `prepare_texts` (see "
                    "`MultiTextEngine`)."
                )

    def request(self, config: CaptionerConfig, meta: Meta) -> SampleRequest:
        """The request for one of the captioner's texts on one image."""
        if not uses_braces(*config.instructions):
            return SampleRequest(config, config.prompt)
        values = field_values(meta)
        lacks_raw = not clean(values["raw"], config.max_field_characters)
        uses_raw = not RAW_FIELDS.isdisjoint(fields_of(*config.instructions))

        def filled(prompt: str) -> str:
            return fill(prompt, values, self._special_texts, config.max_field_characters)

        return SampleRequest(
            config,
            filled(config.prompts_of_images[-1 if lacks_raw else 0]),
            filled(config.system) if config.system else None,
            fields_digest(fields_of(*config.instructions), meta),
            (WITHOUT_RAW_TEXT,) if lacks_raw and uses_raw else (),
        )

    def sample_request(self, config: CaptionerConfig) -> SampleRequest:
        """A request for an image whose texts have the largest length, of plain words."""
        words = "word " * config.max_field_characters
        numbers = dict.fromkeys(_NUMBERS, 10_000)
        return self.request(config, {"texts": [words], "sources": [words], "url": words, **numbers})


def recorded_fields(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the fields in the prompts of a captioner whose recorded settings these are."""
    prompts = possible_prompts(settings.get("prompt", ""), settings.get("prompt_without_raw"))
    return fields_of(*prompts, settings.get("system"))


def fields_digest(names: Sequence[str], meta: Meta) -> str | None:
    """The sha256 of these columns of a sample, before they are cleaned: of a JSON object in alphabetical order.

    None if there is no name.
    """
    if not names:
        return None
    values = field_values(meta)
    content = json.dumps({name: values[name] for name in sorted(names)}, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def field_values(meta: Meta) -> dict[str, FieldValue]:
    """The values of all `FIELDS` for one image. `raw` is the first text that is not blank, whatever the filters say."""
    texts = [text or "" for text in meta.get("texts") or ()]
    sources = list(meta.get("sources") or ())
    first = next((place for place, text in enumerate(texts) if text.strip()), 0)
    values: dict[str, FieldValue] = {
        "raw": texts[first] if texts else None,
        "raws": texts,
        "source": sources[first] if first < len(sources) else None,
        "sources": sources,
        "url": meta.get("url"),
        **{name: meta.get(name) for name in _NUMBERS},
    }
    assert values.keys() == FIELDS.keys()
    return values
