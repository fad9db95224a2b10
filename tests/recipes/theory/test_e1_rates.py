"""Rates of learning, exact: -1/2 and -1."""

import itertools

import numpy as np
import pytest


def test_smoke(smoke, measured, verdicts):
    assert verdicts == {"holds": 7, "differs": 0, "misses": 0}
    assert measured("exponent of E TV in n, a stochastic") == pytest.approx(-0.5, abs=0.02)
    assert measured("exponent of E TV in n, a deterministic") == pytest.approx(-1, abs=0.02)
    assert measured("exponent of that regret") == pytest.approx(1, abs=1e-3)


def test_sums_are_those_over_all_data():
    import e1_rates as recipe

    data = np.array(list(itertools.product([0, 1], repeat=6)))
    mass = np.where(data, recipe.CHANCE, 1 - recipe.CHANCE).prod(1)
    assert recipe.stochastic(6) == pytest.approx(mass @ np.abs(data.mean(1) - recipe.CHANCE))
    pairs = np.array(list(itertools.product(data.mean(1), repeat=2)))
    assert recipe.worst_of_class(2, 6) == pytest.approx((np.abs(pairs - 0.5).max(1) ** 2).mean())
    assert recipe.deterministic(4) == pytest.approx(0.25 * 0.75**4)


def test_lower_ends_lose_half_a_cell():
    import e1_rates as recipe

    assert recipe.left_end_regret(1 / 8) == pytest.approx(1 / 16, rel=1e-3)
