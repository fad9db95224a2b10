"""What pairs of states and actions say: known answers of Prop 5, of plug-in total variation and of kernel smoothing."""

import json
import math

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, FASTTokenizer, KMeansTokenizer
from action_tokenizers.data import ChunkSample, Episodes, Relative
from action_tokenizers.diagnostics import states as module
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.known import Trap, binning_control
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.states import (
    ESTIMATORS,
    expert_lipschitz,
    expert_spread,
    kernel_distributions,
    kernel_slope,
    neighbour_tv,
    pair_violation,
    plugin_bias,
    plugin_tv,
    state_measures,
    tv_lower,
)
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.ranges import Range


def look(tokenizer, actions, states, horizon=1, unit=None):
    """The subject and the states of episodes; units of 1 unless the data decide."""
    episodes = Episodes([np.asarray(a, np.float32) for a in actions], states=[np.float32(s) for s in states])
    unit = np.ones(episodes.action_dim) if unit is None else unit_of(episodes.actions)
    return Subject.of(tokenizer, episodes, horizon, unit), episodes.states


def walks(rng, n, steps, dim):
    """States of episodes that cross each other's ways."""
    return [rng.normal(size=dim) + 0.1 * np.cumsum(rng.normal(size=(steps, dim)), 0) for _ in range(n)]


def fine(actions, horizon=1):
    """Bins too narrow to matter, over -3..3."""
    dim = actions[0].shape[1]
    return BinningTokenizer(horizon=horizon, bins=2048, range=Range([-3.0] * dim, [3.0] * dim)).fit(actions)


def gaussian(sigma, n=24, steps=30, seed=0):
    rng = np.random.default_rng(seed)
    states = walks(rng, n, steps, 2)
    actions = [
        np.stack([np.sin(x[:, 0]), 0.5 * x[:, 1] - 0.2 * x[:, 0]], 1) + sigma * rng.normal(size=(steps, 2))
        for x in states
    ]
    return look(fine(actions), [a.astype(np.float32) for a in actions], states)


class TestSpread:
    def test_a_nearly_deterministic_expert(self):
        trap = Trap(2**-7)
        data = trap.demonstrations(40, seed=0, horizon=60)
        subject = Subject.of(trap.tokenizer(1), data, 1, unit_of(data.actions))
        found = expert_spread(subject, data.states)
        assert found.value < 0.01
        assert found.interval[1] < 0.04
        assert found.kind is Kind.UPPER

    def test_what_the_states_hide_counts_as_spread(self):
        """Two experts with the same states: large proves nothing about each of them."""
        rng = np.random.default_rng(0)
        states = walks(rng, 40, 30, 1)
        actions = [np.full((30, 1), i % 2, np.float32) for i in range(40)]
        found = expert_spread(*look(fine(actions), actions, states))
        assert found.value == pytest.approx(0.5, abs=0.05)

    def test_the_smallest_model_wins_and_dims_are_told_apart(self):
        subject, states = gaussian(0.05)
        found = expert_spread(subject, states)
        assert found.value == min(found.parts["models"].values()) == found.parts["models"][found.parts["model"]]
        assert found.value == pytest.approx(np.sqrt(np.mean(np.square(found.parts["per_dim"]))))

    def test_constant_dims_are_left_out(self):
        rng = np.random.default_rng(0)
        states = walks(rng, 20, 30, 1)
        moving = [0.1 * rng.normal(size=(30, 1)) for _ in range(20)]
        both = [np.concatenate([a, np.ones_like(a)], 1) for a in moving]
        alone, found = (expert_spread(*look(fine(a), a, states)) for a in (moving, both))
        assert found.parts["per_dim"][1] is None
        assert found.value == pytest.approx(alone.value)

    def test_actions_that_never_change(self):
        states = walks(np.random.default_rng(0), 5, 10, 1)
        actions = [np.ones((10, 1), np.float32)] * 5
        found = expert_spread(*look(fine(actions), actions, states))
        assert found.value == 0
        assert "never change" in found.caveat

    def test_a_linear_expert_of_many_state_dims(self):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(80, 3)) / 9
        states = [rng.normal(size=(40, 80)) for _ in range(30)]
        actions = [x @ weights + 0.1 * rng.normal(size=(40, 3)) for x in states]
        found = expert_spread(*look(fine(actions), actions, states))
        assert found.parts["model"] in ("linear", "local_near_linear")
        assert found.value == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_spread_of_a_gaussian_expert_is_its_sigma(sigma):
    rng = np.random.default_rng(0)
    states = [rng.uniform(-1, 1, (50, 2)) for _ in range(30)]
    actions = [
        np.stack([np.sin(2 * x[:, 0]), 0.5 * x[:, 1] ** 2], 1) + sigma * rng.normal(size=x.shape) for x in states
    ]
    found = expert_spread(*look(fine(actions), actions, states))
    assert found.value == pytest.approx(sigma, rel=0.12)
    assert found.interval[0] < found.value < found.interval[1] < 1.3 * sigma


