"""Gains and fits of systems whose answers can be written down."""

import math

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes
from action_tokenizers.diagnostics.dynamics import (
    ESTIMATORS,
    dynamics_measures,
    fit_dynamics,
    impulse_gain,
    scalar_gain,
    spectral_radius,
)
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.diagnostics.theorems import small_gain

HORIZON = 4


class TestKnownSystems:
    """Numbers that theory gives, or that were computed elsewhere."""

    def test_a_stable_system_accumulates_and_an_unstable_one_explodes(self):
        """e' = alpha e + eps / 2: the slopes of what has added up after H = 4, 8, ..., 128 steps."""
        horizons, half = 2 ** np.arange(2, 8), 1 / 1024

        def added_up(alpha, horizon):
            return sum(half * impulse_gain(alpha, 1, step) for step in range(1, horizon + 1))

        stable = [added_up(0.5, h) for h in horizons]
        assert np.polyfit(np.log(horizons), np.log(stable), 1)[0] == pytest.approx(1.069, abs=5e-4)
        unstable = [added_up(2.0, h) for h in horizons]
        assert np.polyfit(horizons, np.log(unstable), 1)[0] == pytest.approx(0.6939, abs=5e-5)
        assert impulse_gain(0.5, 1, 128) < 2 + 1e-9
        assert impulse_gain(2.0, 1, 20) == 2**20 - 1

    # a, b, K: L g, measured, g / (1 - L g), closed loop gain, 3 g / (1 - L g)
    ROWS = (
        ((0.5, 1, -0.3), 0.6, 1.24, 5, 1.25, 15),
        ((0.5, 1, 0.3), 0.6, 3.79, 5, 5, 15),
        ((0.5, 1, 0.45), 0.9, 8.61, 20, 20, 60),
        ((0.5, 1, 0.55), 1.1, 1.1e5, math.inf, math.inf, math.inf),
        ((0.9, 1, 0.2), 2, 9.4e8, math.inf, math.inf, math.inf),
        ((0.9, 1, -0.5), 5, 1.60, math.inf, 1.67, math.inf),
        ((0.2, 0.3, 1), 0.375, 0.56, 0.6, 0.6, 1.8),
    )

    @pytest.mark.parametrize(("system", "product", "measured", "sharp", "closed", "learned"), ROWS)
    def test_small_gain(self, system, product, measured, sharp, closed, learned):
        """Quantized feedback u = q(K x) beside u = K x under the same noise; bins of half width eps."""
        a, b, slope = system
        found = small_gain(abs(slope), scalar_gain(a, b))
        assert found.product == pytest.approx(product)
        assert found.deviation == pytest.approx(sharp)
        assert found.learned_deviation == pytest.approx(learned)
        loop = impulse_gain(a + b * slope, b)
        assert loop == pytest.approx(closed, rel=2e-3)
        deviation = quantized_feedback(a, b, slope)
        is_stable = math.isfinite(loop)
        near = 0.05 if is_stable and product != 0.9 else 0.12
        assert deviation == pytest.approx(measured, rel=near)
        assert deviation < min(loop, found.deviation)

    def test_gains_of_scalar_systems(self):
        assert scalar_gain(-1.0, 2.0) == math.inf
        assert scalar_gain(-0.5, -1.0) == 2.0

    def test_a_small_error_of_the_expert_can_grow_exponentially(self):
        """x' = .9 x + u, expert .2 x + 1e-3, learner .2 x: training error small, closed loop unstable."""
        gaps = [1e-3 * impulse_gain(0.9 + 0.2, 1, h) for h in (10, 20, 40, 80)]
        assert gaps == pytest.approx([0.0159, 0.0573, 0.443, 20.5], rel=5e-3)


def quantized_feedback(a, b, slope, half=1 / 256, chains=4000, steps=200):
    """Return the largest deviation over chains and steps, in half widths of a cell."""
    random = np.random.default_rng(0)
    x = random.standard_normal(chains)
    y, largest = x, 0.0
    for _ in range(steps):
        noise = 0.3 * random.standard_normal(chains)
        u = (np.floor(slope * y / (2 * half)) + 0.5) * 2 * half
        x, y = (a + b * slope) * x + noise, a * y + b * u + noise
        largest = max(largest, float(np.abs(x - y).max()))
    return largest / half


