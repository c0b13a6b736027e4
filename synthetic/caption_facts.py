"""How right a long text is: the (colour, shape, size, place) facts in it against those of the scene."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lotlip_data.synthetic.caption_writers import RICH_PLACES
from lotlip_data.synthetic.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene


class Fact(NamedTuple):
    """One thing as told by a text; an attribute that the sentence leaves out or contradicts is None."""

    colour: str | None
    shape: str | None
    size: str | None
    place: str | None


_PLACE_NAMES = {**{name: name for name in PLACES}, **dict(zip(RICH_PLACES, PLACES, strict=True))}


def _words(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)  # "top centre" before "centre"
    return re.compile(rf"\b(?:{'|'.join(longest_first)})\b")


_COLOUR, _SHAPE, _SIZE, _PLACE = _words(COLOURS), _words(SHAPES), _words(SIZES), _words(_PLACE_NAMES)


def facts_of(scene: Scene) -> frozenset[Fact]:
    """What is true of the scene, one fact a thing."""
    return frozenset(Fact(thing.colour, thing.shape, thing.size, thing.place) for thing in scene.things)


def facts_in(text: str) -> frozenset[Fact]:
    """What any writer's or captioner's text claims, sentence by sentence.

    A claim is a sentence that names a shape. An attribute counts where the sentence gives it exactly one value, so a
    garbled sentence is a claim that no scene bears out: it costs precision instead of being passed over.
    """
    return frozenset(fact for sentence in re.split(r"[.\n]", text.lower()) for fact in _claims(sentence))


def _claims(sentence: str) -> Iterable[Fact]:
    colour, size, place = (_only(pattern.findall(sentence)) for pattern in (_COLOUR, _SIZE, _PLACE))
    for shape in _SHAPE.findall(sentence):
        yield Fact(colour, shape, size, None if place is None else _PLACE_NAMES[place])


def _only(values: list[str]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


@dataclass
class FactScore:
    """Precision and recall of facts over many pairs of text and scene."""

    told: int = 0
    true: int = 0
    right: int = 0
    texts: int = 0

    def add(self, text: str, scene: Scene) -> None:
        told, true = facts_in(text), facts_of(scene)
        self.told += len(told)
        self.true += len(true)
        self.right += len(told & true)
        self.texts += 1

    @property
    def precision(self) -> float:
        """Share of the facts told that are true; 0 if none was told."""
        return self.right / self.told if self.told else 0.0

    @property
    def recall(self) -> float:
        """Share of the true facts that were told; 0 if there was no scene."""
        return self.right / self.true if self.true else 0.0