def plane(rng, n=24, steps=40):
    """The Lipschitz expert of the paper's two-dim check: L = sqrt(.34)."""
    states = walks(rng, n, steps, 2)
    return states, [np.clip(x @ [[0.5], [0.3]], -2, 2) for x in states]


def test_lipschitz_of_a_linear_expert():
    states, actions = plane(np.random.default_rng(0))
    # in any unit of the states: the raw slope follows, the standardised one does not change
    here = expert_lipschitz(*look(fine(actions), actions, states))
    there = expert_lipschitz(*look(fine(actions), actions, [x * [1, 1000] for x in states]))
    assert here.parts["raw"] == pytest.approx(math.sqrt(0.34), rel=0.03)
    assert there.parts["raw"] == pytest.approx(0.5, rel=0.03)
    assert here.value == pytest.approx(there.value, rel=1e-3)
    std = np.concatenate(states).std(0)
    assert here.value == pytest.approx(np.linalg.norm(std * [0.5, 0.3]), rel=0.03)
    assert here.interval[0] <= here.value <= here.interval[1]
    assert here.parts["pairs"]["max"][0] <= here.value * 1.05


def test_lipschitz_of_arctan_is_1():
    rng = np.random.default_rng(1)
    states = [rng.uniform(-1.0, 1.0, (50, 1)) for _ in range(20)]
    found = expert_lipschitz(*look(fine(states), [np.arctan(x) for x in states], states))
    assert found.parts["raw"] == pytest.approx(1, abs=0.03)
    assert found.parts["quantiles"]["0.5"] < found.value
    assert found.kind is Kind.PROXY


def grid(low, high, spacing):
    """Neighbouring points of a line in different episodes."""
    x = np.arange(low, high, spacing)[:, None]
    return [x[i::5] for i in range(5)]


# Cao & Xie 2026, Prop 5, on grids and pairs of states


@pytest.mark.parametrize("eps", [2**-4, 2**-6])
def test_width_eps_bins_have_no_violation_and_wide_ones_have_many(eps):
    """Jumps beyond 3 eps between states within eps, of the expert arctan with L = 1."""
    states = grid(-1.0, 1.0, eps / 16)
    actions = [np.arctan(x) for x in states]
    x = np.concatenate(states)
    near = np.abs(x - x.T) <= eps
    for width, violated in ((eps, False), (4 * eps, True)):
        tokenizer = binning_control(width, 1)
        q = tokenizer.quantize(np.float32(np.arctan(x))[:, None])[:, 0]
        brute = (np.abs(q - q.T) > 3 * eps)[near]
        excess, found = pair_violation(*look(tokenizer, actions, states), scales=[3 * eps])
        assert (found.value > 0) == bool(brute.any()) == violated
        if violated:  # about as many as there are borders between neighbours
            assert 0.3 < found.value / (1 / 64) < 1.5
        assert excess.value == found.value  # the expert itself never jumps
        assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize("fraction", [0.25, 0.01])
