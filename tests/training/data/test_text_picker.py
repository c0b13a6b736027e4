"""The texts of a sample depend on its row and the random numbers alone, and are drawn as the settings say."""

import collections
import math

import numpy as np
import pytest

from lotlip_data.training.data.text_picker import ScoreUse, TextPicker


def _sample(**subs):
    return {"raw": "raw", **{f"{name}_sub": pieces for name, pieces in subs.items()}}


def test_sub_captions_are_consecutive_and_every_window_occurs():
    picker = TextPicker(["a"], long_texts=1, sub_captions=2, mode="punkt")
    sample = _sample(a=["1.", "2.", "3.", "4."])
    windows = {picker.pick(sample, np.random.default_rng(seed)).long[0] for seed in range(100)}
    assert windows == {"1. 2.", "2. 3.", "3. 4."}


def test_long_texts_are_of_different_captioners_where_there_are_enough():
    sample = _sample(a=["a."], b=["b."], c=["c."])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert len(set(TextPicker("abc", 2, 3, "punkt").pick(sample, rng).long)) == 2


def test_other_long_texts_replace_a_missing_one_and_the_raw_text_replaces_all():
    picker = TextPicker("abc", 3, 3, "punkt")
    two = picker.pick(_sample(a=["a."], b=[], c=["c."]), np.random.default_rng(0))
    assert len(two.long) == 3 and set(two.long) == {"a.", "c."}
    assert picker.pick(_sample(a=[], b=[], c=None), np.random.default_rng(0)).long == ["raw"] * 3


def _scored(**scores):
    """A sample with sub-captions "NAME0.", "NAME1.", … for each captioner, with these scores."""
    sample = {"raw": "raw"}
    for name, (text, pieces) in scores.items():
        sample |= {f"{name}_sub": [f"{name}{index}." for index in range(len(pieces))]}
        sample |= {f"{name}_score": text, f"{name}_sub_scores": pieces}
    return sample


def _shares(picker, sample, draws=4000):
    texts = collections.Counter(picker.pick(sample, np.random.default_rng([1, seed])).long[0] for seed in range(draws))
    return {text: number / draws for text, number in texts.items()}


def test_texts_are_drawn_with_weight_exp_of_score_by_temperature_and_no_score_is_the_mean_weight():
    picker = TextPicker("abc", 1, 1, "punkt", ScoreUse(temperature=0.5))
    sample = _scored(a=(0.5, [None]), b=(0.0, [0.3]), c=(None, [0.1]))
    e = math.e
    weights = {"a0.": e, "b0.": 1, "c0.": (e + 1) / 2}
    expected = {text: weight / sum(weights.values()) for text, weight in weights.items()}
    assert _shares(picker, sample) == pytest.approx(expected, abs=0.03)


def test_windows_are_drawn_with_the_geometric_mean_of_the_weights_of_their_sub_captions():
    picker = TextPicker("a", 1, 2, "punkt", ScoreUse(temperature=1.0))
    shares = _shares(picker, _scored(a=(None, [2.0, 0.0, -2.0])))
    first, second = math.exp(1), math.exp(-1)
    expected = {"a0. a1.": first / (first + second), "a1. a2.": second / (first + second)}
    assert shares == pytest.approx(expected, abs=0.03)


def test_texts_without_any_score_are_drawn_alike():
    picker = TextPicker("ab", 1, 1, "punkt", ScoreUse(temperature=0.1))
    sample = _scored(a=(None, [None, None]), b=(None, [None, None])) | {"b_sub_scores": None}
    assert _shares(picker, sample) == pytest.approx(dict.fromkeys(("a0.", "a1.", "b0.", "b1."), 0.25), abs=0.03)


def test_weighted_long_texts_are_of_different_captioners_where_there_are_enough():
    picker = TextPicker("abc", 3, 1, "punkt", ScoreUse(temperature=0.01))
    sample = _scored(a=(0.0, [0.0]), b=(5.0, [0.0]), c=(-5.0, [0.0]))
    assert picker.pick(sample, np.random.default_rng(0)).long == ["b0.", "a0.", "c0."]


def test_only_the_best_sub_captions_are_used_in_the_order_of_the_text():
    picker = TextPicker("a", 1, 3, "punkt", ScoreUse(best=2))
    assert _shares(picker, _scored(a=(None, [0.9, 0.1, 0.2, 0.8]))) == {"a0. a3.": 1}
    # None is as the mean of the others, and of equal scores the first counts.
    assert _shares(picker, _scored(a=(None, [0.0, None, 1.0, 1.0, 1.0]))) == {"a2. a3.": 1}
    assert _shares(picker, _scored(a=(None, [None, 0.0, 1.0]))) == {"a0. a2.": 1}


def test_a_sample_with_scores_is_drawn_as_ever_where_scores_are_not_used():
    plain, sample = TextPicker("ab", 2, 1, "punkt"), _scored(a=(9.0, [9.0, 0.0]), b=(0.0, [0.0, 9.0]))
    without = {name: value for name, value in sample.items() if "score" not in name}
    for seed in range(50):
        picks = [plain.pick(each, np.random.default_rng(seed)) for each in (sample, without)]
        assert picks[0] == picks[1]


PIECES = ["1.", "2.", "3.", "4."]


def _picks(picker, sample, draws=400):
    return [picker.pick(sample, np.random.default_rng([2, seed])) for seed in range(draws)]


def test_all_sub_captions_are_the_whole_text():
    picker = TextPicker("a", 1, "all", "punkt")
    assert {pick.long[0] for pick in _picks(picker, _sample(a=PIECES), 20)} == {"1. 2. 3. 4."}


