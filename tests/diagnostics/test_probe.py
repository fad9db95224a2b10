"""Which states a policy is asked at."""

import numpy as np
import pytest

from action_tokenizers import ActionShapeError, Episodes
from action_tokenizers.diagnostics.probe import Probe
from action_tokenizers.diagnostics.subject import Subject
from tests.fakes.policies import Gaussian, bins, walk


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