@pytest.mark.parametrize("eps", [2**-5, 2**-7, 2**-9])
def test_trap_jumps_across_its_border_at_every_spacing(eps, fraction):
    trap = Trap(eps)
    border, spacing = trap.intervals[1].high + 2**-21, eps * fraction
    away = np.linspace(0.1, 0.5, 20)[:, None] * spacing
    states = [border - away, border + away]
    subject, seen = look(trap.tokenizer(1), [np.arctan(x) for x in states], states)
    excess, found = pair_violation(subject, seen, scales=[0.3])
    assert found.value == 1
    assert excess.value == 1
    assert 0.9 < excess.parts["largest"]["decoded"] < 1
    assert excess.parts["episodes"]["share"] == 1
    curve = found.parts["curve"]
    assert max(curve["recorded_jump"]) < spacing
    assert set(curve["decoded"]) == {1.0}
    assert set(curve["recorded"]) == {0.0}
    # bins that err as little do not
    subject, seen = look(binning_control(2 * eps, 1), [np.arctan(x) for x in states], states)
    assert pair_violation(subject, seen, scales=[0.3])[0].value == 0


def test_jumps_of_families_on_a_lipschitz_expert():
    """16 cells, jumps beyond .375, state pairs within (.375 - 2 * .125) / L: next to none, but many flips."""
    rng = np.random.default_rng(0)
    slope, reach = np.array([0.5, 0.3]), (0.375 - 0.25) / math.sqrt(0.34)
    x = rng.normal(size=(20000, 2))
    angle, radius = rng.uniform(0, 2 * np.pi, 20000), reach * np.sqrt(rng.uniform(size=20000))
    moved = x + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    u, v = (np.clip(s @ slope, -2, 2).astype(np.float32)[:, None, None] for s in (x, moved))
    wide = Range([-2.0], [2.0])
    families = {
        "bins": (BinningTokenizer(bins=16, range=wide, horizon=1), 0, 0.21),
        "k-means": (KMeansTokenizer(codebook_size=16, range=wide, horizon=1), 0.002, 0.30),
        # ours decode to means: the outermost two are .385 apart, beyond .375 by a hair
        "quantile": (BinningTokenizer(bins=16, strategy="quantile", range=wide, horizon=1), 0.02, 0.39),
    }
    for name, (tokenizer, jumps, flips) in families.items():
        tokenizer.fit(u)
        jumped = np.abs(tokenizer.quantize(u) - tokenizer.quantize(v)) > 0.375
        flipped = tokenizer.encode(u) != tokenizer.encode(v)
        assert jumped.mean() == pytest.approx(jumps, abs=0.003), name
        assert flipped.mean() == pytest.approx(flips, abs=0.02), name
        farther = np.abs(tokenizer.quantize(u) - tokenizer.quantize(v)) > 0.4
        assert farther.mean() == pytest.approx(0.002 if name == "k-means" else 0, abs=0.003), name


def test_bins_on_a_lipschitz_expert_flip_in_proportion_to_the_distance():
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(100, 2)) for _ in range(30)]
    actions = [np.clip(x @ [[0.5], [0.3]], -2, 2) for x in states]
    tokenizer = BinningTokenizer(bins=16, range=Range([-2.0], [2.0]), horizon=1).fit(actions)
    curve = pair_violation(*look(tokenizer, actions, states), scales=[0.375])[1].parts["curve"]
    distance, flips = np.array(curve["r"]), np.array(curve["flips"])
    near = distance < 0.15
    assert near.sum() >= 3
    # .2125 of the pairs at a mean distance of 2/3 of the reach; the classes are equally full
    assert flips[near].sum() == pytest.approx(0.2125 * distance[near].sum() / (2 / 3 * 0.2144), rel=0.05)
    assert np.array(curve["decoded"])[near].max() == 0


