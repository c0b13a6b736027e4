"""The definition of each quality flag, at its limits."""

import pytest

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import sample_scene

CONFIG = CaptionerConfig(name="llava", kind="llava", model="m")


def flags(text, finish_reason="stop"):
    return find_flags(Caption(text, finish_reason, 1), CONFIG)


def test_truncated_means_that_no_end_token_ended_the_caption():
    assert flags("The image shows", "length") == ["truncated"]
    assert flags("The image shows") == []


@pytest.mark.parametrize("text", ["", "  ", "...", "\n-\n"])
def test_empty_means_no_letter_or_digit(text):
    assert flags(text) == ["empty"]


def test_a_single_letter_is_not_empty():
    assert flags("A") == []


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("the cat " * 5, True),  # 2 words, 5 times: 10 words
        ("the cat " * 4, False),  # 8 words in total
        ("the big cat, the big cat! The BIG cat.", True),  # 3 words, 3 times: 9 words
        ("the big cat the big cat", False),  # twice only
        ("very " * 9, True),
        ("very " * 8, False),
        ("A man sits on the bench. " * 3, True),
        ("A man sits on the bench. " * 2, False),
        ("A man sits on the left. A man sits on the right. A man sits on the roof.", False),
        ("In the park there is " + "a tree and " * 6 + "a lake", True),
    ],
)
def test_repetition_means_the_same_words_three_times_in_a_row_and_nine_words_in_total(text, looping):
    assert ("repetition" in flags(text)) == looping


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("Describe the image in detail. The image shows a cat.", True),
        ("Sure! describe the image, in detail: a cat.", True),
        ("A cat on a sofa. USER: What is it? ASSISTANT: A cat.", True),
        ("A poster invites the reader to describe the image in detailed prose.", False),
        ("The user's guide lies on the table.", False),
    ],
)
def test_prompt_echo_means_the_prompts_words_in_a_row_or_a_role_name(text, echo):
    assert ("prompt_echo" in flags(text)) == echo


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("1. A cat. 2. A dog.", True),
        ("The image shows: 1) a cat, 2) a dog.", True),
        ("Shown are\n- a cat\n- a dog", True),
        ("• a cat\n• a dog", True),
        ("1. A cat sits on the sofa.", False),
        ("A pole of 1.5 m beside one of 2.5 m.", False),
        ("2. A dog. 1. A cat.", False),
        ("A cat - a dog", False),
    ],
)
def test_list_artifact_means_items_1_and_2_or_two_bulleted_lines(text, is_list):
    assert ("list_artifact" in flags(text)) == is_list


@pytest.mark.parametrize(
    ("text", "non_english"),
    [
        ("Изображён кот на диване.", True),
        ("一只猫坐在沙发上", True),
        ("La imagen muestra un gato negro sentado sobre una silla roja junto a otra silla.", True),
        ("The image shows a black cat sitting on a red chair next to a café.", False),
        ("un gato negro", False),  # too short to judge by its words
    ],
)
def test_non_english_means_non_ascii_letters_or_no_english_function_words(text, non_english):
    assert ("non_english" in flags(text)) == non_english


@pytest.mark.parametrize("writer", WRITERS)
def test_a_good_long_text_has_no_flag(writer):
    assert [flags(long_text(sample_scene(seed), writer)) for seed in range(300)] == [[]] * 300


def test_flags_have_a_fixed_order():
    assert flags("1. very 2. " + "very " * 9, "length")[:2] == ["truncated", "repetition"]
