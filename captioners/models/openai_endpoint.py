"""Captions from any endpoint that speaks OpenAI's chat completions: `vllm serve`, SGLang, llama.cpp, a hosted API.

The model is another process's, so its architecture, precision and chat template are the server's affair. What is ours
is telling an image that cannot be captioned from an endpoint that cannot be reached: the first is quarantined with its
reason, the second must never cost an image.
"""

import asyncio
import base64
import contextlib
import importlib.util
import io
import os
import time
from typing import TYPE_CHECKING, Any

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, Engine, EngineOptions, EngineUnreachable
from lotlip_data.captioners.models.base import Captioner

if TYPE_CHECKING:
    import openai

REQUESTS = 64
TRIES = 3  # of one image at an endpoint that fails on it and then works again
LOAD_SECONDS = 60.0  # that an endpoint may take to come up when a captioner is loaded
LONGEST_PAUSE = 30.0
SERVERS = {"dtype": "auto", "quantization": None, "tensor_parallel_size": 1, "max_model_len": None}


class OpenAIEndpoint(Captioner):
    """Any vision model behind an endpoint. `template` is the user's turn: text, image and text in that order.

    model: the name that the endpoint serves it under. revision: a label of your own for what is served there; it is in
    the captioner's id, and nothing checks it.
    """

    template = "<image>{prompt}"
    needs_gpu = False
    engines = ("endpoint",)

    def load(self, config: CaptionerConfig, engine: str, resources: EngineOptions) -> Engine:
        where = f"captioner {config.name!r}"
        if engine not in ("auto", "endpoint"):
            raise ValueError(f"{where}: engine={engine!r}: use auto or endpoint for captioner kind {config.kind!r}")
        for field, default in SERVERS.items():
            if (value := getattr(config, field)) != default:
                raise ValueError(f"{where}: {field}={value!r}: that is for the server to decide; leave it out")
        if resources.endpoint is None:
            raise ValueError(f"{where}: endpoint is missing: give its URL, such as http://host:8000/v1")
        if not importlib.util.find_spec("openai"):
            raise ValueError(f"{where}: the openai package is not installed; pip install 'lotlip-data[openai]'")
        key = os.environ.get(resources.api_key_env) if resources.api_key_env else None
        if resources.api_key_env and not key:
            raise ValueError(
                f"{where}: api_key_env={resources.api_key_env!r}: that environment variable is not set where the "
                "engine runs; on a cluster, set it on the nodes that hold the captioner's actors"
            )
        return EndpointEngine(config, resources, config.template or self.template, key)


class _NoCaption(Exception):
    """An answer that is no caption, though its HTTP status was 200."""


