"""Crowded scenes: near twins differ in one attribute, captioners err at their rates, texts state the right facts."""

from dataclasses import asdict

import pytest

from lotlip_data.synthetic.caption_facts import scene_facts, text_facts
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.hard_scenes import (
    CAPTIONER_ERRORS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    WEB_NOISE,
    WebNoise,
    crowded_scene,
    crowded_text,
    misread,
    near_twins,
    salient_object,
    short_text,
    web_text,
)
from lotlip_data.synthetic.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, SPLITS, Scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import load_model

SEEDS = SPLITS["study"][:300]
WRITERS = (*CAPTIONER_ERRORS, "person", "detailed")


def test_scenes_hold_three_to_six_objects_in_different_cells_and_use_every_value() -> None:
    scenes = [crowded_scene(seed) for seed in SEEDS]
    for scene in scenes:
        cells = [PLACES.index(obj.place) for obj in scene.objects]
        assert MIN_OBJECTS <= len(cells) <= MAX_OBJECTS and cells == sorted(set(cells))
        assert scene == crowded_scene(scene.seed)
    objects = [obj for scene in scenes for obj in scene.objects]
    for name, values in {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}.items():
        assert {getattr(obj, name) for obj in objects} == set(values)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_a_near_twin_differs_in_exactly_one_attribute_of_one_object() -> None:
    changed_attributes = set()
    for seed in SEEDS:
        scene = crowded_scene(seed)
        twins = near_twins(scene, [-1, -2, -3])
        assert len({twin.objects for twin in twins} | {scene.objects}) == 4
        assert [twin.seed for twin in twins] == [-1, -2, -3]
        for twin in twins:
            assert twin.background == scene.background and len(twin.objects) == len(scene.objects)
            (before,) = set(scene.objects) - set(twin.objects)
            (after,) = set(twin.objects) - set(scene.objects)
            (name,) = (key for key, value in asdict(before).items() if asdict(after)[key] != value)
            changed_attributes.add(name)
            cells = [PLACES.index(obj.place) for obj in twin.objects]
            assert cells == sorted(set(cells))
    assert changed_attributes == {"colour", "shape", "size", "place"}


@pytest.mark.parametrize("writer", ["person", "detailed", "sharegpt4v"])
def test_the_texts_of_near_twins_differ(writer: str) -> None:
    for seed in SEEDS[:100]:
        scene = crowded_scene(seed)
        texts = {crowded_text(variant, writer) for variant in (scene, *near_twins(scene, [1, 2, 3]))}
        assert len(texts) == 4


@pytest.mark.parametrize("writer", CAPTIONER_ERRORS)
def test_a_captioner_errs_at_its_rates_and_deterministically(writer: str) -> None:
    """The error counts over 1,500 scenes are within four standard deviations of the rates."""
    objects = omitted = wrong = 0
    for seed in SPLITS["study"][:1500]:
        scene = crowded_scene(seed)
        described = misread(scene, writer)
        assert described == misread(scene, writer) and described.background == scene.background and described.objects
        objects += len(scene.objects)
        omitted += len(scene.objects) - len(described.objects)
        wrong += len(set(described.objects) - set(scene.objects))
    errors = CAPTIONER_ERRORS[writer]
    for count, rate in ((omitted, errors.omitted), (wrong, errors.wrong * (1 - errors.omitted))):
        assert abs(count - objects * rate) < 4 * (objects * rate * (1 - rate)) ** 0.5


def test_the_person_states_exactly_the_facts_of_the_scene() -> None:
    for scene in map(crowded_scene, SEEDS):
        assert text_facts(crowded_text(scene, "person")) == scene_facts(scene)


def test_detailed_texts_have_12_to_20_sentences_and_those_of_a_person_4_to_7() -> None:
    counts = {
        name: {_sentence_count(scene, name) for scene in map(crowded_scene, SEEDS)} for name in ("detailed", "person")
    }
    assert min(counts["detailed"]) >= 12 and max(counts["detailed"]) <= 20
    assert counts["person"] == {4, 5, 6, 7}


