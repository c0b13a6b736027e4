"""Three writers of long texts, and the short noisy alt texts of the web.

A long text is a deterministic function of what is visible, so a captioner can learn to write it word for word. Each
object has one sentence with its size, colour, shape and place, in reading order of the cells. The other sentences
describe background, number, layout, sizes or palette. Sentences end in ". " and have no abbreviations, so Punkt and the
rule `text.split(". ")` split a text alike. Only the sentences about objects name a shape; `caption_facts` relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lotlip_data.synthetic.scenes import PLACES, Scene, SceneObject

WRITERS = ("instructblip", "llava", "sharegpt4v")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
WARM = frozenset({"red", "orange", "yellow", "pink"})

# The ShareGPT4V writer's names of the nine cells, in the order of `PLACES`.
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


NAMING_FORMS = {
    "{obj.size} {obj.colour} {obj.shape} stock photo": 4,
    "{obj.colour} {obj.shape} on {background} background": 4,
    "{obj.colour} {obj.shape} vector image free download": 4,
    "{obj.size} {obj.colour} {obj.shape}": 4,
    "Buy {obj.colour} {obj.shape} online | Free shipping": 3,
    "{obj.colour} {obj.shape} at the {obj.place} #{number}": 3,
    "{obj.colour}_{obj.shape}_{number}.jpg": 3,
    "{obj.shape} clip art, {background}": 2,
    "Pretty {obj.colour} decoration - item {number}": 2,
}
"""Forms of alt texts that name an object, with their weights."""


def long_text(scene: Scene, writer: str) -> str:
    """The writer's description of the scene: 4–5 sentences (instructblip), 5–6 (llava) or 6–8 (sharegpt4v).

    Raises ValueError for an unknown writer.
    """
    if writer not in _WRITE:
        raise ValueError(f"no writer {writer!r}: choose one of {', '.join(WRITERS)}")
    return " ".join(f"{sentence}." for sentence in _WRITE[writer](scene))


def raw_text(scene: Scene) -> str:
    """An alt text as on the web: at most the most prominent object, often incompletely, sometimes junk."""
    rng = np.random.default_rng([scene.seed, 2])
    obj = min(scene.objects, key=lambda obj: obj.size != "large")  # the first large object, else the first
    return alt_text(obj, scene.background, rng, NAMING_FORMS | {"IMG_{number}.JPG": 1})


def alt_text(obj: SceneObject, background: str, rng: np.random.Generator, forms: Mapping[str, int]) -> str:
    """A text in one of the forms, which are drawn with the given weights."""
    number = int(rng.integers(100, 10_000))
    weights = np.array(list(forms.values()), dtype=float)
    form = list(forms)[int(rng.choice(len(forms), p=weights / weights.sum()))]
    return form.format(obj=obj, background=background, number=number)


def _instructblip(scene: Scene) -> list[str]:
    """Terse sentences."""
    count = len(scene.objects)
    sentences = [f"The background is {scene.background}"]
    sentences += [
        f"A {obj.size} {obj.colour} {obj.shape} is {'in' if obj.place == 'centre' else 'at'} the {obj.place}"
        for obj in scene.objects
    ]
    if count <= 3:
        sentences.append(f"There {_be(count)} {NUMBERS[count]} {_plural('shape', count)}")
    if count == 1:
        sentences.append(_empty(scene, "row", "The {} {} empty", "Every row is used"))
    return sentences


def _llava(scene: Scene) -> list[str]:
    """Fluent sentences; the first states the number of objects and the background."""
    count = len(scene.objects)
    objects = _plural("object", count)
    sentences = [f"The image shows {NUMBERS[count]} {objects} on a plain {scene.background} background"]
    sentences += [
        f"In the {obj.place} of the image there is a {obj.size} {obj.colour} {obj.shape}" for obj in scene.objects
    ]
    sentences.append(_empty(scene, "row", "The {} of the image {} empty", "Each row of the image holds something"))
    if count == 1:
        sentences.append(_empty(scene, "column", "Nothing stands in the {}", "Each column holds something"))
    if count <= 3:
        warmth = palette(scene)
        mixed = "Warm and cool colours are in balance"
        sentences.append(mixed if warmth == "mixed" else f"Mostly {warmth} colours are used")
    return sentences


def _sharegpt4v(scene: Scene) -> list[str]:
    """Rich sentences, with other names of the places and a verb per row."""
    count = len(scene.objects)
    sentences = [
        f"A flat {scene.background} canvas stretches across the entire picture",
        f"Upon it {NUMBERS[count]} geometric {_plural('figure', count)} can be seen",
    ]
    for obj in scene.objects:
        cell = PLACES.index(obj.place)
        verb = ("floats", "hovers", "rests")[cell // 3]
        where = f"{'along' if 'edge' in RICH_PLACES[cell] else 'in'} the {RICH_PLACES[cell]}"
        sentences.append(f"{where.capitalize()} {verb} a {obj.size} {obj.shape} painted in {obj.colour}")
    if count <= 3:
        sentences.append(_empty(scene, "row", "The {} {} bare", "All three rows are occupied"))
    if count == 1:
        sentences.append(_empty(scene, "column", "The {} {} vacant", "All three columns are occupied"))
    else:
        sentences.append(sizes_sentence(scene))
    sentences.append(f"The overall palette feels {palette(scene)}")
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


def _empty(scene: Scene, line: str, template: str, none_empty: str) -> str:
    """The sentence that names the empty rows or columns.

    Args:
        scene: The scene.
        line: "row" or "column".
        template: The sentence; its first slot takes the names, its second slot, if there is one, "is" or "are".
        none_empty: The sentence if no row or column is empty.
    """
    names = ("top", "middle", "bottom") if line == "row" else ("left", "centre", "right")
    cells = [PLACES.index(obj.place) for obj in scene.objects]
    used = {cell // 3 if line == "row" else cell % 3 for cell in cells}
    empty = [name for index, name in enumerate(names) if index not in used]
    if not empty:
        return none_empty
    return template.format(f"{' and '.join(empty)} {_plural(line, len(empty))}", _be(len(empty)))


def sizes_sentence(scene: Scene) -> str:
    """The sentence that states how many objects are large and how many are small."""
    large = sum(obj.size == "large" for obj in scene.objects)
    small = len(scene.objects) - large
    if not (large and small):
        return f"All of them are {'large' if large else 'small'}"
    return f"{NUMBERS[large]} of them {_be(large)} large while {NUMBERS[small]} {_be(small)} small".capitalize()


def palette(scene: Scene) -> str:
    """`warm`, `cool` or `mixed`: which kind of colour is more frequent."""
    warm = sum(_is_warm(obj) for obj in scene.objects)
    cool = len(scene.objects) - warm
    return "mixed" if warm == cool else "warm" if warm > cool else "cool"


def _is_warm(obj: SceneObject) -> bool:
    return obj.colour in WARM
