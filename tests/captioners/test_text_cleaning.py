"""What a model writes around a text is recognised, and removed if the captioner's `strip` says so. The rest stays."""

import pytest

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.captioners.text_cleaning import REMOVALS, clean, removals

TEXT = "A red bus stands at a kerb. Two people wait beside it."
CONFIG = CaptionerConfig(name="x", kind="vlm", model="some/model", strip=list(REMOVALS))
AROUND = [
    ("reasoning", f"<think>\nThe user wants a caption.\n</think>\n\n{TEXT}"),
    ("reasoning", f"I should look at the bus.\n</think>\n\n{TEXT}"),
    ("reasoning", f"<Thinking>a</Thinking> {TEXT}"),
    ("preamble", f"Sure! {TEXT}"),
    ("preamble", f"Sure, here is a detailed description of the image:\n\n{TEXT}"),
    ("preamble", f"Certainly! Here's a caption for this picture: {TEXT}"),
    ("preamble", f"Of course. Here is the description. {TEXT}"),
    ("preamble", f"Here is a description of the image in detail: {TEXT}"),
    ("preamble", f"Caption: {TEXT}"),
    ("closing", f"{TEXT} Let me know if you need more details!"),
    ("closing", f"{TEXT}\n\nI hope this helps. Feel free to ask for more."),
    ("closing", f"{TEXT}\n\nWould you like me to describe the background?"),
    ("closing", f"{TEXT} If you have any other questions, just ask."),
    ("markdown", f"## Bus\n\n{TEXT}".replace("Bus\n\n", "")),
    ("markdown", TEXT.replace("red bus", "**red bus**")),
    ("markdown", TEXT.replace("kerb", "`kerb`")),
    ("markdown", TEXT.replace("kerb", "[kerb](https://example.org)")),
    ("markdown", f"- {TEXT}"),
    ("markdown", f"```\n{TEXT}\n```"),
]
PLAIN = [
    TEXT,
    "Here a dog sleeps: its basket is red.",
    "A sign says: sure, why not. 2 * 3 * 4 is written below.",
    "The paper reads x_1 and snake_case_name, a < b, and 5 > 3.",
    "A poster asks you to feel free to smile at the camera, which a boy does.",
    "OK is written on a box. A note says I hope this is fine, and below it a cat lies.",
    "Great crowds fill the square, and of course the fountain.",
]


def caption(text):
    return Caption(text, "stop", 12)


@pytest.mark.parametrize(("name", "written"), AROUND)
def test_what_stands_around_a_text_has_a_flag_and_is_removed(name, written):
    assert name in find_flags(caption(written), CONFIG)
    cleaned = clean(caption(written), CONFIG)
    assert cleaned.text == TEXT
    assert find_flags(cleaned, CONFIG) == ["stripped"]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_text_stays_as_it_is(text):
    assert clean(caption(text), CONFIG) == caption(text)
    assert not set(find_flags(caption(text), CONFIG)) & {*REMOVALS, "stripped"}


def test_reasoning_that_does_not_end_leaves_nothing():
    cleaned = clean(Caption("<think>The image shows a bus and", "length", 256), CONFIG)
    assert cleaned.text == ""
    assert find_flags(cleaned, CONFIG) == ["truncated", "empty", "stripped"]


def test_everything_at_once():
    written = f"<think>Hm.</think>Sure, here is a caption:\n\n**{TEXT}**\n\nLet me know if you want another one."
    assert clean(caption(written), CONFIG).text == TEXT


def test_only_what_strip_names_is_removed():
    written = f"<think>Hm.</think>Sure! {TEXT}"
    assert clean(caption(written), CONFIG.replace(strip=["reasoning"])).text == f"Sure! {TEXT}"
    assert clean(caption(written), CONFIG.replace(strip=[])) == caption(written)


def test_by_default_only_vision_language_models_lose_their_reasoning():
    assert removals(CONFIG.replace(strip=None)) == ("reasoning",)
    assert removals(CONFIG.replace(strip=None, kind="openai")) == ()


def test_a_text_with_a_form_keeps_its_marks_and_another_one_may_get_the_form():
    config = CONFIG.replace(structured={"json_schema": {"type": "object", "required": ["a"]}})
    valid = Caption('{"a": "**x** `y` [z](https://z.example)"}', "stop", 1)
    assert clean(valid, config) is valid
    assert find_flags(valid, config) == []
    fenced = clean(Caption('```json\n{"a": 1}\n```', "stop", 1), config)
    assert fenced.text == '{"a": 1}' and find_flags(fenced, config) == ["stripped"]