def _sentence_count(scene: Scene, writer: str) -> int:
    return crowded_text(scene, writer).count(".")


def test_a_short_text_names_only_the_salient_object_and_a_raw_text_no_other() -> None:
    for scene in map(crowded_scene, SEEDS):
        obj = salient_object(scene)
        assert obj.size == "large" or all(other.size == "small" for other in scene.objects)
        words = short_text(scene).split()
        assert [word for word in words if word in SHAPES] == [obj.shape]
        assert {obj.size, obj.colour, scene.background} <= set(words) and obj.place in short_text(scene)
        named = [word for word in raw_text(scene).replace("_", " ").split() if word in SHAPES]
        assert set(named) <= {obj.shape}


def _named(text: str) -> tuple[set[str], set[str]]:
    """The colours and the shapes that a raw text names."""
    words = set(text.replace("_", " ").split())
    return words & set(COLOURS), words & set(SHAPES)


@pytest.mark.parametrize("noise", [WebNoise(1.0, 0.0, 0.0), WebNoise(0.0, 0.0, 1.0), WebNoise(0.0, 0.0, 0.0)])
def test_a_raw_text_names_what_is_not_there_or_nothing_or_the_salient_object(noise: WebNoise) -> None:
    for scene in map(crowded_scene, SEEDS):
        colours, shapes = _named(web_text(scene, noise))
        assert bool(colours or shapes) != bool(noise.nothing)
        if noise.wrong:
            assert not colours & {obj.colour for obj in scene.objects}
            assert not shapes & {obj.shape for obj in scene.objects}
        elif not noise.nothing:
            assert colours <= {salient_object(scene).colour} and shapes <= {salient_object(scene).shape}
        else:
            assert not set(web_text(scene, noise).split()) & set(BACKGROUNDS)


def test_a_raw_text_of_another_picture_tells_nothing_about_this_one() -> None:
    """Colours agree as often as those of two pictures drawn at random: one in eight."""
    texts = [(scene, web_text(scene, WebNoise(0.0, 1.0, 0.0))) for scene in map(crowded_scene, SPLITS["study"][:2000])]
    agree = [salient_object(scene).colour in _named(text)[0] for scene, text in texts if _named(text)[0]]
    assert abs(sum(agree) / len(agree) - 1 / len(COLOURS)) < 4 * (1 / 8 * 7 / 8 / len(agree)) ** 0.5


def test_the_noise_of_raw_texts_has_its_stated_shares_and_is_the_same_in_every_call() -> None:
    """The counts over 4,000 scenes are within four standard deviations of the shares."""
    scenes = [crowded_scene(seed) for seed in SPLITS["study"][:4000]]
    texts = [web_text(scene) for scene in scenes]
    assert texts == [web_text(scene) for scene in scenes]
    counts = {"wrong": 0, "other": 0, "nothing": 0}
    for scene, text in zip(scenes, texts, strict=True):
        for kind in counts:
            alone = WebNoise(**{name: float(name == kind) for name in counts})
            counts[kind] += text == web_text(scene, alone) and text != web_text(scene, WebNoise(0.0, 0.0, 0.0))
    for kind, count in counts.items():
        share = getattr(WEB_NOISE, kind)
        assert abs(count / len(scenes) - share) < 4 * (share * (1 - share) / len(scenes)) ** 0.5, kind


def test_the_vocabulary_has_every_word_and_no_text_has_more_than_256_tokens() -> None:
    settings = {"image_tower": "tiny-vit-crowded", "text_tower": "tiny-bert-crowded", "context_length": 256}
    model = load_model(make_config(preset="demo", corner_tokens=4, **settings))
    unknown = model.tokenizer.tokenizer.unk_token_id
    for scene in map(crowded_scene, SEEDS):
        texts = [crowded_text(scene, writer) for writer in WRITERS]
        encoded = model.tokenizer.encode([*texts, raw_text(scene), web_text(scene), short_text(scene)])
        assert not any(encoded.truncated) and all(unknown not in ids for ids in encoded.ids)
