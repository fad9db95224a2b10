"""What pairs of states say about the tokenized policy: known answers of Prop 5 and of the trap of Thm 6."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, Range
from action_tokenizers.diagnostics import expert, kernels, states
from action_tokenizers.diagnostics.known import Trap, binning_control
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.places import Places, norm
from action_tokenizers.diagnostics.states import pair_violation, state_measures, tv_lower
from action_tokenizers.diagnostics.subject import Subject
from tests.fakes.experts import fine, gaussian, look, uniform_line, walks


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
        excess, found = pair_violation(look(tokenizer, actions, states), scales=[3 * eps])
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
    excess, found = pair_violation(look(trap.tokenizer(1), [np.arctan(x) for x in states], states), scales=[0.3])
    assert found.value == 1
    assert excess.value == 1
    assert 0.9 < excess.parts["largest"]["decoded"] < 1
    assert excess.parts["episodes"]["share"] == 1
    curve = found.parts["curve"]
    assert max(curve["recorded_jump"]) < spacing
    assert set(curve["decoded"]) == {1.0}
    assert set(curve["recorded"]) == {0.0}
    # bins that err as little do not
    control = look(binning_control(2 * eps, 1), [np.arctan(x) for x in states], states)
    assert pair_violation(control, scales=[0.3])[0].value == 0


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
    curve = pair_violation(look(tokenizer, actions, states), scales=[0.375])[1].parts["curve"]
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
        seen = look(tokenizer, actions, states, horizon=4)
        excess, found = pair_violation(seen, scales=[0.2, 0.5, 0.8])
        # chunks begin at 0, 4, 8, 12, 16; the last of 21 steps is not whole
        scale = np.concatenate(seen.recorded).astype(np.float64).std(0)
        places = [(i, h) for i in range(8) for h in range(0, 20, 4)]
        x = np.array([seen.recorded[i][h] for i, h in places]) / scale
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
        excess, found = pair_violation(look(fine(actions), actions, states))
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
        places = look(fine(actions), actions, states)
        assert pair_violation(places)[1].value > 0.3
        assert pair_violation(places, phase=0.1)[1].value < 0.1

    def test_scales_follow_the_error_but_not_to_zero(self):
        places = gaussian(0.1)
        assert pair_violation(places)[0].parts["scales"] == pytest.approx([0.06, 0.1, 0.2])
        actions = places.subject.episodes.actions
        coarse = BinningTokenizer(bins=8, range=Range([-3.0] * 2, [3.0] * 2), horizon=1).fit(actions)
        found = pair_violation(look(coarse, actions, places.recorded))[0]
        assert found.parts["mean_error"] > 0.2
        assert found.parts["scale"] == pytest.approx(5 * found.parts["mean_error"])

    def test_what_no_episode_shows_has_the_interval_of_no_hits(self):
        states = walks(np.random.default_rng(0), 10, 30, 1)
        excess, found = pair_violation(look(fine(states), states, states), scales=[2.0])
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
            places = look(fine([a / 4 for a in actions]), [a / 4 for a in actions], states)
            low, high = pair_violation(places, scales=[0.5 / 4])[1].interval
            covered += low <= truth <= high
        assert 0.9 <= covered / 200 <= 0.99


def border_of(tokenizer, trap, episodes=60, seed=0):
    rng = np.random.default_rng(seed)
    middle = trap.intervals[1].high
    states = [middle + trap.epsilon * rng.uniform(-0.5, 0.5, (20, 1)) for _ in range(episodes)]
    return look(tokenizer, [np.arctan(x) for x in states], states)


def test_tv_lower_certifies_the_trap():
    trap = Trap(2**-7)
    found = tv_lower(border_of(trap.tokenizer(1), trap), scale=0.2)
    # about 20 episodes come by on either side, and all jump: 95 % certain of .6
    assert found.value > 0.6
    assert found.value == found.interval[0]
    assert found.parts["difference"] > 0.9
    assert found.parts["recorded"] == 0
    assert found.parts["distance"] < 2
    assert found.kind is Kind.LOWER


class TestTVLower:
    def test_finds_nothing_in_bins(self):
        trap = Trap(2**-7)
        found = tv_lower(border_of(binning_control(2**-6, 1), trap), scale=0.2)
        assert found.value == 0
        assert found.interval[0] == 0
        assert found.parts["difference"] < 0.1

    def test_the_experts_own_jumps_are_shown_beside(self):
        found = tv_lower(uniform_line(lambda rng, x: np.sign(x), steps=20, episodes=60))
        assert found.value > 0.5
        assert found.parts["difference"] == found.parts["inside"] - found.parts["beside"] > 0.9
        assert found.parts["recorded"] > 0.9

    def test_too_few_episodes(self):
        found = tv_lower(uniform_line(lambda rng, x: np.sign(x), episodes=19, steps=20))
        assert found.value is None
        assert "Needs 20 episodes, got 19" in found.caveat

    @pytest.mark.parametrize("seed", [4, 9, 10])
    def test_what_chance_shows_is_not_certain(self, seed):
        """An expert that does not look at the state: some difference is seen, and none is told."""
        found = tv_lower(uniform_line(lambda rng, x: rng.choice([-0.9, 0.9], x.shape), seed=seed))
        assert found.parts["difference"] > 0.25
        assert found.value == 0

    def test_the_search_compares_no_more_visits_with_more_episodes(self, monkeypatch):
        compared, differing = [], states._differing

        def watched(p, q, scale):
            compared.append((len(p), len(q)))
            return differing(p, q, scale)

        monkeypatch.setattr(states, "_differing", watched)
        trap = Trap(2**-7)
        places = border_of(trap.tokenizer(1), trap, episodes=500)
        found = tv_lower(places, scale=0.2)
        assert np.max(compared) == states.MOST_VISITS
        assert found.value > 0.9  # what is found is tested on all of the others
        assert found.n["visits"] > 2 * states.MOST_VISITS
        assert tv_lower(places, scale=0.2) == found

    def test_the_search_holds_no_table_of_steps(self):
        rng = np.random.default_rng(0)
        p, q = rng.normal(size=(60, 50, 8)), rng.normal(size=(40, 50, 8))
        tracemalloc.start()
        found = states._apart(p, q)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found == pytest.approx(norm(p[:, None] - q))
        assert peak < (60 * 40 * 50 * 8 * 8) / 10

    @pytest.mark.slow
    def test_is_never_certain_of_what_is_not_there(self):
        """An expert that does not look at the state is as smooth as can be: in 95 of 100 searches the end is 0."""
        wrong = 0
        for seed in range(100):
            places = uniform_line(lambda rng, x: rng.choice([-0.5, 0.5], x.shape), steps=20, seed=seed)
            wrong += tv_lower(Places.of(places.subject, places.recorded, seed)).value > 0
        assert wrong <= 5


def measures(places, seed=0):
    return state_measures(places.subject, places.recorded, seed)


class TestData:
    def test_one_episode_has_no_other(self):
        actions = walks(np.random.default_rng(0), 1, 50, 2)
        found = measures(look(fine(actions), actions, actions))
        rows = [*expert.ESTIMATORS, *states.ESTIMATORS, *kernels.ESTIMATORS]
        assert sorted(m.name for m in found) == sorted(row.name for row in rows)
        assert all(m.value is None and m.interval is None for m in found)
        assert all("One episode only" in m.caveat for m in found)

    def test_states_that_never_change(self):
        actions = walks(np.random.default_rng(0), 5, 20, 1)
        found = measures(look(fine(actions), actions, [np.ones((20, 3))] * 5))
        assert all(m.value is None for m in found)
        assert all("never change" in m.caveat for m in found)

    @pytest.mark.parametrize("n", [2, 3])
    @pytest.mark.parametrize("steps", [4, 5])
    def test_as_little_as_can_be(self, n, steps):
        """One chunk per episode: whatever is said has a wide interval or none."""
        actions = walks(np.random.default_rng(0), n, steps, 2)
        for tokenizer in (fine(actions, 4), KMeansTokenizer(codebook_size=2, scope="chunk", horizon=4).fit(actions)):
            found = {m.name: m for m in measures(look(tokenizer, actions, actions, horizon=4))}
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
        first, again, other = (measures(look(tokenizer, actions, states, 8, "data"), s) for s in (1, 1, 2))
        assert first == again != other
        assert all(m.value is not None for m in first)
        for m in first:
            json.dumps(m.parts, allow_nan=False)
            assert m.interval is None or m.interval[0] <= m.value <= m.interval[1]

    @pytest.mark.parametrize("family", [BinningTokenizer, FASTTokenizer])
    @pytest.mark.parametrize("junk", [1000.0, np.nan])
    def test_padded_steps_count_nowhere(self, family, junk):
        rng = np.random.default_rng(0)
        clean = walks(rng, 24, 24, 2)
        episodes = Episodes(
            [np.float32(np.sin(x)) for x in clean], action_is_pad=[np.arange(24) >= 19 + i % 3 for i in range(24)]
        )
        subject = Subject.of(family(horizon=8).fit(episodes), episodes, 8, np.ones(2))
        spoiled = [np.where(mask[:, None], junk, x) for x, mask in zip(clean, episodes.action_is_pad, strict=True)]
        assert state_measures(subject, spoiled) == state_measures(subject, clean)

    def test_where_every_chunk_has_a_padded_step_nothing_is_said_of_chunks(self):
        states = walks(np.random.default_rng(0), 6, 16, 1)
        episodes = Episodes([np.float32(x) for x in states], action_is_pad=[np.arange(16) % 4 == 2] * 6)
        tokenizer = KMeansTokenizer(codebook_size=2, scope="chunk", horizon=4).fit(episodes)
        found = {m.name: m for m in state_measures(Subject.of(tokenizer, episodes, 4, np.ones(1)), states)}
        assert found["pair_violation"].value is None
        assert "without a padded step" in found["pair_violation"].caveat
        assert found["expert_spread"].value is not None  # that is of single steps

    def test_the_scale_and_the_shift_of_states_do_not_matter(self):
        places = gaussian(0.1, n=22, steps=20)
        moved = [np.concatenate([x * [1e-3, 1e3] + 5, np.ones((len(x), 1))], 1) for x in places.recorded]
        for a, b in zip(measures(places), state_measures(places.subject, moved), strict=True):
            assert (a.value is None) == (b.value is None)
            assert b.value is None or b.value == pytest.approx(a.value, rel=1e-3, abs=1e-6)
