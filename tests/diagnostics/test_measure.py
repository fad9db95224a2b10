"""Intervals cover what they say they cover, and a measure survives JSON."""

import json
import math

import numpy as np
import pytest

from action_tokenizers.diagnostics.measure import (
    Kind,
    Measure,
    bernstein,
    bootstrap_t,
    clopper_pearson,
    hoeffding,
    share_interval,
)
from action_tokenizers.errors import ActionValueError

REPETITIONS = 1000


def coverage(interval, draw, truth):
    """The share of repetitions whose interval holds the truth, and the mean width."""
    rng = np.random.default_rng(0)
    found = [interval(draw(rng)) for _ in range(REPETITIONS)]
    return np.mean([low <= truth <= high for low, high in found]), np.mean([high - low for low, high in found])


class TestBootstrapT:
    @pytest.mark.parametrize("n", [20, 50])
    def test_covers_normal_means(self, n):
        share, width = coverage(bootstrap_t, lambda rng: rng.normal(1, 2, n), 1)
        assert 0.93 <= share <= 0.97
        # the oracle knows the law: 2 * 1.96 * sigma / sqrt(n)
        assert width / (2 * 1.96 * 2 / math.sqrt(n)) < 1.2

    @pytest.mark.parametrize("n", [20, 50])
    def test_covers_exponential_means(self, n):
        share, _ = coverage(bootstrap_t, lambda rng: rng.exponential(1, n), 1)
        assert 0.93 <= share <= 0.97

    def test_falls_short_on_heavy_tails(self):
        """Why an interval of a mean is no certificate: rare large episodes are not in the sample."""
        share, _ = coverage(bootstrap_t, lambda rng: rng.pareto(1.5, 20), 2)
        assert share < 0.9

    def test_is_the_same_for_the_same_seed(self):
        values = np.random.default_rng(1).normal(size=12)
        assert bootstrap_t(values, seed=3) == bootstrap_t(values, seed=3) != bootstrap_t(values, seed=4)

    def test_one_episode_shows_nothing(self):
        assert bootstrap_t([1.0]) is None
        assert bootstrap_t([]) is None

    def test_equal_episodes_have_no_spread(self):
        assert bootstrap_t([0.5] * 8) == (0.5, 0.5)
        assert np.std([0.1] * 6) > 0  # by rounding
        assert bootstrap_t([0.1] * 6) == pytest.approx((0.1, 0.1))

    @pytest.mark.parametrize("values", [[0, 0], [7.0] * 4, [0.1] * 3])
    def test_few_equal_episodes_decide_nothing(self, values):
        assert bootstrap_t(values) is None


class TestShares:
    @pytest.mark.parametrize(
        ("values", "low", "high"),
        [
            ([0, 0], 0, 0.8419),
            ([0] * 10, 0, 0.3085),
            ([1] * 10, 0.6915, 1),
            ([1e-17, 0, 0], 0, 0.7076),  # rounding
            ([0.25] * 10, 0.25 * 0.6915, 0.25 + 0.75 * 0.3085),
        ],
    )
    def test_equal_ones_are_as_sure_as_none_of_so_many(self, values, low, high):
        interval, method = share_interval(values)
        assert interval == pytest.approx((low, high), abs=1e-4)
        assert method.startswith("Clopper-Pearson over episodes")

    def test_of_a_difference_of_shares(self):
        interval, _ = share_interval([0.0] * 10, -1.0)
        assert interval == pytest.approx((-0.3085, 0.3085), abs=1e-4)

    @pytest.mark.parametrize("values", [[], [0.0], [0.3] * 4])
    def test_too_few(self, values):
        assert share_interval(values) == (None, None)

    def test_unequal_ones_are_resampled_and_cut_off(self):
        values = [0, 0, 0, 0, 0.1, 0.9]
        interval, method = share_interval(values, seed=3)
        low, high = bootstrap_t(values, seed=3)
        assert low < 0
        assert interval == (0, min(1, high))
        assert method.startswith("bootstrap-t")
        assert share_interval([0.0, 1.0])[0] == (0, 1)

    @pytest.mark.parametrize("n", [3, 10, 40])
    def test_cover_what_few_episodes_show(self, n):
        """Of what is seen in 2 % of episodes most samples show nothing, and must not say that there is nothing."""

        def rare(rng):
            return rng.random(n) * (rng.random(n) < 0.02)

        share, _ = coverage(lambda x: share_interval(x)[0], rare, 0.01)
        assert share >= 0.95


class TestClopperPearson:
    # the values that theory and replay notes quote, two-sided at 95 %
    @pytest.mark.parametrize(
        ("hits", "n", "low", "high"),
        [
            (0, 10, 0, 0.3085),
            (10, 10, 0.6915, 1),
            (1, 25, 0.0010, 0.2035),
            (2, 25, 0.0098, 0.2603),
            (3, 25, 0.0255, 0.3122),
        ],
    )
    def test_known_values(self, hits, n, low, high):
        assert clopper_pearson(hits, n) == pytest.approx((low, high), abs=1e-4)

    @pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
    def test_covers_always(self, p):
        """Exactly: the probability of every count, no simulation."""
        n = 30
        mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        inside = [low <= p <= high for low, high in (clopper_pearson(k, n) for k in range(n + 1))]
        assert np.dot(mass, inside) >= 0.95

    @pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, 0)])
    def test_impossible_counts(self, hits, n):
        with pytest.raises(ActionValueError, match="0 <= hits <= n"):
            clopper_pearson(hits, n)


class TestBounded:
    @pytest.mark.parametrize("interval", [hoeffding, bernstein])
    @pytest.mark.parametrize("a", [0.1, 1, 5])
    def test_covers_always(self, interval, a):
        share, _ = coverage(lambda x: interval(x, 0, 1), lambda rng: rng.beta(a, 2, 20), a / (a + 2))
        assert share >= 0.94

    def test_bernstein_profits_from_small_variance(self):
        x = np.full(400, 0.01)
        x[::20] = 0.05
        wide, narrow = hoeffding(x, 0, 1), bernstein(x, 0, 1)
        assert narrow[1] - narrow[0] < wide[1] - wide[0]

    @pytest.mark.parametrize("values", [[], [0.5, 1.5], [float("nan")]])
    @pytest.mark.parametrize("interval", [hoeffding, bernstein])
    def test_values_outside_their_bounds(self, interval, values):
        with pytest.raises(ActionValueError, match=r"all in 0\.\.1"):
            interval(values, 0, 1)


def test_a_measure_is_plain_json():
    measure = Measure(
        "error",
        np.float64(0.5),
        "half range",
        Kind.CONSISTENT,
        (0.4, math.inf),
        "bootstrap-t",
        {"episodes": 12},
        "held out",
        {"per_dim": np.array([0.5, np.nan])},
    )
    told = json.loads(json.dumps(measure.to_json(), allow_nan=False))
    assert told["kind"] == "consistent"
    assert told["interval"] == [0.4, None]
    assert told["parts"] == {"per_dim": [0.5, None]}
    assert told["n"] == {"episodes": 12}
