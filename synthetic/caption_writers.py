"""Three writers of long texts, and the short noisy alt text of the web.

A long text is a deterministic function of what can be seen, so a captioner can learn to write it word for word. Each
thing has one sentence with its size, colour, shape and place, in reading order of the cells; the other sentences tell
of background, number, layout, sizes or palette. Sentences end in ". " with no abbreviations, so Punkt and the rule
`text.split(". ")` cut alike. Only the sentences on things name a shape: `facts` relies on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lotlip_data.synthetic.scenes import PLACES, Scene, Thing

WRITERS = ("instructblip", "llava", "sharegpt4v")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
WARM = frozenset({"red", "orange", "yellow", "pink"})

# ShareGPT4V's own names of the nine cells, in the order of `PLACES`.
RICH_PLACES = (
    "upper left corner",
    "upper edge",
    "upper right corner",
    "left edge",
    "very middle",
    "right edge",
    "lower left corner",
    "lower edge",
    "lower right corner",
)


def long_text(scene: Scene, writer: str) -> str:
    """The writer's description of the scene: 4–5 sentences (instructblip), 5–6 (llava) or 6–8 (sharegpt4v)."""
    if writer not in _WRITE:
        raise ValueError(f"no writer {writer!r}: choose one of {', '.join(WRITERS)}")
    return " ".join(f"{sentence}." for sentence in _WRITE[writer](scene))


def raw_text(scene: Scene) -> str:
    """An alt text as on the web: at most the most prominent thing, often with attributes missing, sometimes junk."""
    rng = np.random.default_rng([scene.seed, 2])
    thing = min(scene.things, key=lambda thing: thing.size != "large")  # the first large thing, else the first
    number = int(rng.integers(100, 10_000))
    forms = (
        f"{thing.size} {thing.colour} {thing.shape} stock photo",
        f"{thing.colour} {thing.shape} on {scene.background} background",
        f"{thing.colour} {thing.shape} vector image free download",
        f"{thing.size} {thing.colour} {thing.shape}",
        f"Buy {thing.colour} {thing.shape} online | Free shipping",
        f"{thing.colour} {thing.shape} at the {thing.place} #{number}",
        f"{thing.colour}_{thing.shape}_{number}.jpg",
        f"{thing.shape} clip art, {scene.background}",
        f"Pretty {thing.colour} decoration - item {number}",
        f"IMG_{number}.JPG",
    )
    weights = np.array([4, 4, 4, 4, 3, 3, 3, 2, 2, 1], dtype=float)
    return forms[int(rng.choice(len(forms), p=weights / weights.sum()))]


def _instructblip(scene: Scene) -> list[str]:
    """Terse."""
    count = len(scene.things)
    sentences = [f"The background is {scene.background}"]
    sentences += [
        f"A {thing.size} {thing.colour} {thing.shape} is {'in' if thing.place == 'centre' else 'at'} the {thing.place}"
        for thing in scene.things
    ]
    if count <= 3:
        sentences.append(f"There {_be(count)} {NUMBERS[count]} {_plural('shape', count)}")
    if count == 1:
        sentences.append(_empty(scene, "row", "The {} {} empty", "Every row is used"))
    return sentences


def _llava(scene: Scene) -> list[str]:
    """Fluent, with the number and the background in one opening sentence."""
    count = len(scene.things)
    objects = _plural("object", count)
    sentences = [f"The image shows {NUMBERS[count]} {objects} on a plain {scene.background} background"]
    sentences += [
        f"In the {thing.place} of the image there is a {thing.size} {thing.colour} {thing.shape}"
        for thing in scene.things
    ]
    sentences.append(_empty(scene, "row", "The {} of the image {} empty", "Each row of the image holds something"))
    if count == 1:
        sentences.append(_empty(scene, "column", "Nothing stands in the {}", "Each column holds something"))
    if count <= 3:
        warmth = palette_of(scene)
        mixed = "Warm and cool colours are in balance"
        sentences.append(mixed if warmth == "mixed" else f"Mostly {warmth} colours are used")
    return sentences


def _sharegpt4v(scene: Scene) -> list[str]:
    """Rich: its own names for the places, and a verb for each row."""
    count = len(scene.things)
    sentences = [
        f"A flat {scene.background} canvas stretches across the entire picture",
        f"Upon it {NUMBERS[count]} geometric {_plural('figure', count)} can be seen",
    ]
    for thing in scene.things:
        cell = PLACES.index(thing.place)
        verb = ("floats", "hovers", "rests")[cell // 3]
        where = f"{'along' if 'edge' in RICH_PLACES[cell] else 'in'} the {RICH_PLACES[cell]}"
        sentences.append(f"{where.capitalize()} {verb} a {thing.size} {thing.shape} painted in {thing.colour}")
    if count <= 3:
        sentences.append(_empty(scene, "row", "The {} {} bare", "All three rows are occupied"))
    if count == 1:
        sentences.append(_empty(scene, "column", "The {} {} vacant", "All three columns are occupied"))
    else:
        sentences.append(sizes_of(scene))
    sentences.append(f"The overall palette feels {palette_of(scene)}")
    return sentences


_WRITE: dict[str, Callable[[Scene], list[str]]] = {
    "instructblip": _instructblip,
    "llava": _llava,
    "sharegpt4v": _sharegpt4v,
}


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _empty(scene: Scene, line: str, some: str, none: str) -> str:
    """Say which rows or columns hold nothing: `some` takes their names and, if it has a second slot, is/are."""
    names = ("top", "middle", "bottom") if line == "row" else ("left", "centre", "right")
    cells = [PLACES.index(thing.place) for thing in scene.things]
    used = {cell // 3 if line == "row" else cell % 3 for cell in cells}
    empty = [name for index, name in enumerate(names) if index not in used]
    if not empty:
        return none
    return some.format(f"{' and '.join(empty)} {_plural(line, len(empty))}", _be(len(empty)))


def sizes_of(scene: Scene) -> str:
    """How many things are large, and how many small."""
    large = sum(thing.size == "large" for thing in scene.things)
    small = len(scene.things) - large
    if not (large and small):
        return f"All of them are {'large' if large else 'small'}"
    return f"{NUMBERS[large]} of them {_be(large)} large while {NUMBERS[small]} {_be(small)} small".capitalize()


def palette_of(scene: Scene) -> str:
    """`warm`, `cool` or `mixed`: which colours are more."""
    warm = sum(_is_warm(thing) for thing in scene.things)
    cool = len(scene.things) - warm
    return "mixed" if warm == cool else "warm" if warm > cool else "cool"


def _is_warm(thing: Thing) -> bool:
    return thing.colour in WARM