class TestImpulseGain:
    def test_equals_the_plain_sum(self):
        random = np.random.default_rng(0)
        for _ in range(5):
            a = random.standard_normal((4, 4))
            a *= 0.9 / spectral_radius(a)
            b = random.standard_normal((4, 2))
            plain = sum(np.linalg.norm(np.linalg.matrix_power(a, j) @ b, 2) for j in range(400))
            assert impulse_gain(a, b) == pytest.approx(plain, rel=1e-9)
            assert impulse_gain(a, b, 3) == pytest.approx(
                sum(np.linalg.norm(np.linalg.matrix_power(a, j) @ b, 2) for j in range(3))
            )

    @pytest.mark.parametrize("a", [0.0, 0.5, 0.99, 0.9999, -0.9999])
    def test_slow_systems_are_summed_to_the_end(self, a):
        assert impulse_gain(a, 1) == pytest.approx(scalar_gain(a, 1))

    def test_what_does_not_forget_has_no_gain(self):
        assert impulse_gain(np.eye(2), np.eye(2)) == math.inf
        assert impulse_gain(np.eye(2), np.eye(2), 7) == 7
        assert impulse_gain(np.eye(2), np.zeros((2, 1))) == 0
        assert impulse_gain(10.0, 1, 1000) == math.inf  # beyond what a number holds
        assert impulse_gain(0.5, 1, 0) == 0


A = np.array([[0.9, 0.1], [-0.1, 0.8]])
B = np.array([[0.0, 0.3], [0.5, 0.1]])
K = np.array([[-0.2, 0.1], [0.1, -0.3]])


def demonstrations(n=30, steps=100, spread=0.2, policy=None, noise=0.05, seed=0, a=A):
    """States and actions of x' = A x + B u + w under u = policy(x) + spread."""
    random = np.random.default_rng(seed)
    policy = policy or (lambda x: K @ x)
    states, actions = np.empty((n, steps, 2)), np.empty((n, steps, 2))
    for i in range(n):
        x = random.standard_normal(2)
        for h in range(steps):
            u = policy(x) + spread * random.standard_normal(2)
            states[i, h], actions[i, h] = x, u
            x = a @ x + B @ u + noise * random.standard_normal(2) + 0.1
    return list(states), list(actions)


def physical(dynamics, matrix):
    """A matrix of standardised states in the states' own units."""
    return matrix * dynamics.scale[:, None] / dynamics.scale


def states_measured(states, actions, seed=0, **fields):
    episodes = Episodes([a.astype(np.float32) for a in actions], **fields)
    tokenizer = BinningTokenizer(horizon=HORIZON).fit(episodes)
    subject = Subject.of(tokenizer, episodes, HORIZON, np.ones(episodes.action_dim))
    return dynamics_measures(subject, states, seed=seed)


def test_with_noise_in_the_actions_everything_is_found():
    states, actions = demonstrations()
    fitted = fit_dynamics(states, actions)
    assert fitted.refusal == ""
    np.testing.assert_allclose(physical(fitted, fitted.A), A, atol=0.02)
    np.testing.assert_allclose(fitted.B * fitted.scale[:, None], B, atol=0.01)
    np.testing.assert_allclose(fitted.K / fitted.scale, K, atol=0.05)
    np.testing.assert_allclose(physical(fitted, fitted.closed), A + B @ K, atol=0.02)
    np.testing.assert_allclose(fitted.spread, [0.04, 0.04], rtol=0.05)
    # the truth in the units of the fit
    scaled, effect = A * fitted.scale / fitted.scale[:, None], B / fitted.scale[:, None]
    gain, loop = states_measured(states, actions)
    true_gain = impulse_gain(scaled, effect)
    assert gain.value == pytest.approx(true_gain, rel=0.04)
    true_loop = impulse_gain(scaled + effect @ (K * fitted.scale), effect)
    assert loop.value == pytest.approx(true_loop, rel=0.04)
    assert gain.kind is loop.kind is Kind.PROXY
    assert gain.interval[0] < true_gain < gain.interval[1]
    assert loop.interval[0] < true_loop < loop.interval[1]
    assert gain.n == {"episodes": 30, "steps": 30 * 99}
    assert gain.parts["within"]["16"] < gain.value
    assert [row.name for row in ESTIMATORS] == [gain.name, loop.name]


