"""What the states say about the expert: its noise where it is known, its slope where it is known."""

import math

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, Relative
from action_tokenizers.data import ChunkSample
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.expert import Models, expert_lipschitz, expert_spread, spread_of
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.places import Places
from action_tokenizers.diagnostics.subject import Subject
from tests.fakes.experts import fine, gaussian, look, walks
from tests.fakes.relative import drifting, pair_of_bins


def spread(places):
    return expert_spread(Models(places))


def lipschitz(places):
    return expert_lipschitz(Models(places))


class TestSpread:
    def test_a_nearly_deterministic_expert(self):
        trap = Trap(2**-7)
        data = trap.demonstrations(40, seed=0, horizon=60)
        subject = Subject.of(trap.tokenizer(1), data, 1, unit_of(data.actions))
        found = spread(Places.of(subject, data.states))
        assert found.value < 0.01
        assert found.interval[1] < 0.04
        assert found.kind is Kind.UPPER

    def test_what_the_states_hide_counts_as_spread(self):
        """Two experts with the same states: large proves nothing about each of them."""
        rng = np.random.default_rng(0)
        states = walks(rng, 40, 30, 1)
        actions = [np.full((30, 1), i % 2, np.float32) for i in range(40)]
        found = spread(look(fine(actions), actions, states))
        assert found.value == pytest.approx(0.5, abs=0.05)

    def test_the_smallest_model_wins_and_dims_are_told_apart(self):
        found = spread(gaussian(0.05))
        assert found.value == min(found.parts["models"].values()) == found.parts["models"][found.parts["model"]]
        assert found.value == pytest.approx(np.sqrt(np.mean(np.square(found.parts["per_dim"]))))

    def test_constant_dims_are_left_out(self):
        rng = np.random.default_rng(0)
        states = walks(rng, 20, 30, 1)
        moving = [0.1 * rng.normal(size=(30, 1)) for _ in range(20)]
        both = [np.concatenate([a, np.ones_like(a)], 1) for a in moving]
        alone, found = (spread(look(fine(a), a, states)) for a in (moving, both))
        assert found.parts["per_dim"][1] is None
        assert found.value == pytest.approx(alone.value)

    def test_actions_that_never_change(self):
        states = walks(np.random.default_rng(0), 5, 10, 1)
        actions = [np.ones((10, 1), np.float32)] * 5
        found = spread(look(fine(actions), actions, states))
        assert found.value == 0
        assert "never change" in found.caveat

    def test_a_linear_expert_of_many_state_dims(self):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(80, 3)) / 9
        states = [rng.normal(size=(40, 80)) for _ in range(30)]
        actions = [x @ weights + 0.1 * rng.normal(size=(40, 3)) for x in states]
        found = spread(look(fine(actions), actions, states))
        assert found.parts["model"] in ("linear", "local_near_linear")
        assert found.value == pytest.approx(0.1, rel=0.15)

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
        found = spread(Places.of(subject, episodes.states))
        assert found.n["places"] == len(subject) == 100
        assert found.value < 0.03
        # the same by the measure of what relative actions span: that of the smoothness alarm
        own = subject.in_own_units().unit[0]
        assert own < 0.9
        assert found.parts["of_relative"] == pytest.approx(found.value / own)
        plain = Subject.of(fine(targets), episodes, 1, np.ones(1))
        assert "of_relative" not in spread(Places.of(plain, episodes.states)).parts

    def test_in_the_units_of_relative_actions_another_model_may_win(self):
        """One dim spans little of its range: what predicts that one best counts for little until it is its own unit."""
        moves = [(a - s) * [1, 0.01] for a, s in zip(drifting(0).actions, drifting(0).states, strict=True)]
        states = drifting(0).states
        data = Episodes([np.float32(s + m) for s, m in zip(states, moves, strict=True)], states=states)
        subject = Subject.of(pair_of_bins(data)[0], data, 1, np.ones(2))
        own = subject.in_own_units().unit
        assert own[1] < 0.02 * own[0]
        models = Models(Places.of(subject, states))
        # one errs in the first dim alone, the other, by less, in the second
        sample = np.ones((models.places.episodes, 1))
        models.squares = {"first": sample * [0.04**2, 0.0], "second": sample * [0.0, 0.03**2]}
        found = expert_spread(models)
        assert found.parts["model"] == "second"
        assert found.value == pytest.approx(0.03 / 2**0.5)
        assert found.parts["of_relative"] == pytest.approx(0.04 / own[0] / 2**0.5)


def test_the_spread_that_the_flag_asks_for():
    assert spread_of({}) is None
    found = spread(gaussian(0.05))
    assert spread_of({"expert_spread": found}) == found.value


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_spread_of_a_gaussian_expert_is_its_sigma(sigma):
    rng = np.random.default_rng(0)
    states = [rng.uniform(-1, 1, (50, 2)) for _ in range(30)]
    actions = [
        np.stack([np.sin(2 * x[:, 0]), 0.5 * x[:, 1] ** 2], 1) + sigma * rng.normal(size=x.shape) for x in states
    ]
    found = spread(look(fine(actions), actions, states))
    assert found.value == pytest.approx(sigma, rel=0.12)
    assert found.interval[0] < found.value < found.interval[1] < 1.3 * sigma


