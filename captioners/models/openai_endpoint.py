"""Captions from an endpoint with OpenAI's chat completions: `vllm serve`, SGLang, llama.cpp, a hosted API.

The server decides on architecture, precision and chat template. This module separates an image that cannot be captioned
from an endpoint that cannot be reached: the first is quarantined with its reason, the second must never cost an image.
"""

import asyncio
import base64
import contextlib
import importlib.util
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from lotlip_data.captioners.base import (
    Caption,
    CaptionerConfig,
    CaptionError,
    Engine,
    EngineOptions,
    EngineUnreachable,
    TextRequest,
)
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.prompt_fields import special_texts_of
from lotlip_data.manifests.settings.structured import StructuredOutput

if TYPE_CHECKING:
    import openai

DEFAULT_MAX_REQUESTS = 64
MAX_ATTEMPTS = 3
"""Attempts for one image at an endpoint that fails for it and then works again."""
CLIENT_RETRIES = 2
LOAD_SECONDS = 60.0
"""Time that an endpoint has to start up when a captioner is loaded."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
MAX_ERROR_CHARACTERS = 500
MAX_LISTED_MODELS = 10
SERVER_SETTINGS = {
    "dtype": "auto",
    "quantization": None,
    "kv_cache_dtype": "auto",
    "tensor_parallel_size": 1,
    "max_model_len": None,
    "image_fit": "checkpoint",
}
"""Settings that only the server can change, with the one value that a configuration may have."""


class OpenAIEndpoint(Captioner):
    """Any vision model behind an endpoint. `template` is the user's turn: text, image and text in that order.

    Of the configuration, `model` is the name under which the endpoint serves the model, and `revision` is the user's
    own label for it. The revision is part of the captioner's id; nothing checks it.
    """

    template = "<image>{prompt}"
    needs_gpu = False
    uses_torch = False
    loads_model = False
    engines = ("endpoint",)

    def check_options(self, config: CaptionerConfig, engine: str, options: EngineOptions) -> None:
        where = f"captioner {config.name!r}"
        if engine not in ("auto", "endpoint"):
            raise ValueError(f"{where}: engine={engine!r}: use auto or endpoint for captioner kind {config.kind!r}")
        for field, default in SERVER_SETTINGS.items():
            if (value := getattr(config, field)) != default:
                raise ValueError(f"{where}: {field}={value!r}: the server decides this; leave it out")
        if options.endpoint is None:
            raise ValueError(f"{where}: endpoint is missing: give its URL, such as http://host:8000/v1")
        if not importlib.util.find_spec("openai"):
            raise ValueError(f"{where}: the openai package is not installed; pip install 'lotlip-data[openai]'")
        if options.api_key_env and not os.environ.get(options.api_key_env):
            raise ValueError(
                f"{where}: api_key_env={options.api_key_env!r}: that environment variable is not set where the "
                "engine runs; on a cluster, set it on the nodes that hold the captioner's actors"
            )

    def load(self, config: CaptionerConfig, engine: str, options: EngineOptions) -> Engine:
        self.check_options(config, engine, options)
        key = os.environ[options.api_key_env] if options.api_key_env else None
        return EndpointEngine(config, options, config.template or self.template, key)


class _InvalidReplyError(Exception):
    """A reply with HTTP status 200 that is not a chat completion."""


@dataclass(frozen=True)
class _Turn:
    """The user's turn of one request.

    Attributes:
        url: The image, as a data URL.
        template: Text, image and text, with the prompt in one of the texts.
        prompt: The prompt.
        config: Sampling.
    """

    url: str
    template: str
    prompt: str
    config: CaptionerConfig

    def content(self) -> list[dict[str, Any]]:
        """The parts of the message."""
        before, *after = self.template.replace("{prompt}", self.prompt).split("<image>", 1)
        parts = [_text_part(before), {"type": "image_url", "image_url": {"url": self.url}}, *map(_text_part, after)]
        return [part for part in parts if part.get("text") != ""]


class EndpointEngine:
    """Sends one request per text of an image to one endpoint. All calls of `caption` come from one event loop."""

    def __init__(self, config: CaptionerConfig, options: EngineOptions, template: str, key: str | None):
        import openai

        self.window, self.burst = options.max_num_seqs or DEFAULT_MAX_REQUESTS, 1
        self._errors = (openai.APIError, _InvalidReplyError, ValueError)  # ValueError: the body is not JSON
        self._where = f"captioner {config.name!r}: {options.endpoint}"
        self._key, self._key_name = key, options.api_key_env
        self._outage_seconds = options.outage_seconds
        self._config, self._text, self._template = config, config.texts[0], template
        self._bodies: dict[str, dict[str, Any]] = {}
        self.special_texts = special_texts_of(template=template)
        self._blank = self.prepare(Image.new("RGB", (64, 64), "white"))
        self._last_reply = self._outage_end = 0.0  # times on the monotonic clock
        self._probe_lock = asyncio.Lock()
        settings: dict[str, Any] = {
            "base_url": options.endpoint,
            "api_key": key or "none",
            "timeout": options.request_seconds,
            # The client reads these from the environment; they must not reach an endpoint other than OpenAI's.
            "default_headers": {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()},
        }
        self._check(openai.OpenAI(**settings, max_retries=0))
        self._client: openai.AsyncOpenAI | None = openai.AsyncOpenAI(**settings, max_retries=CLIENT_RETRIES)
        self._loop: asyncio.AbstractEventLoop | None = None

    def prepare(self, image: Image.Image) -> _Turn:
        return self.prepare_texts(image, [TextRequest(self._text, self._text.prompt)])[0]

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[_Turn]:
        url = _data_url(image)
        return [_Turn(url, self._template, request.prompt, request.config) for request in requests]

    async def caption(self, prepared: _Turn) -> Caption:
        self._loop = asyncio.get_running_loop()
        start, attempts, pause = time.monotonic(), 0, FIRST_PAUSE_SECONDS
        while True:
            sent = time.monotonic()
            try:
                return await self._send(prepared)
            except self._errors as error:
                status = _status(error)
                if status == 429:
                    self._check_patience(error, start)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)
                    continue
                # A rejection (4xx) is the image's fault if the endpoint served other images meanwhile. Any other
                # failure is the image's fault only if the endpoint works after it and no outage ended since `sent`.
                rejected = status is not None and status < 500
                attempts += 1
                endpoint_works = await self._has_worked_since(sent if rejected else time.monotonic(), sent)
                if endpoint_works or attempts == MAX_ATTEMPTS:
                    raise CaptionError(f"the endpoint: {self._describe(error)}") from None

    def close(self) -> None:
        client, self._client = self._client, None
        if client and self._loop and self._loop.is_running():
            with contextlib.suppress(RuntimeError):  # the loop has just closed, and its connections with it
                asyncio.run_coroutine_threadsafe(client.close(), self._loop)

    async def _send(self, turn: _Turn, **client_options: Any) -> Caption:
        """Send one request for one text of an image."""
        if self._client is None:
            raise EngineUnreachable(f"{self._where}: the engine was closed")
        client = self._client.with_options(**client_options) if client_options else self._client
        reply = await client.chat.completions.create(**self._request(turn))
        try:
            return _caption(reply)
        finally:
            if getattr(reply, "choices", None):
                self._last_reply = time.monotonic()

    async def _has_worked_since(self, since: float, sent: float) -> bool:
        """Return whether the endpoint has worked since the time `since`, and no outage has ended since `sent`.

        If it does not work, this waits until it does, at most `outage_seconds`. The probe is a blank image, because no
        other reply proves that the endpoint captions images. One task probes; the others wait for its result.

        Raises:
            EngineUnreachable: The endpoint stays down, or rejects the key, the model or all images.
        """
        start = time.monotonic()
        async with self._probe_lock:
            if self._outage_end > sent:
                return False
            if self._last_reply > since:
                return True
            failed, pause = False, FIRST_PAUSE_SECONDS
            while True:
                try:
                    await self._send(self._blank, max_retries=0)
                except CaptionError:  # the endpoint has replied, so it works
                    pass
                except self._errors as error:
                    if (reason := self._permanent_failure(error)) is not None:
                        raise EngineUnreachable(reason) from None
                    self._check_patience(error, start)
                    failed = True
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)
                    continue
                if failed:
                    self._outage_end = time.monotonic()
                return not failed

    def _check_patience(self, error: Exception, start: float) -> None:
        """Raise if waiting since `start` has lasted too long; return if it should go on.

        Raises:
            EngineUnreachable: The endpoint has not replied to any request for `outage_seconds`.
            CaptionError: For as long, the endpoint has replied, but never for this image, which may be larger than
                the endpoint's limits ever allow.
        """
        now = time.monotonic()
        if now - start > self._outage_seconds and self._last_reply > start:
            raise CaptionError(
                f"the endpoint served other images but not this one for {now - start:.0f} s: {self._describe(error)}"
            )
        if (silence := now - max(self._last_reply, start)) > self._outage_seconds:
            raise EngineUnreachable(f"{self._where}: no reply for {silence:.0f} s: {self._describe(error)}")

    def _permanent_failure(self, error: Exception) -> str | None:
        """Return the reason if waiting cannot help, since the key, the model or all images are rejected, else None."""
        status, description = _status(error), self._describe(error)
        if status in (401, 403):
            name = self._key_name
            fix = f"check the key in {name}" if name else "set api_key_env to the environment variable of its key"
            return f"{self._where} denies access; {fix}: {description}"
        if status == 404:
            return f"{self._where} has no model {self._config.model!r}, or is not the base URL (…/v1): {description}"
        rejected = status is not None and status < 500 and status not in (408, 409, 429)
        if isinstance(error, _InvalidReplyError) or rejected:
            return f"{self._where} does not caption a blank image; does its model take images? {description}"
        return None

    def _check(self, client: "openai.OpenAI") -> None:
        """Caption a blank image, so that a wrong key, model or URL is reported before any image is read.

        Waits at most LOAD_SECONDS for an endpoint that is starting up.

        Raises:
            ValueError: The endpoint does not reply, or rejects the key, the model or the image.
        """
        deadline = time.monotonic() + min(LOAD_SECONDS, self._outage_seconds)
        with client:
            while True:
                try:
                    _caption(client.chat.completions.create(**self._request(self._blank)))
                except CaptionError:  # the endpoint has replied, so it works
                    pass
                except self._errors as error:
                    if reason := self._permanent_failure(error):
                        raise ValueError(reason + _served_models(client, error)) from None
                    if time.monotonic() > deadline:
                        raise ValueError(f"{self._where} does not reply: {self._describe(error)}") from None
                    time.sleep(FIRST_PAUSE_SECONDS)
                    continue
                return

    def _request(self, turn: _Turn) -> dict[str, Any]:
        body = self._bodies.get(turn.config.id) or self._bodies.setdefault(turn.config.id, _body(turn.config))
        message = {"role": "user", "content": turn.content()}
        # All fields go through extra_body: the client's own arguments are those of one API, and servers have more.
        return {"model": body["model"], "messages": [message], "extra_body": body}

    def _describe(self, error: Exception) -> str:
        """Return the error in one line, without the key, which some servers repeat."""
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
        message = " ".join(f"{getattr(error, 'message', error)}{cause}".split())
        text = message[:MAX_ERROR_CHARACTERS] or type(error).__name__
        return text.replace(self._key, f"[{self._key_name}]") if self._key else text


def _body(config: CaptionerConfig) -> dict[str, Any]:
    """Return the fields of a request that select the model and the sampling, named as in vLLM and SGLang.

    A setting that OpenAI's API does not have is sent only if it is not at its default.
    """
    sampling = {"top_p": config.top_p, "seed": config.seed} if config.temperature else {}
    further = {"repetition_penalty": (config.repetition_penalty, 1), "min_tokens": (config.min_new_tokens, 0)}
    if config.temperature:
        further |= {"top_k": (config.top_k, 0), "min_p": (config.min_p, 0)}
    sampling |= {name: value for name, (value, default) in further.items() if value != default}
    fields = {"model": config.model, "max_tokens": config.max_new_tokens, "temperature": config.temperature, **sampling}
    fields |= _form(config.structured)
    return {name: value for name, value in (fields | dict(config.request)).items() if value is not None}


def _form(structured: StructuredOutput | None) -> dict[str, Any]:
    """Return the fields of a request that enforce the form of a text.

    OpenAI's API, vLLM, SGLang, llama.cpp and others read a JSON schema in the same field. The other fields are vLLM's.
    """
    if structured is None:
        return {}
    if structured.json_schema is not None:
        schema = {"name": "caption", "schema": dict(structured.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if structured.regex is not None:
        return {"structured_outputs": {"regex": structured.regex}}
    return {"structured_outputs": {"choice": list(structured.choice or ())}}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _data_url(image: Image.Image) -> str:
    """Return the image as a PNG: lossless, so that no encoder setting changes a caption, and read by every server."""
    buffer = io.BytesIO()
    try:
        image.convert("RGB").save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes lazily
        raise CaptionError(f"image cannot be read: {type(error).__name__}: {error}") from error
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _caption(reply: Any) -> Caption:
    """Return the caption of a reply.

    Raises:
        _InvalidReplyError: The reply is not a chat completion.
        CaptionError: The chat completion has no text.
    """
    if not getattr(reply, "choices", None):
        raise _InvalidReplyError(f"not a chat completion: {getattr(reply, 'error', None) or str(reply)!r}")
    try:
        choice, usage = reply.choices[0], reply.usage
        text, refusal = choice.message.content, choice.message.refusal
        tokens = usage.completion_tokens if usage else 0
    except (AttributeError, TypeError) as error:
        raise _InvalidReplyError(f"not a chat completion: {error}") from None
    if refusal or choice.finish_reason not in ("stop", "length"):
        raise CaptionError(f"the endpoint ended with finish_reason={choice.finish_reason!r}: {refusal or text}")
    if text is None:
        raise CaptionError(
            f"the endpoint returned no text (finish_reason={choice.finish_reason!r}); perhaps the model spent all "
            "tokens on reasoning"
        )
    return Caption(text.strip(), choice.finish_reason, tokens)


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error; None if there was no reply."""
    return getattr(error, "status_code", None)


def _served_models(client: "openai.OpenAI", error: Exception) -> str:
    """Return a sentence that lists the endpoint's models if the requested one was not found, else an empty text."""
    import openai

    if _status(error) != 404:
        return ""
    try:
        names = [model.id for model in client.models.list().data][:MAX_LISTED_MODELS]
    except (openai.APIError, ValueError, AttributeError, TypeError):
        return ""
    return f" It serves {', '.join(names)}."