class EndpointEngine:
    """Requests to one endpoint; `window` of them keep it busy. Used from one event loop."""

    def __init__(self, config: CaptionerConfig, resources: EngineOptions, template: str, key: str | None):
        import openai

        self.window, self.burst = resources.max_num_seqs or REQUESTS, 1
        self._errors = (openai.APIError, _NoCaption, ValueError)  # ValueError: JSON that is none
        self._where = f"captioner {config.name!r}: {resources.endpoint}"
        self._key, self._key_name = key, resources.api_key_env
        self._outage_seconds = resources.outage_seconds
        self._body = _body(config)
        self._turn = template.replace("{prompt}", config.prompt).split("<image>", 1)
        self._blank = _data_url(Image.new("RGB", (64, 64), "white"))
        self._answered = self._back = 0.0  # when the endpoint last answered, and when its last outage was over
        self._asking = asyncio.Lock()
        settings: dict[str, Any] = {
            "base_url": resources.endpoint,
            "api_key": key or "none",
            "timeout": resources.request_seconds,
            # Which the client takes from the environment: no business of another endpoint.
            "default_headers": {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()},
        }
        self._check(openai.OpenAI(**settings, max_retries=0))
        self._client: openai.AsyncOpenAI | None = openai.AsyncOpenAI(**settings, max_retries=2)
        self._loop: asyncio.AbstractEventLoop | None = None

    def prepare(self, image: Image.Image) -> str:
        return _data_url(image)

    async def caption(self, prepared: str) -> Caption:
        self._loop = asyncio.get_running_loop()
        began, tries, pause = time.monotonic(), 0, 1.0
        while True:
            sent = time.monotonic()
            try:
                return await self._ask(prepared)
            except self._errors as error:
                status = _status(error)
                if status == 429:
                    self._bear(error, began)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                # A refusal (4xx) is the image's fault if the endpoint served others meanwhile. A failure counts only
                # if the endpoint works after it, and there was no outage since it was sent.
                refused = status is not None and status < 500
                tries += 1
                if await self._works_since(sent if refused else time.monotonic(), sent) or tries == TRIES:
                    raise CaptionError(f"the endpoint: {self._tell(error)}") from None

    def close(self) -> None:
        client, self._client = self._client, None
        if client and self._loop and self._loop.is_running():
            with contextlib.suppress(RuntimeError):  # the loop ended just now, and its connections with it
                asyncio.run_coroutine_threadsafe(client.close(), self._loop)

    async def _ask(self, url: str, **options: Any) -> Caption:
        """One request for one image, given as a data URL. options: of the client."""
        if self._client is None:
            raise EngineUnreachable(f"{self._where}: the engine was closed")
        client = self._client.with_options(**options) if options else self._client
        reply = await client.chat.completions.create(**self._request(url))
        try:
            return _caption(reply)
        finally:
            if getattr(reply, "choices", None):
                self._answered = time.monotonic()

    async def _works_since(self, since: float, sent: float) -> bool:
        """Whether the endpoint has worked from `since` on, and no outage has ended since `sent`.

        If it does not work, waits until it does, at most `outage_seconds`.
        Asked about a blank image, since another answer than that proves little. Only one task asks; the others hear.
        """
        began = time.monotonic()
        async with self._asking:
            if self._back > sent:
                return False
            if self._answered > since:
                return True
            failed, pause = False, 1.0
            while True:
                try:
                    await self._ask(self._blank, max_retries=0)
                except CaptionError:  # an answer all the same
                    pass
                except self._errors as error:
                    self._refuse(error)
                    self._bear(error, began)
                    failed = True
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                if failed:
                    self._back = time.monotonic()
                return not failed

    def _bear(self, error: Exception, began: float) -> None:
        """Returns if it is worth waiting on. began: when the waiting did.

        Raises EngineUnreachable after `outage_seconds` without any answer, and CaptionError if in so long there were
        answers, but none for this image: it may be larger than the endpoint's limits ever allow.
        """
        now = time.monotonic()
        if now - began > self._outage_seconds and self._answered > began:
            raise CaptionError(f"the endpoint took others but not this for {now - began:.0f} s: {self._tell(error)}")
        if (silent := now - max(self._answered, began)) > self._outage_seconds:
            raise EngineUnreachable(f"{self._where}: no answer for {silent:.0f} s: {self._tell(error)}")

    def _refuse(self, error: Exception) -> None:
        """Raises EngineUnreachable for what waiting does not mend: the key or the model is refused."""
        if (reason := self._refusal(error)) is not None:
            raise EngineUnreachable(reason)

    def _refusal(self, error: Exception) -> str | None:
        status, told = _status(error), self._tell(error)
        if status in (401, 403):
            name = self._key_name
            fix = f"check the key in {name}" if name else "name the environment variable of its key as api_key_env"
            return f"{self._where} does not let us in; {fix}: {told}"
        if status == 404:
            return f"{self._where} has no model {self._body['model']!r}, or is not the base URL (…/v1): {told}"
        if isinstance(error, _NoCaption) or (status is not None and status < 500 and status not in (408, 409, 429)):
            return f"{self._where} does not caption a blank image; does its model take images? {told}"
        return None

    def _check(self, client: "openai.OpenAI") -> None:
        """Has a blank image captioned, so that what is wrong with key, model or URL is told before any image is read.

        Waits LOAD_SECONDS at most for an endpoint that is just coming up. Raises ValueError.
        """
        until = time.monotonic() + min(LOAD_SECONDS, self._outage_seconds)
        with client:
            while True:
                try:
                    _caption(client.chat.completions.create(**self._request(self._blank)))
                except CaptionError:  # an answer all the same
                    pass
                except self._errors as error:
                    if reason := self._refusal(error):
                        raise ValueError(reason + _served(client, error)) from None
                    if time.monotonic() > until:
                        raise ValueError(f"{self._where} does not answer: {self._tell(error)}") from None
                    time.sleep(1.0)
                    continue
                return

    def _request(self, url: str) -> dict[str, Any]:
        before, *after = self._turn
        parts = [_text(before), {"type": "image_url", "image_url": {"url": url}}, *map(_text, after)]
        content = [part for part in parts if part.get("text") != ""]
        message = {"role": "user", "content": content}
        # By extra_body, since the client's own arguments are those of one API and the servers' are of many.
        return {"model": self._body["model"], "messages": [message], "extra_body": self._body}

    def _tell(self, error: Exception) -> str:
        """The error in a line, without the key, which some servers repeat."""
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
        text = " ".join(f"{getattr(error, 'message', error)}{cause}".split())[:500] or type(error).__name__
        return text.replace(self._key, f"[{self._key_name}]") if self._key else text


def _body(config: CaptionerConfig) -> dict[str, Any]:
    """The fields of a request that say what is generated, and how."""
    sampling = {"top_p": config.top_p, "seed": config.seed} if config.temperature else {}
    ours = {"model": config.model, "max_tokens": config.max_new_tokens, "temperature": config.temperature, **sampling}
    return {name: value for name, value in (ours | dict(config.request)).items() if value is not None}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _data_url(image: Image.Image) -> str:
    """A PNG: without loss, so that no setting of ours can change a text, and read by every server."""
    buffer = io.BytesIO()
    try:
        image.convert("RGB").save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:  # PIL decodes lazily
        raise CaptionError(f"image cannot be read: {type(error).__name__}: {error}") from error
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _caption(reply: Any) -> Caption:
    """Raises _NoCaption for what is no chat completion, and CaptionError for one without a text."""
    if not getattr(reply, "choices", None):
        raise _NoCaption(f"not a chat completion: {getattr(reply, 'error', None) or str(reply)!r}")
    try:
        choice, usage = reply.choices[0], reply.usage
        text, refusal = choice.message.content, choice.message.refusal
        tokens = usage.completion_tokens if usage else 0
    except (AttributeError, TypeError) as error:
        raise _NoCaption(f"not a chat completion: {error}") from None
    if refusal or choice.finish_reason not in ("stop", "length"):
        raise CaptionError(f"the endpoint ended with finish_reason={choice.finish_reason!r}: {refusal or text}")
    if text is None:
        raise CaptionError(f"the endpoint gave no text (finish_reason={choice.finish_reason!r}); did it only think?")
    return Caption(text.strip(), choice.finish_reason, tokens)


def _status(error: Exception) -> int | None:
    return getattr(error, "status_code", None)


def _served(client: "openai.OpenAI", error: Exception) -> str:
    """What the endpoint does serve, where that may be the mistake."""
    import openai

    if _status(error) != 404:
        return ""
    try:
        names = [model.id for model in client.models.list().data][:10]
    except (openai.APIError, ValueError, AttributeError, TypeError):
        return ""
    return f" It serves {', '.join(names)}."