def plane(rng, n=24, steps=40):
    """The Lipschitz expert of the paper's two-dim check: L = sqrt(.34)."""
    states = walks(rng, n, steps, 2)
    return states, [np.clip(x @ [[0.5], [0.3]], -2, 2) for x in states]


def test_lipschitz_of_a_linear_expert():
    states, actions = plane(np.random.default_rng(0))
    # in any unit of the states: the raw slope follows, the standardised one does not change
    here = lipschitz(look(fine(actions), actions, states))
    there = lipschitz(look(fine(actions), actions, [x * [1, 1000] for x in states]))
    assert here.parts["raw"] == pytest.approx(math.sqrt(0.34), rel=0.03)
    assert there.parts["raw"] == pytest.approx(0.5, rel=0.03)
    assert here.value == pytest.approx(there.value, rel=1e-3)
    std = np.concatenate(states).std(0)
    assert here.value == pytest.approx(np.linalg.norm(std * [0.5, 0.3]), rel=0.03)
    assert here.interval[0] <= here.value <= here.interval[1]
    assert here.parts["pairs"]["max"][0] <= here.value * 1.05


@pytest.mark.parametrize("junk", [0.0, 1000.0])
def test_padded_steps_make_no_expert_steeper(junk):
    states, actions = plane(np.random.default_rng(0))
    pads = [np.arange(40) >= 35] * len(states)
    spoiled = [np.where(mask[:, None], junk, x) for x, mask in zip(states, pads, strict=True)]
    episodes = Episodes([np.float32(a) for a in actions], action_is_pad=pads)
    seen = Places.of(Subject.of(fine(episodes.actions), episodes, 1, np.ones(1)), spoiled)
    cut = [x[:35] for x in states]
    expected = lipschitz(look(fine(actions), [a[:35] for a in actions], cut)).value
    assert lipschitz(seen).value == pytest.approx(expected, rel=1e-3)  # of float32 states


def test_lipschitz_of_arctan_is_1():
    rng = np.random.default_rng(1)
    states = [rng.uniform(-1.0, 1.0, (50, 1)) for _ in range(20)]
    found = lipschitz(look(fine(states), [np.arctan(x) for x in states], states))
    assert found.parts["raw"] == pytest.approx(1, abs=0.03)
    assert found.parts["quantiles"]["0.5"] < found.value
    assert found.kind is Kind.PROXY


class TestModels:
    def test_neighbours_and_lines_are_those_of_brute_force(self):
        """Of every step: from other episodes (neighbours), from episodes of other folds (lines)."""
        models = Models(gaussian(0.1, n=5, steps=8))
        places, actions = models.places, models.actions
        for a in range(len(places)):
            others = np.flatnonzero(places.episode != places.episode[a])
            order = others[np.argsort(np.linalg.norm(places.states[others] - places.states[a], axis=1))]
            assert models.predicted["nearest"][a] == pytest.approx(actions[order[0]])
            assert models.predicted["neighbours"][a] == pytest.approx(actions[order[:8]].mean(0))
            # five episodes are five folds
            x = np.column_stack([places.states - places.states.mean(0), np.ones(len(places))])
            penalty = np.diag([(1e-4 * len(others)) ** 0.5] * 2 + [0.0])
            rows, right = np.vstack([x[others], penalty]), np.vstack([actions[others], np.zeros((3, 2))])
            line = x[a] @ np.linalg.lstsq(rows, right, rcond=None)[0]
            assert models.predicted["linear"][a] == pytest.approx(line.clip(actions.min(0), actions.max(0)))

    def test_local_fits_are_those_of_brute_force(self):
        """Ridge regression on 32 neighbours, of what the one line leaves."""
        models = Models(gaussian(0.1, n=6, steps=10))
        places, actions = models.places, models.actions
        index = places.nearest[0]
        for a in range(0, len(places), 7):
            x, u = places.states[index[a]], actions[index[a]]
            common = models._lines[places.episode[a], :-1]
            way = x - x.mean(0)
            ridge = 0.1 * np.square(way).sum() / 2 * np.eye(2)
            slope = common + np.linalg.solve(way.T @ way + ridge, way.T @ (u - u.mean(0) - way @ common))
            value = u.mean(0) + (places.states[a] - x.mean(0)) @ slope
            assert models.predicted["local_drawn"][a] == pytest.approx(value.clip(actions.min(0), actions.max(0)))

    def test_take_single_steps_of_tokenizers_that_code_chunks(self):
        rng = np.random.default_rng(0)
        states = walks(rng, 6, 20, 2)
        chunks = look(fine(states, 4), states, states, horizon=4)
        assert len(Models(chunks).places) == 120
        assert Models(chunks).actions == pytest.approx(np.concatenate(states), abs=1e-6)
