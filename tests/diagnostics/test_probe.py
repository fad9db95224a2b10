"""Which states a policy is asked at."""

import numpy as np
import pytest

from action_tokenizers import ActionShapeError, Episodes
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.probe import Probe
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.diagnostics.variation import policy_jump, smoothed_execution
from tests.fakes.policies import STATE_SCALE, Deterministic, Gaussian, bins, walk
from tests.fakes.relative import differences, drifting, pair_of_bins


@pytest.mark.parametrize("spoil", [lambda s: s[:-1], lambda s: s[:, 0], lambda s: s[None]])
def test_states_that_do_not_fit(spoil):
    subject, states = walk()
    with pytest.raises(ActionShapeError, match=r"states \(240, ds\), one per chunk"):
        Probe.of(subject, spoil(states), Gaussian(subject.tokenizer))


def test_a_dim_that_never_varies_is_left_alone():
    subject, states = walk()
    wide = np.concatenate([states, np.full_like(states, 7.0)], axis=1)
    policy = Gaussian(subject.tokenizer)
    probe = Probe.of(subject, wide, policy)
    assert all((ring.others[:, 1] == 7).all() for ring in probe.rings)


def test_pairs_come_evenly_from_all_episodes():
    random = np.random.default_rng(0)
    actions = [random.uniform(-1, 1, (n, 1)).astype(np.float32) for n in (5, 100, 100)]
    subject = Subject.of(bins(), Episodes(actions), 1, np.ones(1))
    states = random.normal(size=(205, 1)).astype(np.float32)
    probe = Probe.of(subject, states, Gaussian(subject.tokenizer), pairs=65)
    assert np.bincount(subject.episode[probe.rows]).tolist() == [5, 30, 30]
    assert len(np.unique(probe.rows)) == 65
    others = probe.neighbours.others
    picked = [int(np.flatnonzero((states == other).all(1))[0]) for other in others]
    assert (subject.episode[picked] != subject.episode[probe.rows]).all()


def expert_in_bins(count):
    """The recorded expert u = x itself, as ids of so many bins."""
    tokenizer = bins(count)
    subject, states = walk(tokenizer=tokenizer, noise=0.0)
    policy = Deterministic(tokenizer, lambda x: (x / STATE_SCALE)[:, None])
    return subject, Probe.of(subject, states, policy)


def test_a_finer_tokenizer_does_not_make_the_same_policy_jump():
    """511 bins err by .001 at most: a jump must be more than five of those."""
    subject, probe = expert_in_bins(511)
    assert subject.mean_error < 0.0011
    assert probe.thresholds == pytest.approx([0.06, 0.1, 0.2])
    found = policy_jump(probe)
    assert found.value == 0
    assert found.parts["share"][1][1] == 0
    coarse, wide = expert_in_bins(16)
    assert wide.thresholds == pytest.approx([m * coarse.mean_error for m in (3, 5, 10)])
    assert coarse.mean_error > 0.02


def test_far_recorded_neighbours_are_told_beside_those_of_the_policy():
    subject, probe = expert_in_bins(511)
    states = probe.states[:, 0] / STATE_SCALE
    nearest = [
        np.where(subject.episode == subject.episode[r], np.inf, abs(states - states[r])).argmin() for r in probe.rows
    ]
    assert probe.nearest.tolist() == nearest
    recorded = subject.actions[:, 0, 0]
    far = abs(recorded[probe.rows] - recorded[nearest]) > 0.1
    assert probe.recorded_far[1].tolist() == far.astype(float).tolist()
    near = policy_jump(probe).parts["neighbours"]
    assert near["recorded"] == near["share"] == [0, 0, 0]  # u = x, and 20 other states to each, on a line


def test_a_policy_is_as_rough_as_an_expert_that_switches():
    """An expert that goes right or left by chance, cloned without an error: what it does is not the policy's fault."""
    random = np.random.default_rng(0)
    signs = random.choice([-0.5, 0.5], (12, 20, 1))
    states = random.uniform(-1, 1, (12, 20, 1))
    tokenizer = bins(64)
    subject = Subject.of(tokenizer, Episodes(list(signs.astype(np.float32))), 1, np.ones(1))
    chosen = dict(zip(states.astype(np.float32).ravel().tolist(), signs.ravel().tolist(), strict=True))
    # what it does elsewhere does not matter here
    policy = Deterministic(tokenizer, lambda x: np.array([[[chosen.get(v, 0.0)]] for v in x[:, 0].tolist()]))
    near = policy_jump(Probe.of(subject, states.reshape(-1, 1), policy, pairs=240)).parts["neighbours"]
    assert 0.4 < near["recorded"][1] == pytest.approx(near["share"][1])
    assert near["excess"] == [0, 0, 0]
    # twelve episodes that all show none
    assert near["excess_interval"] == [pytest.approx((-0.2646, 0.2646), abs=1e-4)] * 3


def test_padded_steps_are_no_far_neighbours():
    random = np.random.default_rng(0)
    actions = [random.uniform(-0.01, 0.01, (8, 1)).astype(np.float32) for _ in range(3)]
    masks = [np.zeros(8, bool) for _ in actions]
    actions[0][2:4], actions[0][6:] = 1.0, 1.0
    masks[1][[2, 3, 6, 7]] = masks[2][[2, 3, 6, 7]] = True  # beside them nothing was recorded
    tokenizer = bins(64, horizon=4)
    subject = Subject.of(tokenizer, Episodes(actions, action_is_pad=masks), 4, np.ones(1))
    states = random.normal(size=(len(subject), 1)).astype(np.float32)
    probe = Probe.of(subject, states, Gaussian(tokenizer, steps=4))
    assert not probe.recorded_far.any()


def test_jumps_of_relative_actions_count_in_what_is_coded():
    """They span a twentieth of the absolute ones: five mean errors of at least .02 would reach from end to end."""

    class Coin:
        """One of the two ends of the range, as the sign of the state says; elsewhere the ids are those of no data."""

        def __init__(self, tokenizer):
            self.ends = tokenizer.encode(np.array([[[-1.0, -1.0]], [[1.0, 1.0]]], np.float32))

        def sample(self, states, *, seed):
            return self.ends[(states[:, 0] > 0).astype(int)]

        def log_prob(self, states, ids):
            return np.where((self.sample(states, seed=0) == ids).all(1), 0.0, -np.inf)

    train, test = drifting(0), drifting(1)
    found = []
    for tokenizer, data in zip(pair_of_bins(train, 8), (test, differences(test)), strict=True):
        subject = Subject.of(tokenizer, data, 1, unit_of(data.actions))
        states = subject.at_starts(test.states)
        probe = Probe.of(subject, states, Coin(tokenizer))
        found.append((probe, policy_jump(probe), smoothed_execution(probe)))
    (relative, jump, price), (plain, other, wide) = found
    assert relative.thresholds == pytest.approx(plain.thresholds, rel=1e-2)
    np.testing.assert_array_equal(relative.recorded_far, plain.recorded_far)
    assert jump.parts["share"] == other.parts["share"]
    assert jump.parts["share"][-1][-1] > 0.1
    assert jump.parts["of_relative"]["mean_error"] == pytest.approx(plain.subject.mean_error, rel=1e-2)
    assert "of_relative" not in other.parts
    assert "half spans of the relative actions" in jump.caveat
    # what smoothing costs is about what is executed
    span = (relative.own_units.unit / relative.subject.unit).max()
    assert price.value < 1.1 * span * wide.value
