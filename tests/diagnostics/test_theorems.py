"""The formulas are those of the theorems, term by term."""

import math

import numpy as np
import pytest

from action_tokenizers import ActionValueError
from action_tokenizers.diagnostics.theorems import (
    Bound,
    bound_augmented,
    bound_deterministic,
    bound_stochastic,
    floor,
    product,
    small_gain,
    statistical_rate,
    two_point_deterministic,
    two_point_stochastic,
)


def test_small_gain_where_nothing_follows():
    assert small_gain(1.0, math.inf).deviation == math.inf
    assert small_gain(2.0, 0.5).steps_of_error == math.inf
    assert small_gain(0.0, math.inf).product == 0
    assert small_gain(0.5, 1.0).learned_deviation == 6


def slope(bound):
    return np.polyfit(np.log(bound.horizon), np.log(bound.total), 1)[0]


def test_terms_are_those_of_the_theorems():
    h = np.array([1.0, 10.0])
    two = bound_stochastic(h, total_variation=0.1, mean_error=0.01, policy_slope=0.5, gain=2.0, reward_slope=3.0)
    assert two.terms["learning"] == pytest.approx([0.1, 1])
    assert two.terms["departing"] == pytest.approx([0.01, 1])  # H^2 eps kappa_1 g
    assert two.terms["executing"] == pytest.approx([0.09, 0.9])  # H eps L_r (1 + g)
    assert two.total == pytest.approx([0.2, 2.9])
    three = bound_deterministic(h, total_variation=0.1, worst_error=0.01, lipschitz=0.25, gain=2.0, reward_slope=3.0)
    assert three.terms["departing"].tolist() == [0, 0]
    # k + 1 = 3 / (1 - 1/2) = 6; H L_r (1 + g) (k + 1) eps
    assert three.terms["executing"] == pytest.approx([0.54, 5.4])
    seven = bound_augmented(h, total_variation=0.1, mean_error=0.01, gain=2.0, reward_slope=3.0)
    assert seven.terms.keys() == {"learning", "executing"}
    assert seven.total == pytest.approx([0.19, 1.9])


def test_no_bound_exceeds_all_there_is_to_lose():
    bound = bound_stochastic([1, 1000], total_variation=0.1, mean_error=0.1, policy_slope=1, gain=2)
    assert bound.total[1] > 1000
    assert bound.capped.tolist() == [pytest.approx(0.1 + 0.2 + 0.3), 1000]


def test_slopes_in_the_horizon():
    """n = 500, log|Pi| = ln 256, log|M| = ln 64, eps = .01, k = 4: 1.00, 1.00 and, without smoothness, 1.996."""
    h = 2.0 ** np.arange(5, 11)
    alone = statistical_rate(500, math.log(256), is_deterministic=True)
    together = statistical_rate(500, math.log(256) + math.log(64))
    augmented = bound_augmented(h, total_variation=together, mean_error=0.01, gain=1.0)
    assert slope(augmented) == pytest.approx(1, abs=1e-9)
    given = {"total_variation": alone, "worst_error": 0.01, "gain": 1.0, "k": 4.0}
    smooth = bound_deterministic(h, lipschitz=0.1, **given)  # 5 L g <= 2
    assert not smooth.terms["departing"].any()
    assert slope(smooth) == pytest.approx(1, abs=1e-9)
    rough = bound_deterministic(h, lipschitz=0.5, **given)
    assert rough.terms["departing"] == pytest.approx(h**2)
    assert slope(rough) == pytest.approx(1.996, abs=1e-3)


