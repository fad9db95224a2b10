"""Distances of laws against brute force, known laws and each other."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import erf, log_softmax, ndtr, softmax

from action_tokenizers import ActionShapeError, ActionValueError, BinningTokenizer, Range
from action_tokenizers.diagnostics.coupling import (
    exact_tv,
    log_ratio,
    logit_certificate,
    maximal_coupling,
    sequence_tv,
    threshold_cost,
)
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.policy import check_normalised, checked
from action_tokenizers.diagnostics.variation import STEEPEST
from tests.fakes.policies import STATE_SCALE, Deterministic, Gaussian, Listed, Mute, bins


def chain(n=4, v=5):
    """An autoregressive law over all v**n sequences: the next id depends on the last one and on the state."""
    random = np.random.default_rng(5)
    start, move, pull = random.normal(size=v), random.normal(size=(v, v)), random.normal(size=(n, v))
    rows = np.array(list(itertools.product(range(v), repeat=n)))

    def logits(states):
        # the log-probability of every sequence, by the chain rule
        shift = states[:, :1, None] * pull
        total = log_softmax(start + shift[:, 0], axis=-1)[:, rows[:, 0]]
        for j in range(1, n):
            total += log_softmax(move + shift[:, None, j], axis=-1)[:, rows[:, j - 1], rows[:, j]]
        return total

    return Listed(rows, logits)


class TestSequenceTV:
    def test_estimate_against_the_exact_value(self):
        """As in the notes on the estimators: exact .3826, estimated within .0031 from 20000 draws."""
        law = chain()
        here = np.zeros((1, 1), np.float32)
        low, high = 0.0, 3.0
        for _ in range(40):
            middle = (low + high) / 2
            tv = exact_tv(law.law(here), law.law(np.full((1, 1), middle)))[0]
            low, high = (middle, high) if tv < 0.3826 else (low, middle)
        there = np.full((1, 1), low, np.float32)
        assert exact_tv(law.law(here), law.law(there))[0] == pytest.approx(0.3826, abs=1e-4)
        found = sequence_tv(law, here, there, 20000, seed=1)
        assert found.value[0] == pytest.approx(0.3826, abs=0.0031)
        assert found.low[0] < 0.3826 < found.high[0]
        assert found.high[0] - found.low[0] == pytest.approx(2 * math.sqrt(math.log(40) / 40000))

    def test_is_unbiased_and_its_interval_holds(self):
        law = chain()
        states, others = np.zeros((400, 1), np.float32), np.full((400, 1), 0.3, np.float32)
        exact = exact_tv(law.law(states[:1]), law.law(others[:1]))[0]
        found = sequence_tv(law, states, others, 20)
        assert found.value.mean() == pytest.approx(exact, abs=4 * found.value.std() / 20)
        assert ((found.low <= exact) & (exact <= found.high)).mean() >= 0.95

    def test_ends(self):
        law = chain()
        same = np.zeros((1, 1), np.float32)
        assert sequence_tv(law, same, same, 100).value[0] == 0
        apart = Deterministic(bins(), lambda x: x[:, None])
        assert sequence_tv(apart, same, same + 1, 3).value[0] == 1

    def test_a_sum_that_depends_on_the_state(self):
        """No ids ever come twice, so that only two states side by side show it."""
        tokenizer = bins(512, horizon=4)
        policy = Mute(Gaussian(tokenizer, spread=0.5, steps=4))
        right = policy.log_prob
        policy.log_prob = lambda states, ids: right(states, ids) - np.abs(states[:, 0]) / 100
        guarded = checked(policy, tokenizer)
        states = np.array([[0.0], [100.0]], np.float32)
        assert not check_normalised(guarded, states)
        with pytest.raises(ActionValueError, match=r"differ between state row 0, .* and its neighbour"):
            sequence_tv(guarded, states[:1], states[1:])
        policy.log_prob = right
        assert 0 < sequence_tv(guarded, states[:1], states[1:]).value[0] < 0.3


def worst_set(p, q, near):
    """Strassen by brute force: the most by which P(A) exceeds Q of what is near A, over all sets A."""
    sets = np.array(list(itertools.product([False, True], repeat=len(p))))
    around = (sets[:, :, None] & near).any(1)
    return (sets @ p - around @ q).max()


class TestThresholdCost:
    @pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 2)])
    def test_against_brute_force(self, shape):
        random = np.random.default_rng(len(shape))
        for _ in range(60):
            k = int(random.integers(1, 8))
            p, q = random.dirichlet(np.full(k, 0.5)), random.dirichlet(np.full(k, 0.5))
            actions = random.normal(size=(k, *shape)).round(1)
            steps = actions.reshape(k, 1, -1) if len(shape) < 2 else actions
            distance = np.linalg.norm(steps[:, None] - steps, axis=-1).max(-1)
            for eps in (0.0, *random.choice(distance.ravel(), 3)):
                found = threshold_cost(p, q, actions, eps)
                exact = worst_set(p, q, distance <= eps)
                assert exact - 1e-9 <= found <= exact + k * 2.0**-29 + 1e-9

    def test_line_and_flow_agree(self):
        random = np.random.default_rng(3)
        points = random.normal(size=200)
        p, q = random.dirichlet(np.ones(200)), random.dirichlet(np.ones(200))
        plane = np.stack([points, np.zeros(200)], 1)
        for eps in (0.0, 0.01, 0.1, 1.0):
            assert threshold_cost(p, q, plane, eps) == pytest.approx(threshold_cost(p, q, points, eps), abs=1e-6)

    def test_ends(self):
        p, q, actions = np.array([0.7, 0.3, 0.0]), np.array([0.2, 0.3, 0.5]), np.array([0.0, 1.0, 5.0])
        assert threshold_cost(p, q, actions, 0.0) == pytest.approx(exact_tv(p, q))
        assert threshold_cost(p, q, actions, 5.0) == pytest.approx(0, abs=1e-12)
        # all may step by one place: no mass need stay where both laws have some
        assert threshold_cost([0.5, 0.5, 0], [0, 0.5, 0.5], np.array([0.0, 1.0, 2.0]), 1.0) == 0

    @pytest.mark.parametrize("width", [1, 2])
    def test_what_does_not_decode_is_like_itself_only(self, width):
        actions = np.full((3, width), np.nan)
        actions[1] = 0
        assert threshold_cost([0.5, 0.5, 0], [0, 0.5, 0.5], actions, 1e9) == pytest.approx(0.5)
        assert threshold_cost([0.5, 0.5, 0], [0.5, 0.5, 0], actions, 1e9) == 0

    def test_bad_laws(self):
        with pytest.raises(ActionShapeError, match=r"\(2,\), \(3,\) and \(3,\)"):
            threshold_cost(np.ones(2) / 2, np.ones(3) / 3, np.zeros(3), 1)
        with pytest.raises(ActionValueError, match="in q, got a sum of 2"):
            threshold_cost(np.ones(2) / 2, np.ones(2), np.zeros(2), 1)
        with pytest.raises(ActionValueError, match="in p, got a sum of nan"):
            threshold_cost(np.array([np.nan, 1]), np.ones(2) / 2, np.zeros(2), 1)


def test_maximal_coupling_is_one_and_maximal():
    law = chain(n=2, v=4)
    n = 20000
    here, there = np.zeros((n, 1), np.float32), np.full((n, 1), 0.5, np.float32)
    p, q = law.law(here[:1])[0], law.law(there[:1])[0]
    policy, drawn = checked(law), law.sample(here, seed=1)
    ratio = log_ratio(policy, here, there, drawn)
    ids, others, missing = maximal_coupling(policy, here, there, drawn, ratio, seed=2)
    assert missing.mean() < 0.02
    differs = (ids != others).any(1) | missing
    assert differs.mean() == pytest.approx(exact_tv(p, q), abs=0.01)
    for rows, exact in ((ids, p), (others[~missing], q)):
        counts = np.bincount(rows @ [4, 1], minlength=16) / len(rows)
        assert exact_tv(counts, exact) < 0.02


class TestCertificate:
    def test_inequality_on_random_logits(self):
        random = np.random.default_rng(0)
        for scale in (0.01, 1, 5):
            z = random.normal(size=(10**4, 6)) * scale
            other = z + random.normal(size=z.shape) * random.choice([0.01, 1, 10], (len(z), 1))
            bound = logit_certificate(z, other)
            assert (exact_tv(softmax(z, -1), softmax(other, -1)) <= bound + 1e-12).all()
            assert (bound <= np.abs(z - other).max(-1) / 2 + 1e-12).all()

    def test_is_sharp_for_two_ids(self):
        z = np.array([0.7, -0.7])
        assert logit_certificate(z, -z) == pytest.approx(exact_tv(softmax(z), softmax(-z)))

    def test_impossible_ids(self):
        never = -np.inf
        assert logit_certificate([0.0, 1.0, never], [0.0, 1.0, never]) == 0
        assert logit_certificate([0.0, 1.0, never], [0.0, 1.0, -50.0]) == 1
        assert logit_certificate([0.0, never, never], [3.0, never, never]) == 0


class TestGaussianExpert:
    """The law of a Gaussian policy's bins is at most as far apart as the Gaussians, whatever the bins."""

    @pytest.mark.parametrize("shift", [0.001, 0.05, 0.3])
    def test_any_bins(self, shift):
        random = np.random.default_rng(0)
        most = erf(shift / (2 * math.sqrt(2) * 0.1))
        for _ in range(200):
            edges = np.sort(random.uniform(-1, 1, random.integers(1, 40)))
            laws = [np.diff(ndtr([-np.inf, *((edges - mean) / 0.1), np.inf])) for mean in (0.0, shift)]
            assert exact_tv(*laws) <= most + 1e-12
            edges[0] = shift / 2
            laws = [np.diff(ndtr([-np.inf, *((np.sort(edges) - mean) / 0.1), np.inf])) for mean in (0.0, shift)]
            assert exact_tv(*laws) == pytest.approx(most)

    def test_known_numbers(self):
        most = erf(0.05 / (2 * math.sqrt(2) * 0.1))
        assert most == pytest.approx(0.1974, abs=5e-5)
        linear = STEEPEST / 0.1 * 0.05
        assert linear == pytest.approx(0.1995, abs=5e-5)
        tokenizer = bins(16)  # an edge at 0
        policy = Gaussian(tokenizer)
        pair = np.array([[-0.025], [0.025]], np.float32) * STATE_SCALE
        p, q = checked(policy, tokenizer, horizon=1).table(pair)
        assert exact_tv(p, q) == pytest.approx(0.1974, abs=5e-5)


