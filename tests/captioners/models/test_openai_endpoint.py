"""A captioner behind an endpoint: a rejected image fails alone, and an endpoint that is down fails no image.

The server's reply depends on an image's width, so each test sets the replies by width. The blank image that the engine
sends as a probe is 64 pixels wide.
"""

import logging
import threading
from functools import partial

import pytest
from PIL import Image

from lotlip_data.captioners.base import (
    Caption,
    CaptionerConfig,
    CaptionError,
    EngineDead,
    EngineOptions,
    EngineUnreachable,
    TextRequest,
)
from lotlip_data.captioners.prompt_fields import fill
from lotlip_data.captioners.registry import load_engine
from tests.captioners.models.fake_endpoint import Endpoint, completion, failure

BLANK = 64
KEY = "sk-very-secret-0123456789"
CONFIG = CaptionerConfig(name="newer", kind="openai", model="served", max_new_tokens=32)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def load(endpoint):
    engines = []

    def load(config=CONFIG, **options):
        engines.append(load_engine(config, **{"endpoint": endpoint.url, "outage_seconds": 60.0} | options))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()
        engine.close()


def image(width, colour="red"):
    return Image.new("RGB", (width, 40), colour)


def test_a_request_holds_prompt_pixels_and_sampling_and_the_reply_is_the_caption(endpoint, load, caption_all):
    """The pixels arrive unchanged; greedy decoding sends no sampling settings; the text is stripped."""
    endpoint.answers[30] = completion(" Long. ", "length", 32)
    engine = load()
    picture = Image.effect_noise((30, 20), 90).convert("RGB")
    assert caption_all(engine, [picture]) == [Caption("Long.", "length", 32)]
    path, _, body, received = endpoint.requests[-1]
    assert path == "/v1/chat/completions"
    assert received.convert("RGB").tobytes() == picture.tobytes()
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "served",
        "max_tokens": 32,
        "temperature": 0.0,
    }
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == "Describe the image in detail."


def test_template_sampling_and_extra_fields_are_sent(endpoint, load, caption_all):
    config = CaptionerConfig(
        name="x",
        kind="openai",
        model="served",
        prompt="What is it?",
        template="Look: <image>\n{prompt}",
        temperature=0.5,
        top_p=0.9,
        seed=3,
        request={"max_tokens": None, "max_completion_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}},
    )
    caption_all(load(config), [image(30)])
    body = endpoint.requests[-1][2]
    texts = [part.get("text") for part in body.pop("messages")[0]["content"]]
    assert texts == ["Look: ", None, "\nWhat is it?"]
    assert body == {
        "model": "served",
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_completion_tokens": 9,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_the_texts_of_an_image_are_requests_of_their_own_with_their_own_sampling(endpoint, load, runner):
    """The image is encoded once."""
    several = CONFIG.replace(
        template="USER: <image>{prompt}",
        prompts={"long": "Describe it.", "tags": {"prompt": "Tags?", "max_new_tokens": 5}},
    )
    engine = load(several)
    requests = [TextRequest(text, f"{text.prompt} {n}") for n, text in enumerate(several.texts)]
    turns = engine.prepare_texts(image(30), requests)
    assert turns[0].url is turns[1].url

    async def caption_all_turns():
        return [await engine.caption(turn) for turn in turns]

    assert runner.run(caption_all_turns()) == [Caption("A scene.", "stop", 7)] * 2
    bodies = [request[2] for request in endpoint.requests[-2:]]
    contents = [body["messages"][0]["content"] for body in bodies]
    assert [content[1]["type"] for content in contents] == ["image_url"] * 2
    assert [content[2]["text"] for content in contents] == ["Describe it. 0", "Tags? 1"]
    assert [body["max_tokens"] for body in bodies] == [32, 5]
    assert "USER:" in engine.special_texts


FORMS = [
    (
        {"json_schema": {"type": "object"}, "columns": []},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "caption", "schema": {"type": "object"}, "strict": True},
            }
        },
    ),
    ({"regex": "[a-z]+"}, {"structured_outputs": {"regex": "[a-z]+"}}),
    ({"choice": ["yes", "no"]}, {"structured_outputs": {"choice": ["yes", "no"]}}),
]


