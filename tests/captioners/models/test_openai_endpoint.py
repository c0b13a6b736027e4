"""A captioner behind an endpoint: an image that is refused costs itself, an endpoint that is down costs no image.

The server answers each image by its width: a test says which widths fare how. A blank image, which the engine asks
about when in doubt, is 64 pixels wide.
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
)
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

    def load(config=CONFIG, **resources):
        engines.append(load_engine(config, **{"endpoint": endpoint.url, "outage_seconds": 60.0} | resources))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()
        engine.close()


def image(width, colour="red"):
    return Image.new("RGB", (width, 40), colour)


def test_a_request_holds_prompt_pixels_and_sampling_and_the_answer_is_the_caption(endpoint, load, caption_all):
    """The pixels arrive unchanged; greedy decoding names no sampling; the text is stripped."""
    endpoint.answers[30] = completion(" Long. ", "length", 32)
    engine = load()
    picture = Image.effect_noise((30, 20), 90).convert("RGB")
    assert caption_all(engine, [picture]) == [Caption("Long.", "length", 32)]
    path, _, body, seen = endpoint.requests[-1]
    assert path == "/v1/chat/completions"
    assert seen.convert("RGB").tobytes() == picture.tobytes()
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "served",
        "max_tokens": 32,
        "temperature": 0.0,
    }
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == "Describe the image in detail."


def test_template_sampling_and_further_fields_are_sent(endpoint, load, caption_all):
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


BAD = {
    "too large": (failure(413, "payload too large"), "payload too large"),
    "not readable": (failure(400, "cannot identify image file"), "cannot identify image file"),
    "moderated": (failure(403, "flagged by moderation"), "flagged by moderation"),
    "crashes the server's code": (failure(500, "division by zero"), "division by zero"),
    "filtered": (completion(None, "content_filter"), "finish_reason='content_filter'"),
    "refused by the model": (completion(None, refusal="I cannot."), "I cannot."),
    "called a tool": (completion(None, "tool_calls"), "finish_reason='tool_calls'"),
    "thought until the end": (completion(None, "length"), "gave no text"),
    "error in a 200": ((200, {"error": {"message": "upstream broke"}}), "upstream broke"),
    "no JSON": ((200, b"<html>hello</html>"), "not a chat completion"),
    "half a JSON": ((200, b'{"choices": ['), "the endpoint: "),
    "empty choice": ((200, {"choices": [{}]}), "not a chat completion"),
}


def test_each_image_that_gets_no_caption_costs_itself_alone(endpoint, load, caption_all):
    endpoint.answers = {100 + n: answer for n, (answer, _) in enumerate(BAD.values())}
    widths = [width for bad in endpoint.answers for width in (bad, bad - 50)]
    results = caption_all(load(), [image(width) for width in widths])
    assert results[1::2] == [Caption("A scene.", "stop", 7)] * len(BAD)
    for what, (_, message), error in zip(BAD, BAD.values(), results[::2], strict=True):
        assert isinstance(error, CaptionError) and message in str(error), what


def test_what_passes_by_itself_is_tried_again(endpoint, load, caption_all):
    statuses = (408, 409, 429, 500, 503)
    for status in statuses:
        endpoint.answers[status] = [failure(status, "later"), failure(status, "later"), completion()]
    captions = caption_all(load(), [image(status) for status in statuses])
    assert captions == [Caption("A scene.", "stop", 7)] * len(statuses)
    assert [endpoint.asked(status) for status in statuses] == [3] * len(statuses)


def test_an_endpoint_that_is_down_for_a_while_costs_no_image(endpoint, load, caption_all):
    """While it is down, every request fails, those about blank images too; then everything gets its caption."""
    engine = load()
    before = endpoint.asked(BLANK)

    def restarting():
        if endpoint.asked(BLANK) - before == 2:
            endpoint.everything = None
        return failure(503, "restarting")

    endpoint.everything = restarting
    assert caption_all(engine, [image(30 + n) for n in range(20)]) == [Caption("A scene.", "stop", 7)] * 20
    assert endpoint.asked(BLANK) - before == 3  # of which two failed: one image's task asks for all


def test_a_failure_that_comes_late_is_the_outages_and_costs_no_image(endpoint, load, caption_all):
    """Sent while the endpoint was down, its answer comes when the endpoint is back and has served another."""
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
def test_an_endpoint_that_stays_down_ends_the_engine_and_blames_no_image(everything, endpoint, load, caption_all):
    engine = load(outage_seconds=1.0)
    endpoint.everything = everything
    results = caption_all(engine, [image(30 + n) for n in range(8)])
    assert all(isinstance(result, EngineUnreachable) for result in results)
    assert everything[1]["error"]["message"] in str(results[0]) and endpoint.url in str(results[0])


def test_a_server_that_is_gone_ends_the_engine_and_blames_no_image(endpoint, load, caption_all):
    engine = load(outage_seconds=0.5)
    endpoint.close()
    assert all(isinstance(result, EngineUnreachable) for result in caption_all(engine, [image(30), image(31)]))


@pytest.mark.parametrize(
    ("everything", "message"),
    [
        (failure(401, "bad key"), "does not let us in"),
        (failure(403, "forbidden"), "does not let us in"),
        (failure(404, "no such model"), "has no model 'served'"),
        (failure(400, "not a multimodal model"), "does its model take images"),
        ((200, b"<html>a login page</html>"), "not a chat completion"),
    ],
)
def test_an_endpoint_that_turns_everything_away_blames_no_image(everything, message, endpoint, load, caption_all):
    """From the start: ValueError when the captioner is loaded. Later: the engine ends at once."""
    engine = load()
    endpoint.everything = everything
    for result in caption_all(engine, [image(30), image(31)]):
        assert isinstance(result, EngineUnreachable) and message in str(result)
    with pytest.raises(ValueError, match=message):
        load()


def test_an_image_over_a_rate_limit_by_itself_is_given_up_while_others_go_on(endpoint, load, caption_all):
    """Of two at a time: 32 is asked once 31 has its caption, and 33 once 30 is given up, while 32 is under way."""
    asked = {width: threading.Event() for width in range(30, 34)}

    def answer(width, other):
        asked[width].set()
        asked[other].wait()
        return failure(429, "request too large for your limit") if width == 30 else completion()

    for width, other in {30: 32, 31: 30, 32: 33, 33: 33}.items():
        endpoint.answers[width] = partial(answer, width, other)
    first, *others = caption_all(_Narrow(load(outage_seconds=1.0), 2), [image(width) for width in asked])
    assert isinstance(first, CaptionError) and "too large for your limit" in str(first)
    assert others == [Caption("A scene.", "stop", 7)] * 3


class _Narrow:
    """An engine with another window."""

    def __init__(self, engine, window):
        self.prepare, self.caption = engine.prepare, engine.caption
        self.window, self.burst = window, 1


def test_a_request_that_hangs_is_given_up_and_only_its_image_with_it(endpoint, load, caption_all):
    over = threading.Event()
    endpoint.answers[30] = lambda: over.wait() and completion()
    bad, good = caption_all(load(request_seconds=2.0), [image(30), image(31)])
    over.set()
    assert isinstance(bad, CaptionError) and "timed out" in str(bad)
    assert good == Caption("A scene.", "stop", 7)


def test_an_image_that_brings_the_endpoint_down_each_time_is_given_up(endpoint, load, caption_all):
    """It fails, and so does the next request, as of a server that restarts."""
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


def test_the_key_is_sent_and_never_told(endpoint, load, caption_all, monkeypatch, caplog):
    """Not in an error that repeats it, not in a log, not in what is frozen, pickled or printed of the settings."""
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
    told = [
        str(error),
        str(dead),
        caplog.text,
        repr(engine),
        repr(EngineOptions(endpoint="http://x", api_key_env="MY_KEY")),
    ]
    assert [text for text in told if KEY in text] == []


def test_no_key_but_the_named_one_is_ever_sent(endpoint, load, caption_all, monkeypatch):
    """What the environment holds for OpenAI's own service is no business of another endpoint."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    caption_all(load(), [image(30)])
    assert [request[1] for request in endpoint.requests if KEY in str(request[1])] == []


