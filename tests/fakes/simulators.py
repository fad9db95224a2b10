"""Simulators whose answers can be written down, and the subjects that are executed in them."""

import numpy as np

from action_tokenizers import BinningTokenizer, Range
from action_tokenizers.data.synthetic import smooth_episodes
from action_tokenizers.diagnostics.execution import Outcome
from action_tokenizers.diagnostics.subject import Subject

HORIZON = 4


class Line:
    """x' = a x + b u for every dim alone, from where its name says; what it was asked is kept."""

    def __init__(self, a=0.5, b=1.0, score=None):
        self.a, self.b, self.score = a, b, score
        self.asked = []

    def states(self, name, actions):
        x = np.full((len(actions) + 1, actions.shape[1]), float(name))
        for h, u in enumerate(actions):
            x[h + 1] = self.a * x[h] + self.b * u
        return x

    def __call__(self, name, actions):
        self.asked.append((name, actions))
        x = self.states(name, actions)
        return Outcome(x, None if self.score is None else self.score(x))


class Breaking(Line):
    """The same, but for one episode, whose outcome of decoded actions is spoiled."""

    def __init__(self, name, spoil, a=0.5):
        super().__init__(a, score=lambda x: 1)
        self.name, self.spoil, self.seen = name, spoil, set()

    def __call__(self, name, actions):
        outcome = super().__call__(name, actions)
        first = name not in self.seen
        self.seen.add(name)
        return outcome if first or name != self.name else self.spoil(outcome)


def subject_of(episodes, bins=16, tokenizer=None):
    tokenizer = tokenizer or fitted(bins)
    return Subject.of(tokenizer, episodes, HORIZON, np.ones(episodes.action_dim))


def fitted(bins):
    """Even cells on [-1, 1]: of data with few values the tokenizer would keep every one."""
    moving = smooth_episodes(8, (20, 40), 2, gripper=False)
    return BinningTokenizer(bins=bins, horizon=HORIZON, range=Range([-1] * 2, [1] * 2)).fit(moving)