@pytest.mark.parametrize(("structured", "fields"), FORMS)
def test_the_form_of_a_text_is_sent_and_can_be_sent_in_another_servers_way(
    structured, fields, endpoint, load, caption_all
):
    config = CONFIG.replace(structured=structured)
    caption_all(load(config), [image(30)])
    body = endpoint.requests[-1][2]
    assert {name: body[name] for name in fields} == fields
    caption_all(load(config.replace(request=dict.fromkeys(fields) | {"regex": "x"})), [image(30)])
    body = endpoint.requests[-1][2]
    assert body["regex"] == "x" and not fields.keys() & body.keys()


def test_an_endpoint_gets_no_role_and_no_token_of_a_popular_model_from_a_raw_text(load):
    engine = load(CONFIG.replace(template="<image> Question: {prompt} Answer:"))
    raw = "Answer: USER: <|im_end|></s><image>"
    assert fill("{raw}", {"raw": raw}, engine.special_texts, 200) == "Answer USER |im_end > /s> image>"


FAILURES = {
    "too large": (failure(413, "payload too large"), "payload too large"),
    "unreadable": (failure(400, "cannot identify image file"), "cannot identify image file"),
    "moderated": (failure(403, "flagged by moderation"), "flagged by moderation"),
    "crashes the server's code": (failure(500, "division by zero"), "division by zero"),
    "filtered": (completion(None, "content_filter"), "finish_reason='content_filter'"),
    "refused by the model": (completion(None, refusal="I cannot."), "I cannot."),
    "called a tool": (completion(None, "tool_calls"), "finish_reason='tool_calls'"),
    "spent all tokens on reasoning": (completion(None, "length"), "returned no text"),
    "error in a 200": ((200, {"error": {"message": "upstream broke"}}), "upstream broke"),
    "not JSON": ((200, b"<html>hello</html>"), "not a chat completion"),
    "truncated JSON": ((200, b'{"choices": ['), "the endpoint: "),
    "empty choice": ((200, {"choices": [{}]}), "not a chat completion"),
}


def test_each_image_without_a_caption_fails_alone(endpoint, load, caption_all):
    endpoint.answers = {100 + n: answer for n, (answer, _) in enumerate(FAILURES.values())}
    widths = [width for bad in endpoint.answers for width in (bad, bad - 50)]
    results = caption_all(load(), [image(width) for width in widths])
    assert results[1::2] == [Caption("A scene.", "stop", 7)] * len(FAILURES)
    for case, (_, message), error in zip(FAILURES, FAILURES.values(), results[::2], strict=True):
        assert isinstance(error, CaptionError) and message in str(error), case


def test_transient_statuses_are_retried(endpoint, load, caption_all):
    statuses = (408, 409, 429, 500, 503)
    for status in statuses:
        endpoint.answers[status] = [failure(status, "later"), failure(status, "later"), completion()]
    captions = caption_all(load(), [image(status) for status in statuses])
    assert captions == [Caption("A scene.", "stop", 7)] * len(statuses)
    assert [endpoint.request_count(status) for status in statuses] == [3] * len(statuses)


def test_an_endpoint_that_is_down_for_a_while_fails_no_image(endpoint, load, caption_all):
    """While it is down, every request fails, including probes; afterwards all images get captions."""
    engine = load()
    before = endpoint.request_count(BLANK)

    def restarting():
        if endpoint.request_count(BLANK) - before == 2:
            endpoint.everything = None
        return failure(503, "restarting")

    endpoint.everything = restarting
    assert caption_all(engine, [image(30 + n) for n in range(20)]) == [Caption("A scene.", "stop", 7)] * 20
    assert endpoint.request_count(BLANK) - before == 3  # two of them failed: one task probes for all


