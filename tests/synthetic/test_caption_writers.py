"""What every long text promises: the scene's facts and no others, 4 to 8 sentences, the same text every time."""

import nltk
import pytest

from lotlip_data.synthetic.caption_facts import Fact, FactScore, facts_in, facts_of
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, sample_scene

SEEDS = SPLITS["evaluation"][:3000]
LENGTHS = {"instructblip": {4, 5}, "llava": {5, 6}, "sharegpt4v": {6, 7, 8}}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_long_text_tells_the_facts_of_its_scene_and_no_others(writer: str) -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        assert facts_in(long_text(scene, writer)) == facts_of(scene)


@pytest.mark.parametrize("writer", WRITERS)
def test_each_writer_keeps_to_its_length_and_repeats_no_sentence(writer: str) -> None:
    seen = set()
    for seed in SEEDS:
        sentences = long_text(sample_scene(seed), writer).removesuffix(".").split(". ")
        assert len(set(sentences)) == len(sentences)
        seen.add(len(sentences))
    assert seen == LENGTHS[writer]


@pytest.mark.parametrize("writer", WRITERS)
def test_punkt_and_the_authors_rule_cut_a_long_text_alike(writer: str) -> None:
    punkt = nltk.tokenize.punkt.PunktSentenceTokenizer()
    for seed in SEEDS[:500]:
        text = long_text(sample_scene(seed), writer)
        assert [sentence.removesuffix(".") for sentence in punkt.tokenize(text)] == text.removesuffix(".").split(". ")


def test_the_three_writers_differ_and_each_is_a_function_of_the_scene() -> None:
    for seed in SEEDS[:200]:
        texts = [long_text(sample_scene(seed), writer) for writer in WRITERS]
        assert len(set(texts)) == 3
        assert texts == [long_text(sample_scene(seed), writer) for writer in WRITERS]


def test_an_unknown_writer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no writer 'gpt': choose one of instructblip, llava, sharegpt4v"):
        long_text(sample_scene(0), "gpt")


def test_raw_texts_are_short_and_reproducible_and_never_tell_a_whole_scene_of_several_things() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        text = raw_text(scene)
        assert text == raw_text(sample_scene(seed))
        assert 0 < len(text.split()) <= 8
        if len(scene.things) > 1:
            assert not facts_of(scene) <= facts_in(text)


def test_a_garbled_sentence_is_a_claim_that_costs_precision() -> None:
    assert facts_in("A large red star green is at the top left.") == {Fact(None, "star", "large", "top left")}
    assert facts_in("A red star and a blue ring.") == {Fact(None, "star", None, None), Fact(None, "ring", None, None)}
    assert facts_in("The top row is empty. The background is gray.") == frozenset()


def test_the_score_counts_told_true_and_right_facts() -> None:
    scene = next(scene for scene in map(sample_scene, SEEDS) if len(scene.things) == 2)
    first, second, *_ = long_text(scene, "instructblip").split(". ")[1:]
    score = FactScore()
    score.add(f"{first}. A large red blue ring is here.", scene)
    assert (score.told, score.true, score.right, score.texts) == (2, 2, 1, 1)
    assert (score.precision, score.recall) == (0.5, 0.5)
    score.add(f"{first}. {second}.", scene)
    assert (score.precision, score.recall) == (0.75, 0.75)
    assert (FactScore().precision, FactScore().recall) == (0.0, 0.0)
