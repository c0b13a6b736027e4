"""Removes from a model's output what is not the text that was asked for: reasoning, preambles, closings and markdown.

`quality_flags` has a flag for each. The setting `strip` of a captioner says which of them are removed.
"""

import dataclasses
import re
from collections.abc import Callable

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.manifests.settings.captioners import Removal

_TAGS = "think|thinking|reasoning|thought"
_REASONING = re.compile(rf"<({_TAGS})>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_REASONING_END = re.compile(rf"\A.*</(?:{_TAGS})>", re.DOTALL | re.IGNORECASE)

_ASSENT = r"(?:sure|certainly|of course|absolutely|okay|ok|great|alright|yes)(?: thing)?"
_NOUN = (
    r"(?:description|caption|summary|answer|response|alt[ -]text|breakdown|overview|rewritten|version|list|tags?|"
    r"analysis|paragraph)"
)
_ANNOUNCEMENT = rf"(?:here(?:'s|’s| is| are)|below is|i(?:'ll| will|’ll))\b[^.:!?\n]*\b{_NOUN}s?\b[^.:!?\n]*"
_PREAMBLE = re.compile(
    rf"\A\s*(?:{_ASSENT}\s*[!,.:]?\s*(?:{_ANNOUNCEMENT}\s*[:.!]|[!:](?=\s))|{_ANNOUNCEMENT}:)\s*", re.IGNORECASE
)
_LABEL = re.compile(
    r"\A\s*(?:\*\*)?(?:caption|description|answer|final answer)(?:\*\*)?\s*:(?:\*\*)?\s+", re.IGNORECASE
)

_CLOSING_START = (
    r"(?:please )?(?:let me know if|feel free to|i hope (?:this|that|it|you)|hope (?:this|that|it) helps|"
    r"if you (?:have any|need|would like|want|'d like|’d like)|is there anything else|would you like me to|"
    r"do you want me to|don't hesitate to|don’t hesitate to|happy to help)"
)
_CLOSING = re.compile(rf"(?:(?<=[.!?:])|\n|\A)[\s*_]*\b{_CLOSING_START}\b[^\n]*\Z", re.IGNORECASE)

_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*$\n?", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,2}[.)])[ \t]+(?=\S)", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*$\n?", re.MULTILINE)
_STRONG = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])")
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[([^\]\n]+)\]\([^)\s]+\)")


def clean(caption: Caption, config: CaptionerConfig) -> Caption:
    """Return the caption without what the captioner's `strip` names; the caption itself if it has none of that.

    A text of the form that the captioner's `structured` asks for stays as it is: its marks are a part of it.
    """
    text = caption.text
    if config.structured is not None and config.structured.accepts(text):
        return caption
    for removal in removals(config):
        text = REMOVALS[removal](text)
    return caption if text == caption.text else dataclasses.replace(caption, text=text, stripped=True)


def removals(config: CaptionerConfig) -> tuple[Removal, ...]:
    """Return what is removed from a captioner's texts, in the order of `REMOVALS`."""
    by_default: tuple[Removal, ...] = ("reasoning",) if config.kind == "vlm" else ()
    chosen = by_default if config.strip is None else config.strip
    return tuple(name for name in REMOVALS if name in chosen)


def without_reasoning(text: str) -> str:
    """Return the text after a model's reasoning; nothing if the reasoning does not end.

    Templates that open the reasoning themselves leave only its end in the output.
    """
    if "<" not in text:
        return text
    rest = _REASONING.sub("", text)
    rest = _REASONING_END.sub("", rest)
    return text if rest == text else rest.strip()


def without_preamble(text: str) -> str:
    """Return the text without a sentence that announces it, such as "Sure, here is a description:"."""
    rest = _LABEL.sub("", _PREAMBLE.sub("", text, count=1), count=1)
    return text if rest == text or not rest.strip() else rest.strip()


def without_closing(text: str) -> str:
    """Return the text without the sentences at its end that address the reader, such as "Let me know if…"."""
    rest = text
    while (match := _CLOSING.search(rest)) and rest[: match.start()].strip(" \n*_"):
        rest = rest[: match.start()].rstrip()
    return text if rest == text else rest.rstrip("\n -*_")


def without_markdown(text: str) -> str:
    """Return the text without the marks of headings, lists, emphasis, code and links; its words stay."""
    rest = _FENCE.sub("", text)
    for pattern in (_RULE, _HEADING, _BULLET):
        rest = pattern.sub("", rest)
    rest = _LINK.sub(r"\1", rest)
    rest = _CODE.sub(r"\1", rest)
    rest = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\2", rest))
    return text if rest == text else rest.strip()


REMOVALS: dict[Removal, Callable[[str], str]] = {
    "reasoning": without_reasoning,
    "markdown": without_markdown,
    "preamble": without_preamble,
    "closing": without_closing,
}
"""What each name of `strip` does, in the order in which it is done."""
