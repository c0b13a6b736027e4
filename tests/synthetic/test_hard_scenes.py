"""Crowded scenes: near twins differ in one attribute, captioners misread at their rates, texts say what they should."""

from dataclasses import asdict

import pytest

from lotlip_data.synthetic.caption_facts import facts_in, facts_of
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.hard_scenes import (
    EYESIGHT,
    FEWEST,
    MOST,
    crowded_scene,
    crowded_text,
    misread,
    near_twins,
    salient,
    short_text,
)
from lotlip_data.synthetic.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, SPLITS, Scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import load_model

SEEDS = SPLITS["study"][:300]
WRITERS = (*EYESIGHT, "person", "detailed")


def test_scenes_hold_three_to_six_things_in_different_cells_and_use_every_value() -> None:
    scenes = [crowded_scene(seed) for seed in SEEDS]
    for scene in scenes:
        cells = [PLACES.index(thing.place) for thing in scene.things]
        assert FEWEST <= len(cells) <= MOST and cells == sorted(set(cells))
        assert scene == crowded_scene(scene.seed)
    things = [thing for scene in scenes for thing in scene.things]
    for name, values in {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}.items():
        assert {getattr(thing, name) for thing in things} == set(values)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_a_near_twin_differs_in_exactly_one_attribute_of_one_thing() -> None:
    changed = set()
    for seed in SEEDS:
        scene = crowded_scene(seed)
        twins = near_twins(scene, [-1, -2, -3])
        assert len({twin.things for twin in twins} | {scene.things}) == 4
        assert [twin.seed for twin in twins] == [-1, -2, -3]
        for twin in twins:
            assert twin.background == scene.background and len(twin.things) == len(scene.things)
            (before,) = set(scene.things) - set(twin.things)
            (after,) = set(twin.things) - set(scene.things)
            (name,) = (key for key, value in asdict(before).items() if asdict(after)[key] != value)
            changed.add(name)
            cells = [PLACES.index(thing.place) for thing in twin.things]
            assert cells == sorted(set(cells))
    assert changed == {"colour", "shape", "size", "place"}


@pytest.mark.parametrize("writer", ["person", "detailed", "sharegpt4v"])
def test_the_texts_of_near_twins_differ(writer: str) -> None:
    for seed in SEEDS[:100]:
        scene = crowded_scene(seed)
        texts = {crowded_text(one, writer) for one in (scene, *near_twins(scene, [1, 2, 3]))}
        assert len(texts) == 4


@pytest.mark.parametrize("writer", EYESIGHT)
def test_a_captioner_errs_as_often_as_it_should_and_always_alike(writer: str) -> None:
    """Of 1,500 scenes' things: within four standard deviations of its rates."""
    things = lost = wrong = 0
    for seed in SPLITS["study"][:1500]:
        scene = crowded_scene(seed)
        seen = misread(scene, writer)
        assert seen == misread(scene, writer) and seen.background == scene.background and seen.things
        things += len(scene.things)
        lost += len(scene.things) - len(seen.things)
        wrong += len(set(seen.things) - set(scene.things))
    eyes = EYESIGHT[writer]
    for count, rate in ((lost, eyes.left_out), (wrong, eyes.wrong * (1 - eyes.left_out))):
        assert abs(count - things * rate) < 4 * (things * rate * (1 - rate)) ** 0.5


def test_the_person_tells_every_fact_and_no_other() -> None:
    for scene in map(crowded_scene, SEEDS):
        assert facts_in(crowded_text(scene, "person")) == facts_of(scene)


def test_detailed_texts_have_12_to_20_sentences_and_a_persons_4_to_7() -> None:
    counts = {name: {_sentences(scene, name) for scene in map(crowded_scene, SEEDS)} for name in ("detailed", "person")}
    assert min(counts["detailed"]) >= 12 and max(counts["detailed"]) <= 20
    assert counts["person"] == {4, 5, 6, 7}


def _sentences(scene: Scene, writer: str) -> int:
    return crowded_text(scene, writer).count(".")


def test_a_short_text_names_the_salient_thing_alone_and_a_raw_text_no_other() -> None:
    for scene in map(crowded_scene, SEEDS):
        thing = salient(scene)
        assert thing.size == "large" or all(one.size == "small" for one in scene.things)
        words = short_text(scene).split()
        assert [word for word in words if word in SHAPES] == [thing.shape]
        assert {thing.size, thing.colour, scene.background} <= set(words) and thing.place in short_text(scene)
        named = [word for word in raw_text(scene).replace("_", " ").split() if word in SHAPES]
        assert set(named) <= {thing.shape}


def test_the_vocabulary_knows_every_word_and_no_text_is_longer_than_256_tokens() -> None:
    settings = {"image_tower": "tiny-vit-crowded", "text_tower": "tiny-bert-crowded", "context_length": 256}
    model = load_model(make_config(preset="demo", corner_tokens=4, **settings))
    unknown = model.tokenizer.tokenizer.unk_token_id
    for scene in map(crowded_scene, SEEDS):
        texts = [crowded_text(scene, writer) for writer in WRITERS]
        encoded = model.tokenizer.encode([*texts, raw_text(scene), short_text(scene)])
        assert not any(encoded.cut) and all(unknown not in ids for ids in encoded.ids)
