"""Experts with known answers, and the places where they were seen, for tests of pairs of states."""

import numpy as np

from action_tokenizers import BinningTokenizer, Episodes, Range
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.places import Places
from action_tokenizers.diagnostics.subject import Subject


def look(tokenizer, actions, states, horizon=1, unit=None, **options) -> Places:
    """The places of these episodes; units of 1 unless the data decide."""
    episodes = Episodes([np.asarray(a, np.float32) for a in actions], states=[np.float32(s) for s in states])
    unit = np.ones(episodes.action_dim) if unit is None else unit_of(episodes.actions)
    return Places.of(Subject.of(tokenizer, episodes, horizon, unit), episodes.states, **options)


def walks(rng, n, steps, dim):
    """States of episodes that cross each other's ways."""
    return [rng.normal(size=dim) + 0.1 * np.cumsum(rng.normal(size=(steps, dim)), 0) for _ in range(n)]


def fine(actions, horizon=1):
    """Bins too narrow to matter, over -3..3."""
    dim = actions[0].shape[1]
    return BinningTokenizer(horizon=horizon, bins=2048, range=Range([-3.0] * dim, [3.0] * dim)).fit(actions)


def gaussian(sigma, n=24, steps=30, seed=0) -> Places:
    """An expert with noise of that size on a smooth mean."""
    rng = np.random.default_rng(seed)
    states = walks(rng, n, steps, 2)
    actions = [
        np.stack([np.sin(x[:, 0]), 0.5 * x[:, 1] - 0.2 * x[:, 0]], 1) + sigma * rng.normal(size=(steps, 2))
        for x in states
    ]
    return look(fine(actions), [a.astype(np.float32) for a in actions], states)


def uniform_line(expert, episodes=40, steps=30, seed=0) -> Places:
    """States evenly on -1..1 in random order."""
    rng = np.random.default_rng(seed)
    line = (np.arange(episodes * steps) + 0.5) / (episodes * steps) * 2 - 1
    states = list(rng.permutation(line).reshape(episodes, steps, 1))
    actions = [expert(rng, x) for x in states]
    tokenizer = BinningTokenizer(bins=64, range=Range([-1.0], [1.0]), horizon=1)
    return look(tokenizer.fit([np.float32(a) for a in actions]), actions, states)
