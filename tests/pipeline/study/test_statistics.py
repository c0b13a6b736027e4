"""Paired differences, Holm's correction and power, against SciPy's own tests and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lotlip_data.pipeline.study.statistics import (
    LEVEL,
    POWER,
    holm,
    largest_deviation,
    mean_difference,
    needed_seeds,
    power,
    smallest_effect,
)


def test_a_difference_has_the_interval_and_the_p_value_of_a_paired_t_test() -> None:
    left, right = np.random.default_rng(0).normal((3.0, 1.0), 2.0, (9, 2)).T
    difference = mean_difference((left - right).tolist())
    test = stats.ttest_rel(left, right)
    assert difference is not None and difference.p == pytest.approx(test.pvalue)
    for level in (0.05, 0.003):
        assert difference.interval(level) == pytest.approx(tuple(test.confidence_interval(1 - level)))
    assert difference.interval(LEVEL) == pytest.approx((difference.low, difference.high))


def test_two_seeds_give_no_interval_and_equal_differences_one_without_width() -> None:
    """Figures come in steps, so two differences are often equal, and their interval would have no width."""
    assert mean_difference([]) is None and mean_difference([-4.6, -4.6]) is None
    equal, zero = mean_difference([2.0] * 3), mean_difference([0.0] * 3)
    assert equal is not None and (equal.low, equal.high, equal.p) == (2, 2, 0)
    assert zero is not None and (zero.low, zero.high, zero.p) == (0, 0, 1)


def test_holm_multiplies_the_smallest_p_value_by_all_tests_and_keeps_the_order() -> None:
    """The worked example of four tests: 0.005 × 4, 0.01 × 3, 0.03 × 2, then not below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_power_is_the_share_of_simulated_studies_that_find_the_effect() -> None:
    """Within four standard deviations of 4,000 simulated studies."""
    rng = np.random.default_rng(0)
    for seeds, effect, level in ((8, 2.5, LEVEL), (12, 4.0, LEVEL / 11)):
        samples = rng.normal(effect, 2.0, (4000, seeds))
        found = (stats.ttest_1samp(samples, 0, axis=1).pvalue < level) & (samples.mean(1) > 0)
        expected = power(effect, 2.0, seeds, level)
        assert abs(found.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_the_smallest_effect_is_found_with_the_stated_power_and_needs_no_more_seeds() -> None:
    for seeds in (8, 10, 12):
        effect = smallest_effect(3.0, seeds, LEVEL / 11)
        assert power(effect, 3.0, seeds, LEVEL / 11) == pytest.approx(POWER)
        assert needed_seeds(effect + 1e-6, 3.0, LEVEL / 11) == seeds
    assert smallest_effect(0.0, 8) == 0 and needed_seeds(0.01, 3.0, most=20) is None


def test_the_largest_deviation_covers_the_true_one_with_its_confidence() -> None:
    samples = np.random.default_rng(0).normal(0, 2.0, (4000, 4)).std(axis=1, ddof=1)
    covered = np.mean([largest_deviation(each, 4, 0.8) >= 2.0 for each in samples])
    assert abs(covered - 0.8) < 4 * math.sqrt(0.16 / 4000)
