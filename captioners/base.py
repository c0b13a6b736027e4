"""The interface of captioners: configuration and identity, captions, engines and their errors.

A package that adds a captioner imports from here and from `models.base`. This module imports no model library, so that
a driver process reads configurations without loading torch.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image

FinishReason = Literal["stop", "length"]
DTYPES = ("auto", "float32", "bfloat16", "float16")


class CaptionError(Exception):
    """One image cannot be captioned; the message states the reason. Other images are not affected."""


class EngineDead(RuntimeError):
    """The engine has failed and every later call will fail too. The caller must replace it."""


class EngineUnreachable(EngineDead):
    """A remote engine does not answer. No image caused this failure."""


@dataclass(frozen=True)
class Caption:
    """One long text.

    Attributes:
        text: Generated text without special tokens and surrounding white space.
        finish_reason: `stop` if the model wrote its end token, `length` if it reached a token limit.
        tokens: Number of generated tokens, including the end token; 0 if an endpoint does not report it.
    """

    text: str
    finish_reason: FinishReason
    tokens: int


@dataclass(frozen=True)
class CaptionerConfig:
    """Model + prompt + sampling: everything that decides which text an image gets.

    name: of the folder that its captions go to.
    kind: registry key of the code that knows this architecture (`llava`, `sharegpt4v`, `instructblip`, …).
    model: hub id, local folder, or the short name of a checkpoint that comes with the project (`tiny-llava`).
    template: where the prompt stands, as `{prompt}`, and the image, as `<image>`; None takes the kind's own.
    dtype: `auto` is float32 without a GPU and the checkpoint's own with one.
    temperature: 0 is greedy decoding, the default; `top_p` and `seed` count only above 0.
    quantization: as vLLM names it (`awq`, `gptq`, `fp8`, …); the checkpoint must fit.
    tensor_parallel_size: GPUs that one copy of the model is spread over.
    max_model_len: tokens of image, prompt and caption together; None takes exactly what they need.
    request: of kind `openai` only: further fields of each request, such as `{"repetition_penalty": 1.1}`; a field that
        is null is left out.
    """

    name: str
    kind: str
    model: str
    revision: str | None = None
    prompt: str = "Describe the image in detail."
    template: str | None = None
    max_new_tokens: int = 256
    dtype: str = "auto"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    quantization: str | None = None
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, fix: str) -> None:
            if not holds:
                raise ValueError(f"captioner {self.name!r}: {field}={getattr(self, field)!r}: {fix}")

        require(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name) is not None, "name", "use a-z, 0-9, _ and - only")
        require(bool(self.kind), "kind", "name the architecture, such as llava")
        require(bool(self.model), "model", "give a hub id or a local folder")
        require(bool(self.prompt.strip()), "prompt", "say what to describe")
        require(self.template is None or "{prompt}" in self.template, "template", "must contain {prompt}")
        require(self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
        require(self.dtype in DTYPES, "dtype", f"use one of {', '.join(DTYPES)}")
        require(self.temperature >= 0, "temperature", "must be 0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        require(self.tensor_parallel_size >= 1, "tensor_parallel_size", "must be at least 1")
        require(
            self.max_model_len is None or self.max_model_len > self.max_new_tokens,
            "max_model_len",
            f"must exceed max_new_tokens ({self.max_new_tokens}); leave it out to get what is needed",
        )

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
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "CaptionerConfig":
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"captioner: unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
        if missing := [name for name in ("name", "kind", "model") if name not in settings]:
            raise ValueError(f"captioner: {', '.join(missing)} must be given")
        return cls(**settings)


@dataclass(frozen=True)
class EngineOptions:
    """What an engine may use. None of it is meant to change a text, so none of it is in a captioner's id.

    batch_size: images that transformers takes at a time (the vision half of InstructBLIP, too, in vLLM).
    max_num_seqs: captions that vLLM writes at a time; None takes 128 on a GPU and 64 without one.
    gpu_memory_utilization: vLLM's share of the GPU's memory.
    kv_cache_gib: memory of the attention cache; None is what is left of that share, 0.25 GiB without a GPU.
    cache_dir: where a language model that must be taken out of its checkpoint is kept.
    engine_args: further arguments of vLLM's AsyncEngineArgs, which win over ours.

    The others are of kind `openai`, where `max_num_seqs` is how many requests are under way (64 if None):
    endpoint: base URL, such as `http://host:8000/v1`.
    api_key_env: name of the environment variable that holds the key, where the engine runs; None sends no key.
    request_seconds: that one request may take; it is sent three times at most before anything is made of it.
    outage_seconds: that the endpoint may go without any answer, or be too busy for one, before the engine gives up.
    """

    batch_size: int = 16
    max_num_seqs: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: float | None = None
    cache_dir: str = "~/.cache/lotlip-data"
    engine_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    endpoint: str | None = None
    api_key_env: str | None = None
    request_seconds: float = 120.0
    outage_seconds: float = 300.0

    def __post_init__(self) -> None:
        lows = {"batch_size": 1, "max_num_seqs": 1} | dict.fromkeys(
            ("gpu_memory_utilization", "kv_cache_gib", "request_seconds", "outage_seconds"), 0
        )
        for field, low in lows.items():
            value = getattr(self, field)
            if value is not None and (value < low or value == 0):
                raise ValueError(f"{field}={value!r}: must be {'at least 1' if low else 'above 0'}")
        if self.gpu_memory_utilization > 1:
            raise ValueError(f"gpu_memory_utilization={self.gpu_memory_utilization!r}: a share, so at most 1")
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", self.endpoint):
            raise ValueError("endpoint: give a URL such as http://host:8000/v1, without a user or password in it")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env: give the name of an environment variable, such as MY_API_KEY, not the key")


class ModelSpec(Protocol):
    """The part of `models.base.Captioner` that an engine reads; that class documents each attribute."""

    template: ClassVar[str]
    model_class: ClassVar[str]
    processor_class: ClassVar[str]

    def check(self, source: str, load_options: dict[str, Any]) -> None:
        """Raise ValueError with the fix if the checkpoint `source` does not have the layout of this architecture."""


class Engine(Protocol):
    """A loaded captioner. All calls of `caption` come from one event loop.

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