def test_the_short_text_of_longclip_is_the_first_sub_caption_of_the_long_one():
    picker = TextPicker("ab", 1, "all", "punkt", short_text="first_sub_caption")
    picks = {(pick.short, pick.long[0]) for pick in _picks(picker, _sample(a=PIECES, b=["5.", "6."]), 50)}
    assert picks == {("1.", "1. 2. 3. 4."), ("5.", "5. 6.")}


def test_a_debiased_short_text_has_some_of_the_other_sub_captions_in_any_order():
    """The number of sub-captions is uniform, and so is each arrangement of as many."""
    picker = TextPicker("a", 1, "all", "punkt", short_text="debiased")
    shorts = collections.Counter(pick.short for pick in _picks(picker, _sample(a=PIECES), 6000))
    lengths = collections.Counter(dict.fromkeys((1, 2, 3), 0))
    for short, number in shorts.items():
        parts = short.split(" ")
        assert len(set(parts)) == len(parts) and set(parts) <= {"2.", "3.", "4."}
        lengths[len(parts)] += number
    assert len(shorts) == 3 + 6 + 6
    assert all(number / 6000 == pytest.approx(1 / 3, abs=0.03) for number in lengths.values())
    assert {pick.long[0] for pick in _picks(picker, _sample(a=PIECES), 5)} == {"1. 2. 3. 4."}


def test_a_debiased_text_of_one_sub_caption_is_that_one():
    picker = TextPicker("a", 1, "all", "punkt", short_text="debiased")
    assert {pick.short for pick in _picks(picker, _sample(a=["1."]), 5)} == {"1."}


@pytest.mark.parametrize("short_text", ["raw", "first_sub_caption", "debiased", "sampled"])
@pytest.mark.parametrize("choice", ["consecutive", "diverse"])
def test_a_sample_without_long_texts_uses_its_raw_text_for_all(short_text, choice):
    picker = TextPicker("a", 2, 3, "punkt", choice=choice, short_text=short_text)
    pick = picker.pick(_sample(a=[]), np.random.default_rng(0))
    assert (pick.short, pick.long) == ("raw", ["raw"] * 2)


def test_a_sampled_short_text_is_of_another_captioner_while_there_are_enough():
    picker = TextPicker("abc", 2, 1, "punkt", short_text="sampled")
    for pick in _picks(picker, _sample(a=["a."], b=["b."], c=["c."]), 20):
        assert {pick.short, *pick.long} == {"a.", "b.", "c."}


def test_diverse_texts_are_of_one_to_s_sub_captions_half_of_them_in_a_row():
    picker = TextPicker("ab", 1, 3, "punkt", choice="diverse", short_text="sampled")
    sample = _sample(a=["1.", "2."], b=["3.", "4.", "5."]) | {"raw": "0."}
    order, lengths, consecutive = "0. 1. 2. 3. 4. 5.", collections.Counter(), 0
    picks = _picks(picker, sample, 3000)
    assert len({pick.short for pick in picks} & {pick.long[0] for pick in picks}) > 100
    for text in (pick.long[0] for pick in picks):
        parts = text.split(" ")
        assert len(set(parts)) == len(parts)
        lengths[len(parts)] += 1
        consecutive += len(parts) == 3 and text in order
    assert set(lengths) == {1, 2, 3}
    assert all(number / 3000 == pytest.approx(1 / 3, abs=0.04) for number in lengths.values())
    # 4 of the 120 arrangements of three are in a row by chance.
    assert consecutive / lengths[3] == pytest.approx(0.5 + 0.5 * 4 / 120, abs=0.05)


def test_diverse_texts_of_a_small_pool_repeat_nothing():
    picker = TextPicker("a", 1, 3, "punkt", choice="diverse")
    assert {pick.long[0] for pick in _picks(picker, _sample(a=["1."]) | {"raw": None}, 20)} == {"1."}


def test_score_weights_draw_sub_captions_of_debiased_and_diverse_texts():
    scores = ScoreUse(temperature=0.01)
    sample = _scored(a=(0.0, [9.0, 1.0, 3.0, 2.0]))
    debiased = TextPicker("a", 1, "all", "punkt", scores, short_text="debiased")
    assert {pick.short for pick in _picks(debiased, sample, 50)} == {"a2.", "a2. a3.", "a2. a3. a1."}
    diverse = TextPicker("a", 1, 1, "punkt", scores, choice="diverse")
    assert {pick.long[0] for pick in _picks(diverse, sample | {"raw": None}, 20)} == {"a0."}


def test_the_summary_is_the_first_of_the_best_sub_captions():
    scores, sample = ScoreUse(best=2), _scored(a=(0.0, [0.0, 3.0, 1.0, 2.0]))
    first = TextPicker("a", 1, "all", "punkt", scores, short_text="first_sub_caption")
    debiased = TextPicker("a", 1, "all", "punkt", scores, short_text="debiased")
    assert {(pick.short, *pick.long) for pick in _picks(first, sample, 5)} == {("a1.", "a1. a3.")}
    assert {pick.short for pick in _picks(debiased, sample, 5)} == {"a3."}
    pool = TextPicker("a", 1, 1, "punkt", scores, choice="diverse")
    assert {pick.long[0] for pick in _picks(pool, sample, 50)} == {"raw", "a1.", "a3."}


def test_prefix_padding_changes_no_text():
    plain, padded = (TextPicker("ab", 2, 2, "punkt", prefix_padding=padding) for padding in (False, True))
    sample = _sample(a=PIECES, b=PIECES)
    for without, with_padding in zip(_picks(plain, sample), _picks(padded, sample), strict=True):
        assert (without.short, without.long, without.padding) == (with_padding.short, with_padding.long, 0.0)
        assert 0 <= with_padding.padding < 1
