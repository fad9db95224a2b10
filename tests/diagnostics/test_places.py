"""The sample of places and of pairs, against brute force."""

from itertools import pairwise

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, KMeansTokenizer, Relative
from action_tokenizers.data import ChunkSample
from action_tokenizers.diagnostics.places import Pairs, Places, blocks, norm
from action_tokenizers.diagnostics.subject import Subject
from tests.fakes.experts import fine, look, walks
from tests.fakes.relative import drifting, pair_of_bins

LENGTHS = (9, 14, 7, 12)


@pytest.fixture(scope="module")
def data():
    """Actions and states of four episodes of different lengths."""
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(n, 3)) * [1, 100, 0.01] for n in LENGTHS]
    return [np.tanh(x[:, :2] / [1, 100]) for x in states], states


@pytest.fixture(scope="module")
def steps(data):
    actions, states = data
    return look(fine(actions, 4), actions, states, horizon=4)


@pytest.fixture(scope="module")
def chunks(data):
    actions, states = data
    tokenizer = KMeansTokenizer(codebook_size=3, scope="chunk", horizon=4).fit([np.float32(a) for a in actions])
    return look(tokenizer, actions, states, horizon=4)


@pytest.fixture(params=["steps", "chunks"])
def places(request):
    return request.getfixturevalue(request.param)


