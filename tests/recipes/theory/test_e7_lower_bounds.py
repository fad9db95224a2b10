"""What no method can avoid, with exact total variation."""

import pytest


def test_smoke(measured, verdicts):
    assert verdicts["misses"] == verdicts["differs"] == 0
    assert measured("n = 8") == pytest.approx(0.0593, abs=5e-5)
    assert measured("limit of n · loss") == pytest.approx(0.0597, abs=5e-5)
    assert measured("c = .6: probability") < 1 / 8 < measured("c = .2: probability")


@pytest.mark.parametrize("count", [4, 10, 64])
def test_collisions_vanish_with_twice_the_bins(count):
    import e7_lower_bounds as recipe

    assert recipe.collisions(count, count) == 2
    assert recipe.collisions(2 * count, count) == 0


def test_two_experts_in_a_cell_cost_half_of_it():
    import e7_lower_bounds as recipe

    assert recipe.least_worst_regret(16) == pytest.approx((1 / 32, 1 / 32))
