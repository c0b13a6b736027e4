"""Cheap signs that a caption is junk. They are recorded with it; dropping is the user's choice."""

import re
from collections import defaultdict
from itertools import pairwise

from lotlip_data.captioners.base import Caption, CaptionerConfig

MIN_LOOP_WORDS = 9
MIN_LOOP_REPEATS = 3
MIN_ENGLISH_WORDS = 10
MIN_FUNCTION_WORDS = 0.1
MAX_FOREIGN_LETTERS = 0.1

_COMMON = (
    "a an the and or but of in on at to from with by for as is are was were be been has have it its this that these "
    "those there which who while where no not near into over under up down his her their he she they"
)
FUNCTION_WORDS = frozenset(_COMMON.split())
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ROLE = re.compile(r"\b(?:USER|ASSISTANT|Human|Assistant)\s*:")
_SECOND_ITEM = re.compile(r"(?:^|[\s.:;])1[.)]\s+\S.*?(?:\s|[.;])2[.)]\s+\S", re.DOTALL)
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)


def flags_of(caption: Caption, config: CaptionerConfig) -> list[str]:
    """The names of the rules that hold for this caption, in the order of `RULES`."""
    return [name for name, holds in RULES.items() if holds(caption, config)]


def truncated(caption: Caption, config: CaptionerConfig) -> bool:
    """Ended by `max_new_tokens` or the model's length instead of its end token."""
    return caption.finish_reason == "length"


def empty(caption: Caption, config: CaptionerConfig) -> bool:
    """No letter or digit."""
    return _WORD.search(caption.text) is None


def repetition(caption: Caption, config: CaptionerConfig) -> bool:
    """A loop: the same n words, n ≥ 1, at least 3 times in a row without a gap, 9 words or more in all.

    Words are compared without case and punctuation.
    """
    words = _words(caption.text)
    places = defaultdict(list)
    for start in range(len(words) - 2):
        places[tuple(words[start : start + 3])].append(start)
    # Every such loop repeats some trigram at its own period, so only those distances need a look.
    periods = {b - a for starts in places.values() if len(starts) > 1 for a, b in pairwise(starts)}
    return any(_longest_period(words, n) >= max(MIN_LOOP_WORDS, MIN_LOOP_REPEATS * n) for n in periods)


def prompt_echo(caption: Caption, config: CaptionerConfig) -> bool:
    """Contains the prompt's words in a row, or the template's role names (`USER:`, `ASSISTANT:`)."""
    prompt = f" {' '.join(_words(config.prompt))} "
    return prompt in f" {' '.join(_words(caption.text))} " or _ROLE.search(caption.text) is not None


def list_artifact(caption: Caption, config: CaptionerConfig) -> bool:
    """A list instead of prose: items `1.` and then `2.` (or `1)`, `2)`), or two lines that begin with a bullet."""
    return _SECOND_ITEM.search(caption.text) is not None or len(_BULLET.findall(caption.text)) > 1


def non_english(caption: Caption, config: CaptionerConfig) -> bool:
    """More than 10% of the letters are not ASCII, or, of 10 words or more, under 10% are English function words."""
    return is_foreign(caption.text)


def is_foreign(text: str) -> bool:
    """What `non_english` says, of any text."""
    letters = [character for character in text if character.isalpha()]
    if sum(not letter.isascii() for letter in letters) > MAX_FOREIGN_LETTERS * len(letters):
        return True
    words = _words(text)
    known = sum(word in FUNCTION_WORDS for word in words)
    return len(words) >= MIN_ENGLISH_WORDS and known < MIN_FUNCTION_WORDS * len(words)


RULES = {rule.__name__: rule for rule in (truncated, repetition, empty, prompt_echo, list_artifact, non_english)}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _longest_period(words: list[str], n: int) -> int:
    """Length of the longest stretch in which every word equals the one n before it (those first n included)."""
    longest = run = 0
    for before, word in zip(words, words[n:], strict=False):
        run = run + 1 if before == word else 0
        longest = max(longest, run)
    return longest + n if longest else 0