class TestPairs:
    def test_nearest_pairs_are_those_of_brute_force_for_chunks(self):
        rng = np.random.default_rng(0)
        states = walks(rng, 8, 21, 3)
        actions = [np.sin(x[:, :2]) + 0.1 * rng.normal(size=(21, 2)) for x in states]
        tokenizer = KMeansTokenizer(codebook_size=8, scope="chunk", horizon=4).fit([np.float32(a) for a in actions])
        subject, seen = look(tokenizer, actions, states, horizon=4)
        excess, found = pair_violation(subject, seen, scales=[0.2, 0.5, 0.8])
        # chunks begin at 0, 4, 8, 12, 16; the last of 21 steps is not whole
        scale = np.concatenate(seen).astype(np.float64).std(0)
        places = [(i, h) for i in range(8) for h in range(0, 20, 4)]
        x = np.array([seen[i][h] for i, h in places]) / scale
        u = np.float32([actions[i][h : h + 4] for i, h in places])
        q = tokenizer.quantize(u)
        shares = []
        for a, (i, _) in enumerate(places):
            others = [b for b, (j, _) in enumerate(places) if j != i]
            b = min(others, key=lambda b: np.linalg.norm(x[a] - x[b]))
            recorded, decoded = (np.linalg.norm(v[a] - v[b], axis=1).max() for v in (u, q))
            shares.append([[recorded > s, decoded > s] for s in (0.2, 0.5, 0.8)])
        expected = np.mean(shares, 0).T
        nearest = excess.parts["nearest"]
        assert [nearest["recorded"], nearest["decoded"]] == pytest.approx(expected)
        assert excess.value == pytest.approx(expected[1, 1] - expected[0, 1])
        assert found.value == pytest.approx(expected[1, 1])
        assert found.n == {"episodes": 8, "places": 40, "pairs": excess.n["pairs"]}

    def test_the_expert_is_to_blame_for_its_own_jumps(self):
        """A coin decides between two actions: many violations, and none of them is the tokenizer's."""
        rng = np.random.default_rng(0)
        states = walks(rng, 20, 40, 1)
        actions = [rng.integers(0, 2, (40, 1)) + 0.01 * rng.normal(size=(40, 1)) for _ in states]
        excess, found = pair_violation(*look(fine(actions), actions, states))
        assert found.value == pytest.approx(0.5, abs=0.05)
        assert found.kind is Kind.UPPER
        assert abs(excess.value) < 0.01
        assert excess.parts["episodes"]["hits"] == 0

    def test_a_similar_phase_can_be_asked_for(self):
        """There and back: the action is that of the way, which states do not tell."""
        way = np.concatenate([np.linspace(0, 1, 30), np.linspace(1, 0, 30)])[:, None]
        rng = np.random.default_rng(0)
        states = [way + 0.001 * rng.normal(size=way.shape) for _ in range(10)]
        actions = [np.repeat([[1.0], [-1.0]], 30, 0)] * 10
        subject, seen = look(fine(actions), actions, states)
        assert pair_violation(subject, seen)[1].value > 0.3
        assert pair_violation(subject, seen, phase=0.1)[1].value < 0.1

    def test_scales_follow_the_error_but_not_to_zero(self):
        subject, seen = gaussian(0.1)
        assert pair_violation(subject, seen)[0].parts["scales"] == pytest.approx([0.06, 0.1, 0.2])
        actions = [a.copy() for a in subject.episodes.actions]
        coarse = BinningTokenizer(bins=8, range=Range([-3.0] * 2, [3.0] * 2), horizon=1).fit(actions)
        found = pair_violation(*look(coarse, actions, seen))[0]
        assert found.parts["mean_error"] > 0.2
        assert found.parts["scale"] == pytest.approx(5 * found.parts["mean_error"])

    def test_what_no_episode_shows_has_the_interval_of_no_hits(self):
        states = walks(np.random.default_rng(0), 10, 30, 1)
        excess, found = pair_violation(*look(fine(states), states, states), scales=[2.0])
        assert (found.value, excess.value) == (0, 0)
        assert found.interval == pytest.approx((0, 0.3085), abs=1e-4)
        assert excess.interval == pytest.approx((-0.3085, 0.3085), abs=1e-4)

    @pytest.mark.slow
    def test_interval_covers_a_mean_over_dependent_pairs(self):
        """Every episode has a bias of its own: pairs of one episode are anything but independent."""
        truth = 2 * (1 - 0.5 * (1 + math.erf(0.5 / 2)))  # |N(0, 2)| > .5 * sqrt 2 ... in units of one bias
        covered = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            states = [rng.normal(size=(20, 1)) for _ in range(30)]
            actions = [np.full((20, 1), rng.normal()) for _ in states]
            subject, seen = look(fine([a / 4 for a in actions]), [a / 4 for a in actions], states)
            low, high = pair_violation(subject, seen, scales=[0.5 / 4])[1].interval
            covered += low <= truth <= high
        assert 0.9 <= covered / 200 <= 0.99


