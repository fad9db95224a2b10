"""Policies with known laws over the ids of a tokenizer, and episodes whose expert is known."""

import numpy as np
from scipy.special import ndtr, softmax

from action_tokenizers import BinningTokenizer, Episodes, Range
from action_tokenizers.diagnostics.subject import Subject

STATE_SCALE = 1000.0  # state dims may have any scale: here millimetres


class Listed:
    """A policy that chooses one of a few rows of ids `(k, n)`, with logits `(b, k)` that depend on the state."""

    def __init__(self, rows, logits):
        self.rows, self.logits_of_rows = rows, logits
        self.place = {tuple(row): i for i, row in enumerate(rows.tolist())}

    def law(self, states):
        # most rows ask about one state
        few, which = np.unique(states, axis=0, return_inverse=True)
        return softmax(self.logits_of_rows(few), axis=1)[which.ravel()]

    def sample(self, states, *, seed):
        u = np.random.default_rng(seed).random(len(states))
        chosen = (self.law(states).cumsum(1) < u[:, None]).sum(1)
        return self.rows[np.minimum(chosen, len(self.rows) - 1)]

    def log_prob(self, states, ids):
        chosen = np.array([self.place.get(tuple(row), -1) for row in ids.tolist()])
        law = np.where(chosen < 0, 0, self.law(states)[np.arange(len(ids)), chosen])
        with np.errstate(divide="ignore"):
            return np.log(law)


class Gaussian:
    """u ~ N(states / STATE_SCALE, spread²) in every step alone, as ids of one-dim bins over [-1, 1]."""

    def __init__(self, tokenizer, spread=0.1, steps=1):
        self.edges = tokenizer.scalar_cells().edges[0].double().numpy()
        self.spread, self.steps, self.vocab_size = spread, steps, tokenizer.vocab_size

    def step_law(self, states):
        below = ndtr((self.edges - states[:, :1].astype(float) / STATE_SCALE) / self.spread)
        ends = np.ones((len(states), 1))
        law = np.diff(np.concatenate([0 * ends, below, ends], axis=1))
        return np.pad(law, ((0, 0), (0, self.vocab_size - law.shape[1])))

    def sample(self, states, *, seed):
        u = np.random.default_rng(seed).random((len(states), self.steps))
        below = self.step_law(states).cumsum(1)
        return np.minimum((below[:, None] < u[..., None]).sum(-1), len(self.edges))

    def log_prob(self, states, ids):
        law = self.step_law(states)
        with np.errstate(divide="ignore"):
            return np.log(np.take_along_axis(law, ids, axis=1)).sum(1)

    def logits(self, states, prefix):
        with np.errstate(divide="ignore"):
            return np.log(self.step_law(states))


class Mute:
    """The same policy without its logits."""

    def __init__(self, policy):
        self.sample, self.log_prob = policy.sample, policy.log_prob


class Deterministic:
    """Does what `act` says, in ids: `(b, ds)` to `(b, t, d)`."""

    def __init__(self, tokenizer, act):
        self.ids = lambda states: tokenizer.encode(act(states).astype(np.float32))

    def sample(self, states, *, seed):
        return self.ids(states)

    def log_prob(self, states, ids):
        return np.where((self.ids(states) == ids).all(1), 0.0, -np.inf)


def bins(count=64, horizon=1, **more):
    ramp = np.linspace(-1, 1, 40, dtype=np.float32).reshape(-1, horizon, 1)
    return BinningTokenizer(horizon=horizon, range=Range([-1.0], [1.0]), bins=count, **more).fit(ramp)


def walk(n_episodes=12, length=20, horizon=1, tokenizer=None, noise=0.1, seed=0):
    """Episodes of u = x + noise, |x| < .6, as a subject, and the states of its chunks in millimetres."""
    random = np.random.default_rng(seed)
    xs = [random.uniform(-0.6, 0.6, (length, 1)) for _ in range(n_episodes)]
    actions = [(x + noise * random.standard_normal(x.shape)).clip(-1, 1).astype(np.float32) for x in xs]
    tokenizer = tokenizer or bins(horizon=horizon)
    subject = Subject.of(tokenizer, Episodes(actions), horizon, np.ones(1))
    states = np.stack([xs[e][f] for e, f in zip(subject.episode, subject.first, strict=True)])
    return subject, (states * STATE_SCALE).astype(np.float32)