@pytest.mark.parametrize("product", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_smallest_k_is_the_smallest_that_works(product):
    factor = 3 / (1 - product)
    given = {"total_variation": 0.0, "worst_error": 0.01, "lipschitz": product, "gain": 1.0}
    best = bound_deterministic([10], **given)
    assert not best.terms["departing"].any()
    assert best.terms["executing"] == pytest.approx([10 * 2 * factor * 0.01])
    if product:  # a k a little smaller does not do, a larger one costs more
        assert bound_deterministic([10], k=factor - 1 - 1e-6, **given).terms["departing"].any()
    assert bound_deterministic([10], k=factor - 1 + 1e-6, **given).total > best.total


def test_where_the_expert_is_too_steep_everything_may_be_lost():
    bound = bound_deterministic([10, 20], total_variation=0, worst_error=0.01, lipschitz=1.0, gain=1.0)
    assert bound.capped.tolist() == [10, 20]
    exact = bound_deterministic([10], total_variation=0.1, worst_error=0.0, lipschitz=1.0, gain=math.inf)
    assert exact.total == pytest.approx([1.0])  # no error, no loss, whatever the system


@pytest.mark.parametrize("k", [2, 1.5, math.nan])
def test_k_that_no_theorem_allows(k):
    with pytest.raises(ActionValueError, match="k > 2"):
        bound_deterministic([10], total_variation=0, worst_error=0.01, lipschitz=0.1, gain=1, k=k)


def test_the_term_that_dominates_changes_with_the_horizon():
    h = np.arange(1.0, 200.0)
    bound = bound_stochastic(h, total_variation=0.01, mean_error=0.01, policy_slope=0.45, gain=2.0)
    # H^2 .009 passes H .03 between 3 and 4
    assert bound.dominating() == [{"from": 1.0, "term": "executing"}, {"from": 4.0, "term": "departing"}]
    one = Bound(h, {"learning": h, "executing": h / 2})
    assert one.dominating() == [{"from": 1.0, "term": "learning"}]


def test_floor_is_a_quarter_of_the_error_per_step():
    assert floor([10, 1000], 0.02) == pytest.approx([0.05, 5])
    assert floor([10], 100.0).tolist() == [10]


def test_statistical_rates_are_the_papers():
    for n in (100, 10_000):
        squared = 6 * math.log(2 * 256 / 0.05) / n
        assert statistical_rate(n, math.log(256)) == pytest.approx(math.sqrt(squared))
        assert statistical_rate(n, math.log(256), is_deterministic=True) == pytest.approx(min(1, 4 * squared))
    assert statistical_rate(1, 5.0) == 1
    more = statistical_rate(10_000, math.log(256), confidence=0.001)
    assert more > statistical_rate(10_000, math.log(256))


@pytest.mark.parametrize(
    ("n", "size", "confidence"),
    [(0, 1, 0.05), (5, -1, 0.05), (5, 1, 0), (5, 1, 1), (5, math.nan, 0.05), (math.nan, 1, 0.05)],
)
def test_rates_of_nothing(n, size, confidence):
    with pytest.raises(ActionValueError, match="n >= 1"):
        statistical_rate(n, size, confidence=confidence)


GIVEN = {
    bound_stochastic: {
        "total_variation": 0.1,
        "mean_error": 0.1,
        "policy_slope": 1.0,
        "gain": 2.0,
        "reward_slope": 1.0,
    },
    bound_deterministic: {
        "total_variation": 0.1,
        "worst_error": 0.1,
        "lipschitz": 1.0,
        "gain": 2.0,
        "reward_slope": 1.0,
    },
    bound_augmented: {"total_variation": 0.1, "mean_error": 0.1, "gain": 2.0, "reward_slope": 1.0},
    floor: {"worst_error": 0.1},
}


@pytest.mark.parametrize("bound", GIVEN)
def test_numbers_that_no_theorem_is_about(bound):
    for name in GIVEN[bound]:
        for bad in (-0.01, math.nan):
            with pytest.raises(ActionValueError, match=f"expected {name} a number of at least 0, got {bad}"):
                bound([10], **{**GIVEN[bound], name: bad})
    for bad in (-5, 0, math.nan, math.inf):
        with pytest.raises(ActionValueError, match="expected horizons of finitely many steps, more than 0, got "):
            bound([10, bad], **GIVEN[bound])


@pytest.mark.parametrize(("lipschitz", "gain", "name"), [(-1, 2, "lipschitz"), (1, -2, "gain"), (1, math.nan, "gain")])
def test_no_small_gain_of_such_either(lipschitz, gain, name):
    with pytest.raises(ActionValueError, match=f"expected {name} a number of at least 0"):
        small_gain(lipschitz, gain)


def test_a_factor_of_nothing_is_nothing():
    assert product(0.0, math.inf) == product(math.inf, 2.0, 0.0) == 0.0
    assert product(2.0, 3.0, 0.5) == 3.0
    assert small_gain(math.inf, 0.0).product == 0


class TestLowerBounds:
    def test_of_deterministic_experts(self):
        """Theorem 8: TV -> .2835, n times the loss -> .0597 (.0593 at n = 8), slope -1."""
        many = two_point_deterministic(10**6)
        assert many.total_variation == pytest.approx(0.2835, abs=5e-5)
        assert 10**6 * many.loss == pytest.approx(0.0597, abs=5e-5)
        assert 8 * two_point_deterministic(8).loss == pytest.approx(0.0593, abs=5e-5)
        sizes = 2.0 ** np.arange(3, 14)
        losses = [two_point_deterministic(int(n)).loss for n in sizes]
        assert np.polyfit(np.log(sizes), np.log(losses), 1)[0] == pytest.approx(-1, abs=2e-3)
        for n in (2, 8, 100):
            found = two_point_deterministic(n)
            assert found.total_variation <= found.shown <= 0.8

    def test_the_bound_shown_tends_to_its_limit(self):
        assert two_point_deterministic(10**6).shown == pytest.approx(0.753, abs=5e-4)

    @pytest.mark.parametrize(("c", "limit", "chance"), [(0.6, 0.770, 0.0575), (0.2, 0.311, 0.172)])
    def test_of_stochastic_experts(self, c, limit, chance):
        """Theorem 9 with the paper's c = 3/5 falls short of its 1/8; with c = 1/5 it does not."""
        found = two_point_stochastic(100_000, c)
        assert found.total_variation == pytest.approx(limit, abs=1e-3)
        assert found.probability == pytest.approx(chance, abs=5e-4)
        assert (found.probability >= 1 / 8) == (c <= 0.337)
        assert found.total_variation <= found.shown

    def test_the_shown_bound_of_theorem_9(self):
        assert two_point_stochastic(100_000, 0.6).shown == pytest.approx(0.8735, abs=1e-4)

    def test_equals_a_sum_over_all_data(self):
        n, shift = 6, 0.2 / math.sqrt(6)
        data = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        p, q = (np.where(data, 0.5 + s, 0.5 - s).prod(1) for s in (shift, -shift))
        assert two_point_stochastic(n, 0.2).total_variation == pytest.approx(np.abs(p - q).sum() / 2)

    def test_what_each_means_has_a_name_of_its_own(self):
        """Theorem 8 tells a share of the horizon, Theorem 9 a probability: they are no numbers to compare."""
        assert not hasattr(two_point_deterministic(8), "probability")
        assert not hasattr(two_point_stochastic(8, 0.2), "loss")

    @pytest.mark.parametrize(("n", "c"), [(1, 0.6), (100, 0.0), (4, -0.2), (100, math.nan)])
    def test_shifts_that_are_no_probability(self, n, c):
        with pytest.raises(ActionValueError, match="1/2"):
            two_point_stochastic(n, c)

    @pytest.mark.parametrize("n", [0, -3, math.nan])
    def test_no_demonstrations(self, n):
        for found in (lambda: two_point_deterministic(n), lambda: two_point_stochastic(n, 0.2)):
            with pytest.raises(ActionValueError, match="expected at least 1 demonstration, got n = "):
                found()