class TestPlugIn:
    """64 tokens, the same random law twice: all of the plug-in total variation is chance."""

    @pytest.mark.parametrize(
        ("m", "measured", "formula"),
        [(50, 0.487, 0.563), (200, 0.270, 0.281), (1000, 0.125, 0.126), (5000, 0.057, 0.056)],
    )
    def test_bias_under_one_law(self, m, measured, formula):
        rng = np.random.default_rng(0)
        laws = rng.dirichlet(np.ones(64), 100)
        found = [plugin_tv(*rng.multinomial(m, law, 2), seed=i, shuffles=20) for i, law in enumerate(laws)]
        assert np.mean([f.plugin for f in found]) == pytest.approx(measured, abs=0.02)
        assert np.mean([plugin_bias(law, m) for law in laws]) == pytest.approx(formula, abs=0.005)
        assert np.mean([f.excess for f in found]) == pytest.approx(0, abs=0.015)

    def test_formula_for_equally_likely_tokens(self):
        assert plugin_bias(np.full(64, 1 / 64), 200) == pytest.approx(math.sqrt(63 / (math.pi * 200)))

    def test_different_laws_keep_their_difference(self):
        found = plugin_tv([500, 500, 0, 0], [0, 0, 500, 500])
        assert found.plugin == 1
        assert found.excess > 0.95

    def test_samples_of_different_size(self):
        assert plugin_tv([3, 1], [1, 1]).plugin == pytest.approx(0.25)


def uniform_line(expert, episodes=40, steps=30, seed=0):
    """States evenly on -1..1 in random order."""
    rng = np.random.default_rng(seed)
    line = (np.arange(episodes * steps) + 0.5) / (episodes * steps) * 2 - 1
    states = list(rng.permutation(line).reshape(episodes, steps, 1))
    actions = [expert(rng, x) for x in states]
    tokenizer = BinningTokenizer(bins=64, range=Range([-1.0], [1.0]), horizon=1)
    return look(tokenizer.fit([np.float32(a) for a in actions]), actions, states)


def test_kernel_slope_of_a_discontinuous_expert_is_the_ceiling():
    """Whatever jumps, a kernel makes smooth: slopes .399 / sigma for sigma = .05, .1 and .2."""
    subject, seen = uniform_line(lambda rng, x: np.sign(x), episodes=100)
    std = np.concatenate(seen).std()
    found = kernel_slope(subject, seen, sigmas=[s / std for s in (0.05, 0.1, 0.2)])
    assert np.array(found.parts["slope"]) / std == pytest.approx([7.82, 3.92, 1.98], rel=0.05)
    assert np.array(found.parts["ceiling"]) / std == pytest.approx([7.979, 3.989, 1.995], abs=1e-3)
    assert found.parts["ratio"] == pytest.approx([1, 1, 1], abs=0.08)
    assert found.value == found.parts["slope"][1]
    assert found.parts["tokens"] == 2


def test_kernel_slope_of_an_expert_that_does_not_look_is_0():
    subject, seen = uniform_line(lambda rng, x: np.full_like(x, 0.5))
    found = kernel_slope(subject, seen)
    assert found.value == pytest.approx(0, abs=1e-9)
    assert found.parts["ratio"][1] == pytest.approx(0, abs=1e-9)


