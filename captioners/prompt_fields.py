"""Fills the fields of a prompt with texts of the web, which nobody has vetted.

A field has one line of limited length and no invisible characters. It cannot change what the rest of the prompt means:
no special token of a model, no role name of a template and no place of an image comes from it. What looks like one
loses a character, also where it is written in full-width or other compatible characters, with spaces or accents in
between, or begins in one field and ends in the next or in the text of the prompt.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import dropwhile, groupby
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, TextRequest
from lotlip_data.manifests.settings.prompt_syntax import split_prompt

FieldValue = str | int | list[str] | None
"""The value of a field: one text, a number, or several texts."""

KNOWN_MARKERS = frozenset(
    (
        # Role names
        *("user:", "assistant:", "system:", "human:", "gpt:", "instruction:", "response:", "###"),
        # Qwen, InternVL, Llama 3, Phi and others write each of their tokens between these.
        *("<|", "|>"),
        # Llama 2, Vicuna, Mistral, Pixtral
        *("<s>", "</s>", "<unk>", "<pad>", "<<SYS>>", "<</SYS>>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]"),
        *("[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
        # Gemma, PaliGemma
        *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
        *("<image_soft_token>",),
        # Idefics, SmolVLM, InternVL
        *("<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<row_", "<IMG_CONTEXT>"),
        # Places of images and other media, in the templates of many models
        *("<image>", "</image>", "<img>", "</img>", "<ImageHere>", "<image_", "<video>", "<audio>"),
        # Reasoning and tools
        *("<think>", "</think>", "<tool_call>", "</tool_call>"),
        # BERT, which is InstructBLIP's Q-Former
        *("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"),
    )
)
"""Texts with which the families of models mark tokens, turns and places of images. No field has one of them."""

_MANY_TOKENS = ("\U00012037", "%", "a-", "a ")
"""Texts that need many tokens per character: where a tokenizer knows bytes, four; where it knows words only, one."""

_ROLE_NAME = re.compile(r"[^\W\d_][^\W_]*\s*:")
_BRACKETED = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")

_HIDDEN_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co"))
_HIDDEN_LETTERS_AND_MARKS = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0000, 0xE1000)))
"""Of Unicode's Default_Ignorable_Code_Point, the characters outside `_HIDDEN_CATEGORIES`, and the block of tags."""


def fill(prompt: str, fields: Mapping[str, FieldValue], special_texts: frozenset[str], max_characters: int) -> str:
    """The prompt as the model reads it.

    Args:
        prompt: A prompt with fields, as `prompt_syntax` describes them.
        fields: The value of each field.
        special_texts: The engine's: texts that mean something else to the model than what they say.
        max_characters: Largest number of characters of a field.

    Returns:
        The prompt with its fields in place. Its own text stays as it is; braces in a field mean nothing.
    """
    parts = split_prompt(prompt)
    texts = [clean(fields[part], max_characters) if is_field else part for part, is_field in parts]
    characters = list("".join(texts))
    is_foreign = [is_field for text, (_, is_field) in zip(texts, parts, strict=True) for _ in text]
    _neutralise(characters, is_foreign, special_texts)
    filled, start = [], 0
    for text, (_, is_field) in zip(texts, parts, strict=True):
        content = "".join(characters[start : start + len(text)])
        filled.append(" ".join(content.split()) if is_field else content)
        start += len(text)
    return "".join(filled)


