"""What `{name}` in a prompt means: a field, in whose place each image gets a column of its own sample.

`{{name}}` stands for the text `{name}`. All other braces, such as those of an example in JSON, are text.
"""

import functools
import re

FIELDS = {
    "raw": "the first raw text that is not blank",
    "raws": "all raw texts, joined by `; `",
    "source": "the source of `raw`",
    "sources": "all sources, joined by `; `",
    "url": "the URL of the image",
    "width": "the width of the stored image in pixels",
    "height": "the height of the stored image in pixels",
    "original_width": "the width of the downloaded image in pixels",
    "original_height": "the height of the downloaded image in pixels",
}
"""The columns of a sample that a prompt can hold, and their meanings."""

RAW_FIELDS = frozenset(("raw", "raws"))
"""Fields that are empty for an image without a raw text."""

_BRACES = re.compile(r"\{\{(?P<text>[A-Za-z_][A-Za-z0-9_]*)\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")


@functools.lru_cache(maxsize=256)
def split_prompt(prompt: str) -> tuple[tuple[str, bool], ...]:
    """The parts of a prompt in order: texts as the model reads them, with False, and names of `FIELDS`, with True.

    A `{name}` that is no field is text.
    """
    parts: list[tuple[str, bool]] = []
    end = 0
    for match in _BRACES.finditer(prompt):
        parts.append((prompt[end : match.start()], False))
        name, text = match["name"], match["text"]
        parts.append((name, True) if name in FIELDS else (f"{{{text}}}" if text else match[0], False))
        end = match.end()
    parts.append((prompt[end:], False))
    return tuple((part, is_field) for part, is_field in parts if part)


def fields_of(*prompts: str | None) -> tuple[str, ...]:
    """The names of the fields in any of these prompts, in alphabetical order."""
    parts = [part for prompt in prompts if prompt for part in split_prompt(prompt)]
    return tuple(sorted({part for part, is_field in parts if is_field}))


def possible_prompts(prompt: str, prompt_without_raw: str | None) -> tuple[str, ...]:
    """The prompts that an image can get: the second one only if the first one has a raw text."""
    has_raw = not RAW_FIELDS.isdisjoint(fields_of(prompt))
    return (prompt, prompt_without_raw) if has_raw and prompt_without_raw else (prompt,)


def unknown_fields(prompt: str) -> tuple[str, ...]:
    """The names in `{name}` that are no fields, in order."""
    names = [match["name"] for match in _BRACES.finditer(prompt)]
    return tuple(dict.fromkeys(name for name in names if name and name not in FIELDS))


def uses_braces(*prompts: str | None) -> bool:
    """Whether the model reads something else than the characters of these prompts: they have fields or `{{name}}`."""
    matches = [match for prompt in prompts if prompt for match in _BRACES.finditer(prompt)]
    return any(match["text"] or match["name"] in FIELDS for match in matches)