@pytest.mark.parametrize(
    ("change", "resources", "message"),
    [
        ({"dtype": "float16"}, {}, "captioner 'newer': dtype='float16': that is for the server to decide"),
        ({"quantization": "awq"}, {}, "quantization='awq': that is for the server"),
        ({}, {"endpoint": None}, "endpoint is missing: give its URL"),
        ({}, {"endpoint": "localhost:8000"}, "`endpoint`: give a URL such as"),
        ({}, {"endpoint": f"http://me:{KEY}@host/v1"}, "without a user or password"),
        ({}, {"api_key_env": KEY}, "`api_key_env`: give the name of an environment variable"),
        ({}, {"api_key_env": "NOT_SET_ANYWHERE"}, "api_key_env='NOT_SET_ANYWHERE': that environment variable is not"),
        ({}, {"engine": "vllm"}, "engine='vllm': use auto or endpoint for captioner kind 'openai'"),
    ],
)
def test_wrong_settings_are_refused_with_field_and_fix(change, resources, message, load):
    with pytest.raises(ValueError) as raised:
        load(CaptionerConfig.from_dict(CONFIG.to_dict() | change), **resources)
    assert message in str(raised.value) and KEY not in str(raised.value)


def test_a_model_that_is_not_served_is_named_with_those_that_are(endpoint, load):
    endpoint.everything = failure(404, "The model `other` does not exist.")
    with pytest.raises(ValueError, match=r"has no model 'served'.*does not exist\. It serves served\."):
        load()


def test_an_endpoint_that_is_just_coming_up_is_waited_for(endpoint, load, caption_all):
    endpoint.answers[BLANK] = [failure(503, "loading"), completion()]
    assert caption_all(load(), [image(30)]) == [Caption("A scene.", "stop", 7)]


def test_a_closed_engine_says_so(load, caption_all):
    engine = load()
    caption_all(engine, [image(30)])
    engine.close()
    (result,) = caption_all(engine, [image(30)])
    assert isinstance(result, EngineDead)


@pytest.mark.parametrize("kind", ["llava", "instructblip", "sharegpt4v"])
def test_fields_of_a_request_are_refused_where_no_request_is_sent(kind):
    with pytest.raises(ValueError, match="request: only kind 'openai' sends requests"):
        load_engine(CaptionerConfig(name="x", kind=kind, model=f"tiny-{kind}", request={"top_k": 1}), "transformers")
