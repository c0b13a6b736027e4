"""Accuracy of a long text: the (colour, shape, size, place) facts that it states against those of the scene."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lotlip_data.synthetic.caption_writers import RICH_PLACES
from lotlip_data.synthetic.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene


class Fact(NamedTuple):
    """One object as a text describes it. An attribute without exactly one value is None."""

    colour: str | None
    shape: str | None
    size: str | None
    place: str | None


_PLACE_NAMES = {**{name: name for name in PLACES}, **dict(zip(RICH_PLACES, PLACES, strict=True))}


def _words(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)  # "top centre" before "centre"
    return re.compile(rf"\b(?:{'|'.join(longest_first)})\b")


_COLOUR, _SHAPE, _SIZE, _PLACE = _words(COLOURS), _words(SHAPES), _words(SIZES), _words(_PLACE_NAMES)


def scene_facts(scene: Scene) -> frozenset[Fact]:
    """The true facts of a scene, one per object."""
    return frozenset(Fact(obj.colour, obj.shape, obj.size, obj.place) for obj in scene.objects)


def text_facts(text: str) -> frozenset[Fact]:
    """The facts that a text by any writer or captioner states, sentence by sentence.

    Each shape that a sentence names is a statement. An attribute has a value only if the sentence gives exactly one. So
    a garbled sentence is a statement that is true of no scene: it lowers precision instead of being ignored.
    """
    return frozenset(fact for sentence in re.split(r"[.\n]", text.lower()) for fact in _statements(sentence))


def _statements(sentence: str) -> Iterable[Fact]:
    colour, size, place = (_single_value(pattern.findall(sentence)) for pattern in (_COLOUR, _SIZE, _PLACE))
    for shape in _SHAPE.findall(sentence):
        yield Fact(colour, shape, size, None if place is None else _PLACE_NAMES[place])


def _single_value(values: list[str]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


@dataclass
class FactScore:
    """Precision and recall of facts over many pairs of text and scene."""

    stated: int = 0
    """Number of facts in the texts."""
    true: int = 0
    """Number of facts in the scenes."""
    correct: int = 0
    """Number of facts that are in both."""
    texts: int = 0

    def add(self, text: str, scene: Scene) -> None:
        """Count the facts of one text and of its scene."""
        stated, true = text_facts(text), scene_facts(scene)
        self.stated += len(stated)
        self.true += len(true)
        self.correct += len(stated & true)
        self.texts += 1

    @property
    def precision(self) -> float:
        """Share of the stated facts that are true; 0 if no fact is stated."""
        return self.correct / self.stated if self.stated else 0.0

    @property
    def recall(self) -> float:
        """Share of the true facts that are stated; 0 if there is no scene."""
        return self.correct / self.true if self.true else 0.0
