"""Quality flags: cheap signs that a caption is junk. They are recorded with each caption; dropping is up to the user.

To add a flag, write a function of a caption and its captioner's configuration, and append it to `RULES`. The function's
name is the flag's name in captions, reports and filters.
"""

import re
from collections import defaultdict
from itertools import pairwise

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.captioners.text_cleaning import without_closing, without_markdown, without_preamble, without_reasoning

MIN_LOOP_WORDS = 9
MIN_LOOP_REPEATS = 3
MIN_ENGLISH_WORDS = 10
MIN_FUNCTION_WORD_SHARE = 0.1
MAX_NON_ASCII_SHARE = 0.1

_COMMON = (
    "a an the and or but of in on at to from with by for as is are was were be been has have it its this that these "
    "those there which who while where no not near into over under up down his her their he she they"
)
FUNCTION_WORDS = frozenset(_COMMON.split())
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ROLE = re.compile(r"\b(?:USER|ASSISTANT|Human|Assistant)\s*:")
_SECOND_ITEM = re.compile(r"(?:^|[\s.:;])1[.)]\s+\S.*?(?:\s|[.;])2[.)]\s+\S", re.DOTALL)
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)


def find_flags(caption: Caption, config: CaptionerConfig) -> list[str]:
    """Return the names of the rules that hold for a caption, in the order of `RULES`.

    Args:
        caption: The caption.
        config: The captioner's configuration, with the prompt that the model has read.
    """
    skipped = RULES_OF_PROSE if config.structured is not None else ()
    return [name for name, holds in RULES.items() if name not in skipped and holds(caption, config)]


def truncated(caption: Caption, config: CaptionerConfig) -> bool:
    """`max_new_tokens` or the model's maximum length ended the caption, not the end token."""
    return caption.finish_reason == "length"


def empty(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption has no letter or digit."""
    return _WORD.search(caption.text) is None


def repetition(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption loops: the same n ≥ 1 words stand at least 3 times in a row, and together are 9 words or more.

    Words are compared without case and punctuation.
    """
    words = _words(caption.text)
    positions = defaultdict(list)
    for start in range(len(words) - 2):
        positions[tuple(words[start : start + 3])].append(start)
    # Each such loop repeats a trigram at its own period, so only the distances between equal trigrams can be periods.
    periods = {b - a for starts in positions.values() if len(starts) > 1 for a, b in pairwise(starts)}
    return any(_longest_run(words, period) >= max(MIN_LOOP_WORDS, MIN_LOOP_REPEATS * period) for period in periods)


def prompt_echo(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption contains the prompt's words in a row, or a role name of a template (`USER:`, `ASSISTANT:`)."""
    prompt = f" {' '.join(_words(config.prompt))} "
    return prompt in f" {' '.join(_words(caption.text))} " or _ROLE.search(caption.text) is not None


def list_artifact(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption is a list: items `1.` and then `2.` (or `1)`, `2)`), or two lines that begin with a bullet."""
    return _SECOND_ITEM.search(caption.text) is not None or len(_BULLET.findall(caption.text)) > 1


def reasoning(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption holds a model's reasoning (`<think>…</think>`)."""
    return without_reasoning(caption.text) != caption.text


def preamble(caption: Caption, config: CaptionerConfig) -> bool:
    """A sentence that announces the caption precedes it, such as "Sure, here is a description:"."""
    return without_preamble(caption.text) != caption.text


def closing(caption: Caption, config: CaptionerConfig) -> bool:
    """Sentences that address the reader follow the caption, such as "Let me know if you need more." """
    return without_closing(caption.text) != caption.text


def markdown(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption has marks of headings, lists, emphasis, code or links."""
    return without_markdown(caption.text) != caption.text


def stripped(caption: Caption, config: CaptionerConfig) -> bool:
    """Something that the model wrote was removed, as the captioner's `strip` says."""
    return caption.stripped


def non_english(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption is not English, as `is_non_english` defines it."""
    return is_non_english(caption.text)


def is_non_english(text: str) -> bool:
    """Whether over 10% of the letters are not ASCII, or under 10% of at least 10 words are English function words."""
    letters = [character for character in text if character.isalpha()]
    if sum(not letter.isascii() for letter in letters) > MAX_NON_ASCII_SHARE * len(letters):
        return True
    words = _words(text)
    function_words = sum(word in FUNCTION_WORDS for word in words)
    return len(words) >= MIN_ENGLISH_WORDS and function_words < MIN_FUNCTION_WORD_SHARE * len(words)


def invalid_json(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption is no JSON document of its captioner's `structured.json_schema`, such as one that was cut."""
    structured = config.structured
    return structured is not None and structured.json_schema is not None and not structured.accepts(caption.text)


def no_match(caption: Caption, config: CaptionerConfig) -> bool:
    """The caption does not match its captioner's `structured.regex`, or is no text of `structured.choice`."""
    structured = config.structured
    return structured is not None and structured.json_schema is None and not structured.accepts(caption.text)


RULES = {
    rule.__name__: rule
    for rule in (
        truncated,
        repetition,
        empty,
        prompt_echo,
        list_artifact,
        non_english,
        reasoning,
        preamble,
        closing,
        markdown,
        stripped,
        invalid_json,
        no_match,
    )
}
"""Rule by flag name, in the order in which flags are recorded."""

RULES_OF_PROSE = frozenset(rule.__name__ for rule in (list_artifact, non_english, preamble, closing, markdown))
"""Rules for sentences, which a text with `structured` need not have."""

WITHOUT_RAW_TEXT = "without_raw_text"
"""Flag of a caption whose prompt has the raw text of an image that has none."""

FLAGS = (*RULES, WITHOUT_RAW_TEXT)
"""All flags."""


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _longest_run(words: list[str], period: int) -> int:
    """Length of the longest stretch in which each word equals the one `period` before it, the first period included."""
    longest = run = 0
    for earlier, word in zip(words, words[period:], strict=False):
        run = run + 1 if earlier == word else 0
        longest = max(longest, run)
    return longest + period if longest else 0
