"""Actions that stay near the state, recorded as they are and as differences, and a trap among tokenizers of both."""

import numpy as np

from action_tokenizers import BinningTokenizer, ChunkSample, Episodes, Relative

__all__ = ["differences", "drifting", "pair_of_bins", "turned"]


def drifting(seed, n=14, length=60):
    """Targets within +-1 that are never farther than about .04 from the state."""
    random = np.random.default_rng(seed)
    states = [np.cumsum(random.normal(0, 0.05, (length, 2)), axis=0).clip(-1, 1).astype(np.float32) for _ in range(n)]
    moves = [random.uniform(-0.04, 0.04, s.shape).astype(np.float32) for s in states]
    return Episodes([s + m for s, m in zip(states, moves, strict=True)], states=states)


def differences(episodes):
    """The same recorded as differences from the state."""
    actions = [a - s for a, s in zip(episodes.actions, episodes.states, strict=True)]
    return Episodes(actions, states=episodes.states)


def turned(tokenizer):
    """The same, but for two cells beside the middle that decode to the other end of the range: a trap."""
    middle = tokenizer.centres.shape[1] // 2
    for cell, end in ((middle - 1, -1), (middle, 0)):
        tokenizer.centres[:, cell] = tokenizer.centres[:, end]
    return tokenizer


def pair_of_bins(train, bins=64):
    """Bins of actions relative to the state, and the same of episodes recorded as differences."""
    sample = ChunkSample().add(train, 1, 1, Relative("state"))
    return [BinningTokenizer(bins=bins, horizon=1, range="minmax").fit(data) for data in (sample, differences(train))]
