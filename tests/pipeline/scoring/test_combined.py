"""The combined score is the weighted mean of standardised scores."""

import numpy as np
import pytest

from lotlip_data.pipeline.scoring.combined import Moments, combine


def _moments(scores):
    moments = Moments()
    moments.add(scores)
    return moments


def test_moments_of_parts_are_those_of_the_whole_and_missing_scores_do_not_count():
    scores = np.random.default_rng(0).normal(1000.0, 3.0, 1000).astype(np.float32)
    whole, parts = _moments(scores), Moments()
    for start in (0, 1, 7, 400):
        end = {0: 1, 1: 7, 7: 400, 400: 1000}[start]
        parts.merge(_moments(np.append(scores[start:end], np.nan)))
    parts.merge(_moments(np.full(3, np.nan)))
    assert parts.count == whole.count == 1000
    assert (parts.mean, parts.deviation) == pytest.approx((whole.mean, whole.deviation), rel=1e-9)
    assert whole.deviation == pytest.approx(scores.astype(np.float64).std(), rel=1e-9)


def test_scores_of_any_range_count_alike_and_lower_ones_with_a_minus():
    a, b = np.array([0.1, 0.2, 0.3]), np.array([3000.0, 2000.0, 1000.0])
    moments = {"a": _moments(a), "b": _moments(b)}
    up = np.sqrt(1.5)
    assert combine({"a": a, "b": b}, moments, {}, ["b"]) == pytest.approx([-up, 0, up])
    assert combine({"a": a, "b": b}, moments, {}, []) == pytest.approx([0, 0, 0])
    assert combine({"a": a, "b": b}, moments, {"a": 3, "b": 1}, []) == pytest.approx([-up / 2, 0, up / 2])
    assert combine({"a": a, "b": b}, moments, {"b": 2}, []) == pytest.approx([up, 0, -up])


def test_a_missing_score_leaves_the_others_and_none_at_all_is_no_score():
    a, b = np.array([0.0, 1.0, np.nan, np.nan]), np.array([2.0, np.nan, 4.0, np.nan])
    combined = combine({"a": a, "b": b}, {"a": _moments(a), "b": _moments(b)}, {}, [])
    assert combined[:3] == pytest.approx([-1, 1, 1]) and np.isnan(combined[3])


def test_scores_that_are_all_equal_count_as_average():
    equal = np.full(3, 0.7)
    assert combine({"a": equal}, {"a": _moments(equal)}, {}, []).tolist() == [0, 0, 0]