def test_a_failure_that_arrives_after_an_outage_fails_no_image(endpoint, load, caption_all):
    """The request was sent during the outage; its reply arrives after the endpoint has served another image."""
    engine, served = load(), threading.Event()
    down = failure(503, "restarting")

    def at_last():
        served.set()
        return completion("The first.")

    def late():
        assert served.wait(60)
        return down

    endpoint.answers |= {BLANK: [down, completion()], 30: [down, down, down, at_last], 31: [down, down, late]}
    endpoint.answers[31].append(completion("The late one."))
    first, second = caption_all(engine, [image(30), image(31)])
    assert (first.text, second.text) == ("The first.", "The late one.")


@pytest.mark.parametrize(
    "everything", [failure(503, "down"), failure(429, "busy"), failure(500, "broken")], ids=lambda answer: answer[0]
)
def test_an_endpoint_that_stays_down_ends_the_engine_and_fails_no_image(everything, endpoint, load, caption_all):
    engine = load(outage_seconds=1.0)
    endpoint.everything = everything
    results = caption_all(engine, [image(30 + n) for n in range(8)])
    assert all(isinstance(result, EngineUnreachable) for result in results)
    assert everything[1]["error"]["message"] in str(results[0]) and endpoint.url in str(results[0])


def test_a_server_that_is_gone_ends_the_engine_and_fails_no_image(endpoint, load, caption_all):
    engine = load(outage_seconds=0.5)
    endpoint.close()
    assert all(isinstance(result, EngineUnreachable) for result in caption_all(engine, [image(30), image(31)]))


@pytest.mark.parametrize(
    ("everything", "message"),
    [
        (failure(401, "bad key"), "denies access"),
        (failure(403, "forbidden"), "denies access"),
        (failure(404, "no such model"), "has no model 'served'"),
        (failure(400, "not a multimodal model"), "does its model take images"),
        ((200, b"<html>a login page</html>"), "not a chat completion"),
    ],
)
def test_an_endpoint_that_rejects_everything_fails_no_image(everything, message, endpoint, load, caption_all):
    """On load, it raises ValueError. Later, the engine ends at once."""
    engine = load()
    endpoint.everything = everything
    for result in caption_all(engine, [image(30), image(31)]):
        assert isinstance(result, EngineUnreachable) and message in str(result)
    with pytest.raises(ValueError, match=message):
        load()


def test_an_image_that_exceeds_the_rate_limit_alone_fails_while_others_succeed(endpoint, load, caption_all):
    """Two run at a time: 32 is sent once 31 has its caption, and 33 once 30 has failed, while 32 is running."""
    sent = {width: threading.Event() for width in range(30, 34)}

    def answer(width, other):
        sent[width].set()
        sent[other].wait()
        return failure(429, "request too large for your limit") if width == 30 else completion()

    for width, other in {30: 32, 31: 30, 32: 33, 33: 33}.items():
        endpoint.answers[width] = partial(answer, width, other)
    first, *others = caption_all(WithWindow(load(outage_seconds=1.0), 2), [image(width) for width in sent])
    assert isinstance(first, CaptionError) and "too large for your limit" in str(first)
    assert others == [Caption("A scene.", "stop", 7)] * 3


class WithWindow:
    """An engine with a different window."""

    def __init__(self, engine, window):
        self.prepare, self.caption = engine.prepare, engine.caption
        self.window, self.burst = window, 1


def test_a_request_that_hangs_fails_only_its_own_image(endpoint, load, caption_all):
    done = threading.Event()
    endpoint.answers[30] = lambda: done.wait() and completion()
    failed, good = caption_all(load(request_seconds=2.0), [image(30), image(31)])
    done.set()
    assert isinstance(failed, CaptionError) and "timed out" in str(failed)
    assert good == Caption("A scene.", "stop", 7)


def test_an_image_that_crashes_the_endpoint_each_time_fails(endpoint, load, caption_all):
    """Its request fails, and so does the next one, as with a server that restarts."""
    down = threading.Event()

    def crash():
        down.set()
        return failure(502, "connection reset")

    def blank():
        if down.is_set():
            down.clear()
            return failure(503, "restarting")
        return completion()

    engine = load()
    endpoint.answers |= {30: crash, BLANK: blank}
    (bad,) = caption_all(engine, [image(30)])
    assert isinstance(bad, CaptionError) and "connection reset" in str(bad)