def clean(value: FieldValue, max_characters: int) -> str:
    """One line of visible characters: of a list its texts joined by `; `, of None nothing.

    A text that is too long is cut between two words, or inside a word that takes more than half of the length.
    """
    values = value if isinstance(value, list) else [value]
    texts = [_hidden().sub("", str(part)) for part in values if part is not None]
    text = "; ".join(line for text in texts if (line := " ".join(text.split())))
    text = "".join(dropwhile(unicodedata.combining, text))  # accents of a character of the prompt
    if len(text) <= max_characters:
        return text
    end = text.rfind(" ", max_characters // 2, max_characters + 1)
    return text[: end if end > 0 else max_characters].rstrip()


def longest_requests(config: CaptionerConfig) -> list[TextRequest]:
    """Requests of which one needs at least as many tokens as any of a sample, whatever the tokenizer."""

    def filled(prompt: str, text: str) -> str:
        limit = config.max_field_characters
        return "".join((text * limit)[:limit] if is_field else part for part, is_field in split_prompt(prompt))

    pairs = ((prompt, text) for prompt in config.prompts_of_images for text in _MANY_TOKENS)
    texts = dict.fromkeys((filled(prompt, text), filled(config.system or "", text)) for prompt, text in pairs)
    return [TextRequest(config, prompt, system or None) for prompt, system in texts]


def special_texts_of(*tokenizers: Any, template: str = "") -> frozenset[str]:
    """The `special_texts` of an engine.

    Args:
        tokenizers: The tokenizers that read the prompt. Their added tokens count, except for plain words.
        template: The text around the prompt. Role names in it (`USER:`), and what stands in angle or square brackets,
            count.
    """
    tokens = {str(token) for tokenizer in tokenizers for token in tokenizer.get_added_vocab()}
    tokens |= {str(token) for tokenizer in tokenizers for token in tokenizer.all_special_tokens}
    marks = {match[0] for pattern in (_ROLE_NAME, _BRACKETED) for match in pattern.finditer(template)}
    return frozenset(text for text in tokens | marks if not _key(text).isalnum())


def _neutralise(characters: list[str], is_foreign: list[bool], special_texts: frozenset[str]) -> None:
    """Put a space in the place of foreign characters until no special text or known marker holds a foreign character.

    A space changes no key, and each step takes a character that does, so this ends, and nothing that it leaves can
    form a new special text.
    """
    while True:
        keys = list(map(_key, characters))
        spans = list(_spans("".join(keys), special_texts))
        places = [place for place, key in enumerate(keys) for _ in key] if spans else []
        changed = False
        for start, end in spans:
            foreign = [place for place in places[start:end] if is_foreign[place]]
            if foreign and not any(characters[place] == " " for place in foreign):
                mark = next((place for place in foreign if not characters[place].isalnum()), foreign[0])
                characters[mark] = " "
                changed = True
        if not changed:
            return


def _spans(text: str, special_texts: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Where the keys of special texts and of `KNOWN_MARKERS` stand in a key, also where they overlap.

    A tokenizer can have thousands of special tokens, for which a regular expression takes too long.
    """
    keys, lengths_by_start = _keys(special_texts)
    for start, character in enumerate(text):
        for length in lengths_by_start.get(character, ()):
            if text[start : start + length] in keys:
                yield start, start + length
                break


@functools.lru_cache(maxsize=64)
def _keys(special_texts: frozenset[str]) -> tuple[frozenset[str], dict[str, list[int]]]:
    """The keys of special texts and of `KNOWN_MARKERS`, and their lengths by first character, the longest first."""
    keys = frozenset("".join(map(_key, text)) for text in special_texts | KNOWN_MARKERS) - {""}
    lengths: dict[str, set[int]] = {}
    for key in keys:
        lengths.setdefault(key[0], set()).add(len(key))
    return keys, {start: sorted(of_start, reverse=True) for start, of_start in lengths.items()}


@functools.lru_cache(maxsize=65536)
def _key(text: str) -> str:
    """What a text has in common with all that a tokenizer or a reader could take for it.

    That is without case, compatibility forms, accents and white space.
    """
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(
        character
        for character in decomposed
        if not character.isspace() and unicodedata.category(character) not in ("Mn", "Me", "Cf")
    )


@functools.cache
def _hidden() -> re.Pattern[str]:
    """Matches the characters that nobody sees: control, format, private and half characters, and ignorable ones."""

    def is_hidden(code: int) -> bool:
        character = chr(code)
        return (
            unicodedata.category(character) in _HIDDEN_CATEGORIES and not character.isspace()
        ) or character in _HIDDEN_LETTERS_AND_MARKS

    return re.compile(f"[{''.join(_ranges(filter(is_hidden, range(sys.maxunicode + 1))))}]")


def _ranges(codes: Iterable[int]) -> Iterable[str]:
    """Ascending code points as the ranges of a character class."""
    for _, group in groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0]):
        run = [code for _, code in group]
        yield f"{re.escape(chr(run[0]))}-{re.escape(chr(run[-1]))}"
