"""Tests of difference: against enumeration, against no effect, against a planted one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from scipy.stats import t as student

from recblr.evaluation import significance
from recblr.evaluation.significance import (
    bootstrap_interval,
    compare,
    has_star,
    holm,
    randomisation_p,
    welch_p,
)


def enumerated_p(difference):
    signs = itertools.product((-1, 1), repeat=len(difference))
    sums = [abs(sum(s * d for s, d in zip(sign, difference))) for sign in signs]
    return np.mean([total >= abs(sum(difference)) - 1e-9 for total in sums])


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=8))
def test_randomisation_of_few_users_is_exact(difference):
    assert randomisation_p(np.array(difference)) == pytest.approx(enumerated_p(difference))


def test_sampled_signs_agree_with_all_of_them(monkeypatch):
    difference = np.random.default_rng(0).normal(0.4, 1, 12)
    exact = randomisation_p(difference)
    monkeypatch.setattr(significance, "EXACT_UP_TO", 0)
    sampled = randomisation_p(difference, samples=20_000)
    assert 0.05 < exact < 0.5  # a case that could go wrong
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


def test_bootstrap_interval_is_scipys():
    difference = np.random.default_rng(1).choice([0, 0, 0, 0, 0.5, -0.3, 1.0], 400)
    theirs = bootstrap((difference,), np.mean, method="percentile", n_resamples=9999, rng=1)
    expected = theirs.confidence_interval
    assert bootstrap_interval(difference) == pytest.approx((expected.low, expected.high), abs=3e-3)


def test_no_effect_is_found_at_the_stated_rate_only():
    random = np.random.default_rng(2)
    found, covered, trials = 0, 0, 400
    for trial in range(trials):
        difference = random.choice([0, 0, 0, 1, -1], 60) * random.random(60)
        found += randomisation_p(difference, trial, samples=400) < 0.05
        low, high = bootstrap_interval(difference, trial, samples=400)
        covered += low <= 0 <= high
    spread = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert found / trials < 0.05 + spread
    assert found / trials > 0.05 - spread - 1 / 60  # and not never
    assert covered / trials > 0.95 - spread - 0.015  # percentile intervals are a little short


def test_a_planted_effect_is_found():
    random = np.random.default_rng(3)
    base = random.random((5, 2000)) < 0.08
    better = base | (random.random((5, 2000)) < 0.02)
    result = compare(better.astype(float), base[:3].astype(float))
    assert result.difference > 0 and result.low > 0
    assert result.p_users < 0.001 and result.p_seeds < 0.01
    assert has_star(result.p_users, result.p_seeds, 5, 3)


def test_a_group_against_itself_has_no_difference():
    values = np.random.default_rng(4).random((3, 100))
    result = compare(values, values)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert result.p_users == result.p_seeds == 1
    single = compare(values[:1], values[:1])
    assert single.p_users == 1 and math.isnan(single.p_seeds)


def test_seeds_are_averaged_before_users_are_compared():
    a = np.array([[1.0, 0, 0], [0, 1, 0]])
    b = np.array([[0.5, 0.5, 0]])
    assert compare(a, b).difference == 0 and compare(a, b).p_users == 1


def test_welch():
    a, b = np.array([1.0, 2, 3, 4]), np.array([2.0, 2.5, 6])  # s^2 / n: 5/12 and 19/12
    freedom = 2**2 / ((5 / 12) ** 2 / 3 + (19 / 12) ** 2 / 2)
    assert welch_p(a, b) == pytest.approx(2 * student.sf(1 / math.sqrt(2), freedom))
    assert math.isnan(welch_p(a, b[:1]))
    assert welch_p(np.array([1.0, 1]), np.array([1.0, 1])) == 1
    assert welch_p(np.array([1.0, 1]), np.array([2.0, 2])) == 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.02, float("nan"), 0.01])
    assert adjusted[0] == pytest.approx(0.02) and adjusted[2] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert holm([]) == []


@pytest.mark.parametrize(
    "runs, p, expected",
    [
        ((5, 3), (0.009, 0.009), True), ((3, 5), (0.009, 0.009), True),
        ((5, 2), (0.001, 0.001), False), ((4, 4), (0.001, 0.001), False),
        ((5, 3), (0.011, 0.001), False), ((5, 3), (0.001, 0.011), False),
        ((5, 3), (0.001, float("nan")), False),
    ],
)  # fmt: skip
def test_a_star_needs_both_tests_and_enough_seeds(runs, p, expected):
    assert has_star(*p, *runs) == expected


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones((2, 3)), np.ones((2, 4)), r"\(2, 3\) and \(2, 4\)"),
        (np.ones(3), np.ones(3), "expected"),
        (np.ones((0, 3)), np.ones((2, 3)), "expected"),
        (np.full((1, 3), np.nan), np.ones((2, 3)), "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)
