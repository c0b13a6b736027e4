"""A long text states exactly the scene's facts in 4 to 8 sentences, and is a pure function of the scene."""

import nltk
import pytest

from lotlip_data.synthetic.caption_facts import Fact, FactScore, scene_facts, text_facts
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, sample_scene

SEEDS = SPLITS["evaluation"][:3000]
LENGTHS = {"instructblip": {4, 5}, "llava": {5, 6}, "sharegpt4v": {6, 7, 8}}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_long_text_states_exactly_the_facts_of_its_scene(writer: str) -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        assert text_facts(long_text(scene, writer)) == scene_facts(scene)


@pytest.mark.parametrize("writer", WRITERS)
def test_each_writer_has_its_number_of_sentences_and_repeats_none(writer: str) -> None:
    lengths = set()
    for seed in SEEDS:
        sentences = long_text(sample_scene(seed), writer).removesuffix(".").split(". ")
        assert len(set(sentences)) == len(sentences)
        lengths.add(len(sentences))
    assert lengths == LENGTHS[writer]


@pytest.mark.parametrize("writer", WRITERS)
def test_punkt_and_the_authors_rule_split_a_long_text_alike(writer: str) -> None:
    punkt = nltk.tokenize.punkt.PunktSentenceTokenizer()
    for seed in SEEDS[:500]:
        text = long_text(sample_scene(seed), writer)
        assert [sentence.removesuffix(".") for sentence in punkt.tokenize(text)] == text.removesuffix(".").split(". ")


def test_the_three_writers_differ_and_each_is_deterministic() -> None:
    for seed in SEEDS[:200]:
        texts = [long_text(sample_scene(seed), writer) for writer in WRITERS]
        assert len(set(texts)) == 3
        assert texts == [long_text(sample_scene(seed), writer) for writer in WRITERS]


def test_the_error_on_an_unknown_writer_lists_the_known_writers() -> None:
    with pytest.raises(ValueError, match="no writer 'gpt': choose one of instructblip, llava, sharegpt4v"):
        long_text(sample_scene(0), "gpt")


def test_raw_texts_are_short_and_deterministic_and_describe_no_scene_of_several_objects_completely() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        text = raw_text(scene)
        assert text == raw_text(sample_scene(seed))
        assert 0 < len(text.split()) <= 8
        if len(scene.objects) > 1:
            assert not scene_facts(scene) <= text_facts(text)


def test_a_garbled_sentence_is_a_statement_that_lowers_precision() -> None:
    assert text_facts("A large red star green is at the top left.") == {Fact(None, "star", "large", "top left")}
    assert text_facts("A red star and a blue ring.") == {Fact(None, "star", None, None), Fact(None, "ring", None, None)}
    assert text_facts("The top row is empty. The background is gray.") == frozenset()


def test_the_score_counts_stated_true_and_correct_facts() -> None:
    scene = next(scene for scene in map(sample_scene, SEEDS) if len(scene.objects) == 2)
    first, second, *_ = long_text(scene, "instructblip").split(". ")[1:]
    score = FactScore()
    score.add(f"{first}. A large red blue ring is here.", scene)
    assert (score.stated, score.true, score.correct, score.texts) == (2, 2, 1, 1)
    assert (score.precision, score.recall) == (0.5, 0.5)
    score.add(f"{first}. {second}.", scene)
    assert (score.precision, score.recall) == (0.75, 0.75)
    assert (FactScore().precision, FactScore().recall) == (0.0, 0.0)