class TestPlaces:
    def test_steps_are_all_recorded_ones(self, data, steps):
        actions, states = data
        assert steps.episode.tolist() == np.repeat(range(4), LENGTHS).tolist()
        assert steps.step.tolist() == [h for n in LENGTHS for h in range(n)]
        assert steps.actions == pytest.approx(np.concatenate(actions)[:, None], abs=1e-6)
        assert steps.decoded == pytest.approx(steps.actions, abs=6 / 2048)
        assert steps.states * steps.scale == pytest.approx(np.concatenate(states), rel=1e-5)

    def test_chunks_are_the_whole_ones(self, data, chunks):
        actions, states = data
        starts = [(i, h) for i, n in enumerate(LENGTHS) for h in range(0, n - 3, 4)]
        assert list(zip(chunks.episode.tolist(), chunks.step.tolist(), strict=True)) == starts
        assert chunks.actions == pytest.approx(np.array([actions[i][h : h + 4] for i, h in starts]), abs=1e-6)
        assert chunks.decoded == pytest.approx(chunks.subject.tokenizer.quantize(np.float32(chunks.actions)))
        assert chunks.states * chunks.scale == pytest.approx(np.array([states[i][h] for i, h in starts]), rel=1e-5)
        assert chunks.phase == pytest.approx([h / (LENGTHS[i] - 1) for i, h in starts])

    def test_every_state_dim_that_moves_has_a_deviation_of_1(self, data):
        actions, states = data
        still = [np.insert(x, 1, 1e6, axis=1) for x in states]
        found = look(fine(actions), actions, still)
        assert found.states.shape == (sum(LENGTHS), 3)
        assert found.states.std(0) == pytest.approx(1)
        assert found.scale == pytest.approx(np.concatenate(states).std(0), rel=1e-5)

    def test_chunks_can_be_looked_at_step_by_step(self, data, chunks):
        steps = chunks.steps
        assert steps.steps is steps
        assert steps.actions == pytest.approx(np.concatenate(data[0])[:, None], abs=1e-6)

    def test_later_steps_of_relative_chunks_are_no_places(self):
        rng = np.random.default_rng(0)
        states = walks(rng, 5, 24, 1)
        episodes = Episodes([np.float32(x + 0.1) for x in states], states=[np.float32(x) for x in states])
        tokenizer = BinningTokenizer(horizon=8).fit(ChunkSample().add(episodes, 8, 1, relative=Relative("state")))
        found = Places.of(Subject.of(tokenizer, episodes, 8, np.ones(1)), episodes.states)
        assert found.actions.shape == (15, 8, 1)
        assert found.steps.actions.shape == (15, 1, 1)
        assert found.steps.step.tolist() == [0, 8, 16] * 5
        assert found.steps.actions == pytest.approx(0.1, abs=1e-6)

    @pytest.mark.parametrize("junk", [0.0, 1000.0, np.nan, np.inf])
    def test_what_padded_steps_hold_does_not_matter(self, data, junk):
        """As if the episodes had ended there."""
        actions, states = ([np.float32(x) for x in side] for side in data)
        tokenizer = fine(actions, 4)
        pads = [np.arange(n) >= n - 3 for n in LENGTHS]
        spoiled = [np.where(mask[:, None], junk, x) for x, mask in zip(states, pads, strict=True)]
        found = Places.of(Subject.of(tokenizer, Episodes(actions, action_is_pad=pads), 4, np.ones(2)), spoiled)
        cut = Episodes([a[:-3] for a in actions])
        expected = Places.of(Subject.of(tokenizer, cut, 4, np.ones(2)), [x[:-3] for x in states])
        for name in ("states", "scale", "phase", "actions", "step", "episode"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name

    def test_the_phase_counts_recorded_steps(self):
        states = walks(np.random.default_rng(0), 2, 8, 1)
        episodes = Episodes(
            [np.float32(x) for x in states], action_is_pad=[np.isin(np.arange(8), (0, 4, 7)), np.zeros(8, bool)]
        )
        found = Places.of(Subject.of(fine(episodes.actions, 4), episodes, 4, np.ones(1)), states)
        assert found.step[:5].tolist() == [1, 2, 3, 5, 6]
        assert found.phase.tolist() == [0, 0.25, 0.5, 0.75, 1, *(np.arange(8) / 7)]

    def test_a_relative_chunk_that_begins_with_a_padded_step_is_no_place(self):
        states = [np.float32(x) for x in walks(np.random.default_rng(0), 3, 16, 1)]
        episodes = Episodes([x + 0.1 for x in states], states=states, action_is_pad=[np.arange(16) == 4] * 3)
        tokenizer = BinningTokenizer(horizon=4).fit(ChunkSample().add(episodes, 4, 1, relative=Relative("state")))
        found = Places.of(Subject.of(tokenizer, episodes, 4, np.ones(1)), episodes.states)
        assert found.steps.step.tolist() == [0, 8, 12] * 3

    def test_episodes_too_short_for_a_chunk_are_no_members(self):
        rng = np.random.default_rng(0)
        states = [rng.normal(size=(n, 2)) for n in (3, 8, 2, 10)]
        found = look(fine(states[1::2], 4), states, states, horizon=4)
        assert found.members.tolist() == [1, 3]
        assert found.n == {"episodes": 2, "places": 18}
        assert found.states * found.scale == pytest.approx(np.concatenate([states[1], states[3]]), rel=1e-5)

    def test_equal_tokens_are_equal_codes(self, places):
        """Of fine bins those that decode alike, of a codebook those of one id."""
        same = np.abs(places.decoded[:, None] - places.decoded).max((2, 3)) == 0
        assert np.array_equal(places.tokens[:, None] == places.tokens, same)
        assert set(places.tokens) == set(range(places.tokens.max() + 1))

    def test_mean_per_episode(self, places):
        values = np.random.default_rng(0).normal(size=(len(places), 2, 3))
        expected = [values[places.episode == e].mean(0) for e in range(4)]
        assert places.per_episode(values) == pytest.approx(np.array(expected))
        error = np.linalg.norm(places.decoded - places.actions, axis=2).max(1)
        assert places.mean_error == pytest.approx(np.mean([error[places.episode == e].mean() for e in range(4)]))

    @pytest.mark.parametrize("phase", [None, 0.1])
    def test_neighbours_are_those_of_brute_force(self, places, phase):
        index, distance = places.neighbours(5, phase)
        for a in range(len(places)):
            others = [
                (np.linalg.norm(places.states[a] - places.states[b]), b)
                for b in range(len(places))
                if places.episode[a] != places.episode[b]
                and (phase is None or abs(places.phase[a] - places.phase[b]) <= phase)
            ]
            expected = sorted(others)[:5]
            there = np.isfinite(distance[a])
            assert distance[a][there] == pytest.approx([d for d, _ in expected])
            assert index[a][there].tolist() == [b for _, b in expected]

    def test_reach_is_what_every_place_has(self, steps):
        assert steps.nearest[0].shape == (42, 32)
        assert steps.reach == sum(LENGTHS) - max(LENGTHS)  # the longest episode has the fewest others

    def test_says_why_nothing_can_be_said(self, data):
        actions, states = data
        assert look(fine(actions), actions, states).fault == ""
        assert "never change" in look(fine(actions), actions, [np.ones_like(x) for x in states]).fault
        assert "One episode only" in look(fine(actions), actions[:1], states[:1]).fault


class TestSample:
    def test_more_places_than_are_compared(self):
        rng = np.random.default_rng(0)
        states = [rng.normal(size=(steps, 1)) for steps in (5, 500, 500)]
        actions = [0.1 * x for x in states]
        found = look(fine(actions), actions, states, most=200)
        assert np.bincount(found.episode).tolist() == [5, 98, 97]  # what the short one lacks the others give
        assert np.allclose(found.actions[:, 0, 0], 0.1 * found.states[:, 0] * found.scale, atol=1e-6)
        assert len(found.whole) == 1005

    def test_more_episodes_than_places(self):
        rng = np.random.default_rng(0)
        states = [rng.normal(size=(2, 1)) for _ in range(50)]
        found = look(fine(states), states, states, most=30)
        assert (found.episodes, len(found)) == (30, 30)

    def test_depends_on_the_seed_only(self):
        states = [np.random.default_rng(0).normal(size=(50, 1)) for _ in range(4)]
        first, again, other = (look(fine(states), states, states, seed=s, most=40) for s in (1, 1, 2))
        assert np.array_equal(first.step, again.step)
        assert not np.array_equal(first.step, other.step)

    def test_states_of_many_dims_are_compared_at_fewer_places(self):
        states = [np.random.default_rng(0).normal(size=(50, 256)) for _ in range(4)]
        actions = [x[:, :1] for x in states]
        assert len(look(fine(actions), actions, states, most=100)) == 50


class TestPairs:
    @pytest.mark.parametrize("phase", [None, 0.2])
    def test_are_of_different_episodes_and_similar_phase(self, places, phase):
        pairs = Pairs.of(places, phase)
        assert (places.episode[pairs.i] != places.episode[pairs.j]).all()
        assert pairs.distance == pytest.approx(np.linalg.norm(places.states[pairs.i] - places.states[pairs.j], axis=1))
        if phase is not None:
            assert np.abs(places.phase[pairs.i] - places.phase[pairs.j]).max() <= phase

    def test_hold_the_nearest_of_every_place_once(self, places):
        pairs = Pairs.of(places)
        near = pairs.only(pairs.nearest)
        assert near.i.tolist() == list(range(len(places)))
        assert near.j.tolist() == places.nearest[0][:, 0].tolist()
        for a, d in zip(pairs.i, pairs.distance, strict=True):
            assert d >= near.distance[a]

    def test_jumps_are_the_largest_over_steps(self, places):
        pairs = Pairs.of(places)
        both = zip(pairs.i, pairs.j, strict=True)
        expected = [max(np.linalg.norm(places.actions[i] - places.actions[j], axis=1)) for i, j in both]
        assert pairs.jumps(places.actions) == pytest.approx(expected)

    def test_classes_part_the_pairs_by_distance(self, steps):
        pairs = Pairs.of(steps)
        classes = pairs.classes()
        assert np.array_equal(np.sum(classes, axis=0), np.ones(len(pairs.i)))
        assert [c.sum() for c in classes] == pytest.approx([len(pairs.i) / 10] * 10, abs=6)
        assert all(pairs.distance[a].max() <= pairs.distance[b].min() for a, b in pairwise(classes))

    def test_equal_distances_are_one_class(self):
        none = np.zeros(30, np.int64)
        assert len(Pairs(none, none, np.ones(30), none == 0).classes()) == 1


def test_norm_is_euclidean_over_dims_and_the_largest_over_steps():
    assert norm(np.array([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])).tolist() == [5, 2]


def test_blocks_hold_every_row_once_and_not_too_much():
    found = blocks(1000, 10_000)
    assert np.concatenate([np.arange(1000)[rows] for rows in found]).tolist() == list(range(1000))
    assert all((rows.stop - rows.start) * 10_000 <= 1 << 21 for rows in found)
    assert blocks(2, 1 << 30) == [slice(0, 1), slice(1, 2)]  # a row at a time where even that is too much


def test_own_units_are_those_of_the_subject():
    data = drifting(0)
    for tokenizer in pair_of_bins(data):
        places = Places.of(Subject.of(tokenizer, data, 1, np.ones(2)), data.states)
        own = places.in_own_units()
        assert (own is places) == (tokenizer.relative is None)
        unit = own.subject.unit
        assert (unit == 1).all() == (tokenizer.relative is None)
        np.testing.assert_allclose(own.actions * unit, places.actions, atol=1e-9)
        np.testing.assert_array_equal(own.rows, places.rows)