class TestDeterministicPolicy:
    """u = arctan x, as ids: total variation is 1 where an id flips, the cost 0 where no action jumps."""

    def test_bins_of_eps_never_jump_by_three(self):
        eps = 1 / 64
        tokenizer = bins(128)  # of width eps
        x = np.random.default_rng(0).uniform(-1, 1, (20000, 1))
        y = x + np.random.default_rng(1).uniform(-eps, eps, x.shape)
        u, w = (tokenizer.quantize(np.arctan(z)[:, None].astype(np.float32))[:, 0, 0] for z in (x, y))
        assert (np.abs(u - w) > 3 * eps).sum() == 0
        assert 0.2 < (u != w).mean() < 0.5  # what total variation would count
        coarse = bins(32)  # of width 4 eps: they must jump by it
        u, w = (coarse.quantize(np.arctan(z)[:, None].astype(np.float32))[:, 0, 0] for z in (x, y))
        assert (np.abs(u - w) > 3 * eps).mean() > 0.05

    def test_the_trap_jumps_across_its_border_at_every_distance(self):
        trap = Trap(2.0**-7)
        tokenizer = trap.tokenizer(1)
        policy = checked(Deterministic(tokenizer, lambda x: np.arctan(x)[:, None]), tokenizer)
        border = trap.intervals[1].low
        every = policy.decode(np.arange(tokenizer.vocab_size)[:, None])[0]
        for apart in (1e-2, 1e-3, 1e-4):
            p, q = policy.table(np.array([[border + apart / 10], [border - apart]], np.float32))
            assert threshold_cost(p, q, every, 3 * trap.epsilon) == exact_tv(p, q) == 1
            assert threshold_cost(p, q, every, 1.0) == 0

    def test_states_of_two_dims(self):
        """An expert clip(.5 x1 + .3 x2, -2, 2), 16 bins: ids flip at a fifth of the pairs, no action jumps."""
        random = np.random.default_rng(0)
        ramp = np.linspace(-2, 2, 64, dtype=np.float32)[:, None, None]
        tokenizer = BinningTokenizer(range=Range([-2.0], [2.0]), bins=16).fit(ramp)
        policy = Deterministic(tokenizer, lambda x: (x @ [0.5, 0.3]).clip(-2, 2)[:, None, None])
        x = random.normal(size=(20000, 2))
        radius = (0.375 - 2 * 0.125) / math.hypot(0.5, 0.3)
        angle, r = random.uniform(0, 2 * np.pi, len(x)), radius * np.sqrt(random.random(len(x)))
        y = x + np.stack([r * np.cos(angle), r * np.sin(angle)], 1)
        ids, others = policy.sample(x, seed=0), policy.sample(y, seed=0)
        assert (ids != others).mean() == pytest.approx(0.21, abs=0.015)
        jump = np.abs(tokenizer.decode(ids) - tokenizer.decode(others))
        assert (jump > 0.375).sum() == 0