def test_kernel_slope_of_a_token_for_every_place_is_all_kernel():
    subject, seen = uniform_line(lambda rng, x: x)
    fine_subject, _ = look(fine(subject.episodes.actions), subject.episodes.actions, seen)
    share = kernel_slope(fine_subject, seen).parts["share"]
    coarse = kernel_slope(subject, seen, sigmas=kernel_slope(fine_subject, seen).parts["sigma"]).parts["share"]
    assert 0.95 < min(share) <= max(share) <= 1
    assert max(coarse) < min(share)


def test_kernel_distributions_are_those_of_a_smoothed_step():
    x = np.linspace(-2, 2, 8001)[:, None]
    tokens = (x[:, 0] > 0).astype(np.int64)
    queries = np.array([[-0.3], [-1e-3], [1e-3], [0.3]])
    p = kernel_distributions(x, tokens, queries, 0.1)
    assert p.sum(1) == pytest.approx(1)
    assert p[:, 1] == pytest.approx([0.5 * (1 + math.erf(q / 0.1 / math.sqrt(2))) for q in queries[:, 0]], abs=2e-3)
    assert (p[2, 1] - p[1, 1]) / 2e-3 == pytest.approx(3.989, rel=1e-3)


def test_neighbour_tv_takes_chance_away():
    levels = np.linspace(-0.95, 0.95, 40)
    blind = neighbour_tv(*uniform_line(lambda rng, x: rng.choice(levels, x.shape), episodes=60))
    assert blind.parts["draws"] == 29
    assert blind.parts["chance"] > 0.5
    assert blind.value == pytest.approx(0, abs=0.02)
    # a staircase of wide steps: neighbours mostly agree, across a border they do not
    stairs = neighbour_tv(*uniform_line(lambda rng, x: np.sign(np.sin(10 * np.pi * x)) / 2, episodes=60))
    assert stairs.value > 0.03
    assert stairs.parts["chance"] < 0.15


def border_of(tokenizer, trap, episodes=60, seed=0):
    rng = np.random.default_rng(seed)
    middle = trap.intervals[1].high
    states = [middle + trap.epsilon * rng.uniform(-0.5, 0.5, (20, 1)) for _ in range(episodes)]
    return look(tokenizer, [np.arctan(x) for x in states], states)


def test_tv_lower_certifies_the_trap():
    trap = Trap(2**-7)
    found = tv_lower(*border_of(trap.tokenizer(1), trap), scale=0.2)
    assert found.value > 0.9
    assert found.interval[0] > 0.6
    assert found.parts["recorded"] == 0
    assert found.parts["distance"] < 2
    assert found.kind is Kind.LOWER


class TestTVLower:
    def test_finds_nothing_in_bins(self):
        trap = Trap(2**-7)
        found = tv_lower(*border_of(binning_control(2**-6, 1), trap), scale=0.2)
        assert found.value == 0
        assert found.interval[0] == 0

    def test_the_experts_own_jumps_are_shown_beside(self):
        found = tv_lower(*uniform_line(lambda rng, x: np.sign(x), steps=20, episodes=60))
        assert found.value > 0.9
        assert found.parts["recorded"] > 0.9

    def test_too_few_episodes(self):
        found = tv_lower(*uniform_line(lambda rng, x: np.sign(x), episodes=19, steps=20))
        assert found.value is None
        assert "Needs 20 episodes, got 19" in found.caveat

    @pytest.mark.slow
    def test_is_never_certain_of_what_is_not_there(self):
        """An expert that does not look at the state is as smooth as can be: in 95 of 100 searches the end is 0."""
        wrong = 0
        for seed in range(100):
            subject, seen = uniform_line(lambda rng, x: rng.choice([-0.5, 0.5], x.shape), steps=20, seed=seed)
            wrong += tv_lower(subject, seen, seed).interval[0] > 0
        assert wrong <= 5