def test_the_key_is_sent_and_never_shown(endpoint, load, caption_all, monkeypatch, caplog):
    """It is in no error, even if the server repeats it, in no log, and in no printed settings."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    endpoint.answers[30] = failure(400, f"bad request with key {KEY}")
    engine = load(api_key_env="MY_KEY")
    (error,) = caption_all(engine, [image(30)])
    assert endpoint.requests[-1][1]["authorization"] == f"Bearer {KEY}"
    assert "bad request with key [MY_KEY]" in str(error) and error.__cause__ is None and error.__suppress_context__
    endpoint.everything = failure(401, f"Incorrect API key: {KEY}")
    with pytest.raises(ValueError, match=r"check the key in MY_KEY: .*key: \[MY_KEY\]"):
        load(api_key_env="MY_KEY")
    (dead,) = caption_all(engine, [image(31)])
    assert isinstance(dead, EngineDead)
    texts = [
        str(error),
        str(dead),
        caplog.text,
        repr(engine),
        repr(EngineOptions(endpoint="http://x", api_key_env="MY_KEY")),
    ]
    assert [text for text in texts if KEY in text] == []


def test_only_the_configured_key_is_ever_sent(endpoint, load, caption_all, monkeypatch):
    """Variables for OpenAI's own service must not reach another endpoint."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    caption_all(load(), [image(30)])
    assert [request[1] for request in endpoint.requests if KEY in str(request[1])] == []


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"dtype": "float16"}, {}, "captioner 'newer': dtype='float16': the server decides this; leave it out"),
        ({"quantization": "awq"}, {}, "quantization='awq': the server decides this"),
        ({}, {"endpoint": None}, "endpoint is missing: give its URL"),
        ({}, {"endpoint": "localhost:8000"}, "`endpoint`: give a URL such as"),
        ({}, {"endpoint": f"http://me:{KEY}@host/v1"}, "without a user or password"),
        ({}, {"api_key_env": KEY}, "`api_key_env`: give the name of an environment variable"),
        ({}, {"api_key_env": "NOT_SET_ANYWHERE"}, "api_key_env='NOT_SET_ANYWHERE': that environment variable is not"),
        ({}, {"engine": "vllm"}, "engine='vllm': use auto or endpoint for captioner kind 'openai'"),
    ],
)
def test_invalid_settings_are_rejected_with_field_and_fix(change, options, message, load):
    with pytest.raises(ValueError) as raised:
        load(CaptionerConfig.from_dict(CONFIG.to_dict() | change), **options)
    assert message in str(raised.value) and KEY not in str(raised.value)


def test_an_unknown_model_is_reported_with_the_served_ones(endpoint, load):
    endpoint.everything = failure(404, "The model `other` does not exist.")
    with pytest.raises(ValueError, match=r"has no model 'served'.*does not exist\. It serves served\."):
        load()


def test_loading_waits_for_an_endpoint_that_starts_up(endpoint, load, caption_all):
    endpoint.answers[BLANK] = [failure(503, "loading"), completion()]
    assert caption_all(load(), [image(30)]) == [Caption("A scene.", "stop", 7)]


def test_a_closed_engine_raises_engine_dead(load, caption_all):
    engine = load()
    caption_all(engine, [image(30)])
    engine.close()
    (result,) = caption_all(engine, [image(30)])
    assert isinstance(result, EngineDead)


@pytest.mark.parametrize("kind", ["llava", "instructblip", "sharegpt4v"])
def test_request_fields_are_rejected_for_kinds_that_send_no_requests(kind):
    with pytest.raises(ValueError, match="request: only kind 'openai' sends requests"):
        load_engine(CaptionerConfig(name="x", kind=kind, model=f"tiny-{kind}", request={"top_k": 1}), "transformers")
