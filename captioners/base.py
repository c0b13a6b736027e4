"""What a captioner is: its configuration and identity, the captions it gives, and the engine that runs it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from PIL import Image

from lotlip_data.manifests.settings.captioners import CaptionerSettings
from lotlip_data.manifests.settings.captioners import EngineOptions as EngineOptions

FinishReason = Literal["stop", "length"]


class CaptionError(Exception):
    """One image cannot be captioned; the message says why. Other images are not affected."""


class EngineDead(RuntimeError):
    """The engine itself has failed and every later call will fail too: replace it."""


class EngineUnreachable(EngineDead):
    """The engine is another machine's and does not answer; no image is to blame for it."""


@dataclass(frozen=True)
class Caption:
    """One long text. `tokens` counts what the model generated, the end token included."""

    text: str
    finish_reason: FinishReason
    tokens: int


class CaptionerConfig(CaptionerSettings):
    """Model + prompt + sampling: everything that decides which text an image gets."""

    @property
    def id(self) -> str:
        """`name@` and 12 hex digits of the sha256 over every setting that can change the text.

        Several GPUs to one model count, since they add numbers up in another order. Left out are the sampling settings
        that greedy decoding ignores, and, so that ids last, settings that came later while they are at their default.
        """
        settings = self.to_dict()
        greedy = ("top_p", "seed") if self.temperature == 0 else ()
        later = {"tensor_parallel_size": 1, "request": {}}
        for field in ("name", *greedy, *(field for field, default in later.items() if settings[field] == default)):
            del settings[field]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    @classmethod
    def parse(cls, settings: Any, where: str = "") -> Self:
        name = settings.get("name") if isinstance(settings, Mapping) else None
        return super().parse(settings, where or (f"captioner {name!r}" if name else "captioner"))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "CaptionerConfig":
        """The configuration with these settings. Raises UserError for a wrong setting or value."""
        return cls.parse(settings)


class ModelSpec(Protocol):
    """What an engine reads of an architecture. `models.base.Captioner` documents each attribute."""

    template: ClassVar[str]
    model_class: ClassVar[str]
    processor_class: ClassVar[str]

    def check(self, source: str, options: dict[str, Any]) -> None:
        """Raises ValueError, saying what to do, for a checkpoint that is not laid out as this architecture expects."""


class Engine(Protocol):
    """A loaded captioner. One event loop uses it.

    window: calls in flight that keep it busy.
    burst: how many of them are best made together, when so many have come back; 1 where it makes no difference.
    """

    window: int
    burst: int

    def prepare(self, image: Image.Image) -> Any:
        """What `caption` takes of one decoded image of any size and mode: all work on pixels. Any thread may call it.

        Raises CaptionError if this image cannot be captioned.
        """

    async def caption(self, prepared: Any) -> Caption:
        """The long text of one prepared image.

        Raises CaptionError if this image cannot be captioned and EngineDead if no image can any more.
        """

    def close(self) -> None:
        """Frees the model and ends every process and thread of the engine. May be called twice."""