class TestData:
    def test_one_episode_has_no_other(self):
        states = walks(np.random.default_rng(0), 1, 50, 2)
        found = state_measures(*look(fine(states), states, states))
        assert [m.name for m in found] == [row.name for row in ESTIMATORS]
        assert all(m.value is None and m.interval is None for m in found)
        assert all("One episode only" in m.caveat for m in found)

    def test_states_that_never_change(self):
        actions = walks(np.random.default_rng(0), 5, 20, 1)
        found = state_measures(*look(fine(actions), actions, [np.ones((20, 3))] * 5))
        assert all(m.value is None for m in found)
        assert all("never change" in m.caveat for m in found)

    @pytest.mark.parametrize("n", [2, 3])
    @pytest.mark.parametrize("steps", [4, 5])
    def test_as_little_as_can_be(self, n, steps):
        """One chunk per episode: whatever is said has a wide interval or none."""
        actions = walks(np.random.default_rng(0), n, steps, 2)
        for tokenizer in (fine(actions, 4), KMeansTokenizer(codebook_size=2, scope="chunk", horizon=4).fit(actions)):
            found = {m.name: m for m in state_measures(*look(tokenizer, actions, actions, horizon=4))}
            low, high = found["pair_violation"].interval or (0, 1)
            assert high - low > 0.5
            assert found["tv_lower"].value is None
            assert found["neighbour_tv"].value is None

    @pytest.mark.parametrize("family", [FASTTokenizer, BinningTokenizer, KMeansTokenizer])
    def test_says_the_same_for_the_same_seed_and_in_json(self, family):
        rng = np.random.default_rng(0)
        states = walks(rng, 24, 24, 3)
        actions = [np.sin(x[:, :2]) + 0.05 * rng.normal(size=(24, 2)) for x in states]
        tokenizer = family(horizon=8).fit([np.float32(a) for a in actions])
        first, again, other = (state_measures(*look(tokenizer, actions, states, 8, "data"), s) for s in (1, 1, 2))
        assert first == again != other
        assert all(m.value is not None for m in first)
        for m in first:
            json.dumps(m.parts, allow_nan=False)
            assert m.interval is None or m.interval[0] <= m.value <= m.interval[1]

    def test_the_scale_and_the_shift_of_states_do_not_matter(self):
        subject, seen = gaussian(0.1, n=22, steps=20)
        moved = [np.concatenate([x * [1e-3, 1e3] + 5, np.ones((len(x), 1))], 1) for x in seen]
        for a, b in zip(state_measures(subject, seen), state_measures(subject, moved), strict=True):
            assert (a.value is None) == (b.value is None)
            assert b.value is None or b.value == pytest.approx(a.value, rel=1e-3, abs=1e-6)

    def test_relative_actions_are_looked_at_where_their_state_is(self):
        """Later steps of a chunk are relative to the state at its start: in their own state they look random."""
        rng = np.random.default_rng(0)
        states = walks(rng, 20, 40, 1)
        targets = [x + 0.3 * np.sin(x) for x in states]
        episodes = Episodes([np.float32(a) for a in targets], states=[np.float32(x) for x in states])
        sample = ChunkSample().add(episodes, 8, 1, relative=Relative("state"))
        tokenizer = BinningTokenizer(bins=256, horizon=8).fit(sample)
        assert tokenizer.relative is not None
        subject = Subject.of(tokenizer, episodes, 8, np.ones(1))
        found = expert_spread(subject, episodes.states)
        assert found.n["places"] == len(subject) == 100
        assert found.value < 0.03

    def test_more_places_than_are_compared(self, monkeypatch):
        monkeypatch.setattr(module, "MOST_PLACES", 200)
        rng = np.random.default_rng(0)
        states = [rng.normal(size=(steps, 1)) for steps in (5, 500, 500)]
        actions = [0.1 * x for x in states]
        subject, seen = look(fine(actions), actions, states)
        found = module._Places.of(subject, seen, 0, most=200)
        assert np.bincount(found.episode).tolist() == [5, 98, 97]  # what the short one lacks the others give
        assert np.allclose(found.actions[:, 0, 0], 0.1 * found.states[:, 0] * found.scale, atol=1e-6)

    def test_more_episodes_than_places(self):
        rng = np.random.default_rng(0)
        states = [rng.normal(size=(2, 1)) for _ in range(50)]
        subject, seen = look(fine(states), states, states)
        found = module._Places.of(subject, seen, 0, most=30)
        assert (found.episodes, len(found)) == (30, 30)