class TestDynamics:
    def test_the_gain_of_a_scalar_system(self):
        random = np.random.default_rng(0)
        u = random.standard_normal((20, 200, 1))
        x = np.zeros((20, 200, 1))
        for h in range(199):
            x[:, h + 1] = 0.8 * x[:, h] + 0.5 * u[:, h]
        fitted = fit_dynamics(list(x), list(u))
        assert fitted.gain * fitted.scale[0] == pytest.approx(scalar_gain(0.8, 0.5), rel=1e-3)
        assert fitted.unexplained[0] < 1e-6

    def test_a_demonstrator_that_is_a_function_of_the_state_is_refused(self):
        """Only A + BK can be known, and is."""
        states, actions = demonstrations(spread=0.0)
        fitted = fit_dynamics(states, actions)
        assert fitted.freedom < 1e-3
        np.testing.assert_allclose(physical(fitted, fitted.closed), A + B @ K, atol=0.02)
        assert np.abs(physical(fitted, fitted.A) - A).max() > 0.02
        for measure in states_measured(states, actions):
            assert measure.value is None
            assert measure.interval is None
            assert "almost a function of the state" in measure.caveat
            assert measure.parts["closed_loop_radius"] == pytest.approx(spectral_radius(A + B @ K), abs=0.02)
            assert measure.parts["open_loop_radius"] is None
            measure.to_json()

    def test_a_curved_function_of_the_state_is_refused_too(self):
        """A line leaves 5 % of these actions open, and would find a gain in the curve."""
        states, actions = demonstrations(policy=lambda x: np.tanh(3 * x), spread=0.0, n=60)
        fitted = fit_dynamics(states, actions)
        line = (
            np.concatenate(actions)
            - np.concatenate(states) @ np.linalg.lstsq(np.concatenate(states), np.concatenate(actions), rcond=None)[0]
        )
        assert line.var(0).min() / np.concatenate(actions).var(0).min() > 0.02
        assert "almost a function" in fitted.refusal

    @pytest.mark.parametrize(("spread", "is_enough"), [(0.05, True), (0.03, False)])
    def test_it_takes_two_percent_of_the_range_in_noise(self, spread, is_enough):
        states, actions = demonstrations(spread=spread, noise=0.01, n=60)
        fitted = fit_dynamics(states, actions)
        assert fitted.freedom == pytest.approx(spread, rel=0.1)
        assert (fitted.refusal == "") == is_enough
        np.testing.assert_allclose(fitted.B * fitted.scale[:, None], B, atol=0.05)

    def test_the_trap_shows_no_gain(self):
        """Its expert is a function of the state."""
        episodes = Trap(2**-7).demonstrations(20, horizon=200)
        subject = Subject.of(BinningTokenizer(horizon=1).fit(episodes), episodes, 1, np.ones(1))
        gain, _ = dynamics_measures(subject, episodes.states)
        assert gain.value is None

    def test_a_system_that_does_not_forget(self):
        """Position control: the state is the sum of the actions."""
        random = np.random.default_rng(0)
        actions = [random.uniform(-1, 1, (200, 2)) for _ in range(10)]
        states = [np.concatenate([np.zeros((1, 2)), np.cumsum(u, 0)[:-1]]) for u in actions]
        gain, _ = states_measured(states, actions)
        assert gain.value > 1000  # ridge and rounding decide on which side of 1 an eigenvalue of 1 comes to lie
        scale = np.array(gain.parts["state_scale"])
        assert gain.parts["within"]["64"] == pytest.approx(64 / scale.min(), rel=0.01)
        unstable, _ = states_measured(*demonstrations(a=np.diag([1.05, 0.5]), steps=40))
        assert unstable.value == math.inf
        assert "does not forget" in unstable.caveat
        assert unstable.to_json()["value"] is None

    def test_units_of_the_actions_are_half_ranges(self):
        states, actions = demonstrations()
        episodes = Episodes([10 * a.astype(np.float32) for a in actions])
        tokenizer = BinningTokenizer(horizon=HORIZON).fit(episodes)
        tenfold = Subject.of(tokenizer, episodes, HORIZON, np.full(2, 10.0))
        assert dynamics_measures(tenfold, states)[0].value == pytest.approx(
            states_measured(states, actions)[0].value, rel=1e-4
        )

    def test_dims_that_never_move_and_copies_of_states(self):
        states, actions = demonstrations()
        copied = [np.concatenate([x, x[:, :1], np.full((len(x), 1), 3.0)], 1) for x in states]
        still = [np.concatenate([u, np.full((len(u), 1), 0.7)], 1) for u in actions]
        gain, _ = states_measured(copied, still)
        assert "dims [2] never move" in gain.caveat
        assert gain.value is not None
        fitted = fit_dynamics(copied, still)
        assert not fitted.B[:, 2].any()
        assert not fitted.A[3].any()
        assert fitted.scale[3] == 1
        # both copies move: twice the square in that direction
        alone = fit_dynamics(states, actions)
        assert alone.gain < fitted.gain < 2**0.5 * alone.gain
        assert math.isfinite(alone.condition)
        assert fitted.condition > 1000

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda x, u: (x[:1], [v[:9] for v in u[:1]]), "8 steps are too few for 2 states and 2 actions"),
            (lambda x, u: (x, [np.zeros_like(v) for v in u]), "No action ever moves"),
            (lambda x, u: (x, [v[:, [0, 0]] for v in u]), "or of each other"),
        ],
    )
    def test_data_that_cannot_show_it(self, change, words):
        states, actions = change(*demonstrations())
        states = [x[: len(u)] for x, u in zip(states, actions, strict=True)]
        for measure in states_measured(states, actions):
            assert measure.value is None
            assert words in measure.caveat

    def test_one_episode_has_no_interval(self):
        states, actions = demonstrations(n=1, steps=400)
        gain, _ = states_measured(states, actions)
        assert gain.value is not None
        assert gain.interval is None
        assert "One episode has no interval" in gain.caveat

    def test_steps_that_were_not_recorded_are_left_out(self):
        states, actions = demonstrations()
        pads = [np.zeros(100, np.bool_) for _ in states]
        pads[0][60:] = True
        spoiled = [states[0].copy(), *states[1:]]
        spoiled[0][60:] = 99.0
        cut, _ = states_measured(spoiled, actions, action_is_pad=pads)
        expected, _ = states_measured([states[0][:60], *states[1:]], [actions[0][:60], *actions[1:]])
        assert cut.value == pytest.approx(expected.value)
        assert cut.n["steps"] == 59 + 29 * 99

    def test_padded_states_may_hold_anything(self):
        states, actions = demonstrations(n=6)
        pads = [np.arange(100) >= 90] * 6
        clean, spoiled = (
            states_measured(
                [np.where(mask[:, None], junk, x) for x, mask in zip(states, pads, strict=True)],
                actions,
                action_is_pad=pads,
            )
            for junk in (0.0, np.nan)
        )
        assert spoiled == clean

    def test_episodes_that_begin_with_a_padded_step_show_nothing(self):
        states, actions = demonstrations(n=6)
        for measure in states_measured(states, actions, action_is_pad=[np.arange(100) == 0] * 6):
            assert measure.value is None
            assert measure.n == {"episodes": 0, "steps": 0}
            assert "0 steps are too few" in measure.caveat
            assert "up to its first padded step: 6 of 6 have one" in measure.caveat

    def test_equal_seeds_give_equal_measures(self):
        states, actions = demonstrations(n=6)
        one, again, other = (states_measured(states, actions, seed=seed) for seed in (1, 1, 2))
        assert one == again
        assert one[0].interval != other[0].interval

    def test_episodes_of_a_single_step_show_nothing(self):
        fitted = fit_dynamics([np.zeros((1, 2))] * 3, [np.zeros((1, 1))] * 3)
        assert "0 steps are too few" in fitted.refusal


@pytest.mark.slow
def test_gain_interval_covers_the_truth():
    """Of the percentile bootstrap with 20 episodes: approximate, and said so."""
    hits = 0
    for seed in range(200):
        states, actions = demonstrations(n=20, steps=40, seed=seed)
        gain, _ = states_measured(states, actions, seed=seed)
        scale = np.array(gain.parts["state_scale"])
        hits += gain.interval[0] <= impulse_gain(A * scale / scale[:, None], B / scale[:, None]) <= gain.interval[1]
    assert 0.85 <= hits / 200 <= 0.99
