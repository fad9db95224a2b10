# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""E10: the estimators that the theory needs, held against what is known exactly.

    python recipes/theory/e10_estimators.py [--smoke] [--json FILE] [--plot FILE]

Total variation of whole id sequences from draws; how much of a total variation of counts is chance; the ceiling that
kernel smoothing puts on every slope; what rounding of frequency coefficients does to a chunk.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import claims
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, Range
from action_tokenizers.codecs.dct import dct_matrix
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.coupling import exact_tv, sequence_tv
from action_tokenizers.diagnostics.error import error_sup
from action_tokenizers.diagnostics.kernels import kernel_slope, plugin_bias, plugin_tv
from action_tokenizers.diagnostics.places import Places
from action_tokenizers.diagnostics.subject import Subject

EXACT, DRAWS, SPREAD = 0.3826, 20_000, 0.0031  # of the total variation of sequences, with the spread of an estimate
LENGTH, IDS = 4, 5
TOKENS = 64
# m draws: reference plug-in total variation of two samples of one law, and the formula
PLUGIN = {50: (0.487, 0.563), 200: (0.270, 0.281), 1000: (0.125, 0.126), 5000: (0.057, 0.056)}
LAWS = 100
SIGMAS, SLOPES = (0.05, 0.1, 0.2), (7.82, 3.92, 1.98)
HORIZON, DIMS, SCALE = 16, 7, 10  # of FAST; a coefficient is rounded to Δ = 1 / SCALE
CHUNKS = 4000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Chain:
    """A policy whose next id depends on the last one and on the state, over all sequences `(IDS ** LENGTH, LENGTH)`."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.start, self.move = random.normal(size=IDS), random.normal(size=(IDS, IDS))
        self.pull = random.normal(size=(LENGTH, IDS))
        self.rows = np.array(list(itertools.product(range(IDS), repeat=LENGTH)))

    def law(self, state: float) -> Floats:
        """Return the probability of every sequence."""
        return np.exp(self._log_prob(np.full((len(self.rows), 1), state), self.rows))

    def sample(self, states: Any, *, seed: int) -> Ints:
        """Return sequences for `states (b, 1)`."""
        u = np.random.default_rng(seed).random(len(states))
        few, which = np.unique(states, return_inverse=True)
        below = np.stack([self.law(float(state)).cumsum() for state in few])
        chosen = [np.searchsorted(below[i], x) for i, x in zip(which.ravel(), u, strict=True)]
        return self.rows[np.minimum(chosen, len(self.rows) - 1)]

    def log_prob(self, states: Any, ids: Ints) -> Floats:
        """Return the log-probability of every row."""
        return self._log_prob(np.asarray(states, np.float64), ids)

    def _log_prob(self, states: Floats, ids: Ints) -> Floats:
        shift = states[:, :1, None] * self.pull
        each = np.arange(len(ids))
        total = log_softmax(self.start + shift[:, 0], axis=-1)[each, ids[:, 0]]
        for j in range(1, LENGTH):
            total = total + log_softmax(self.move[ids[:, j - 1]] + shift[:, j], axis=-1)[each, ids[:, j]]
        return np.asarray(total, np.float64)


def of_sequences(pairs: int) -> list[claims.Row]:
    """Return how well draws find a total variation that a list of all sequences gives exactly."""
    chain = Chain()
    here = chain.law(0.0)
    there = float(brentq(lambda state: exact_tv(here, chain.law(state)) - EXACT, 0, 3))
    states = np.zeros((1, 1), np.float32)
    found = sequence_tv(chain, states, np.full((1, 1), there, np.float32), DRAWS, seed=1)
    many = np.zeros((pairs, 1), np.float32)
    short = sequence_tv(chain, many, np.full((pairs, 1), there, np.float32), 20)
    held = float(((short.low <= EXACT) & (short.high >= EXACT)).mean())
    return [
        claims.near(
            "estimator",
            f"TV of {IDS**LENGTH} sequences: estimate from {DRAWS} draws",
            EXACT,
            float(found.value[0]),
            absolute=SPREAD,
        ),
        claims.near(
            "estimator",
            f"mean of {pairs} estimates from 20 draws each",
            EXACT,
            float(short.value.mean()),
            absolute=4 * float(short.value.std()) / math.sqrt(pairs),
        ),
        claims.at_least("estimator", "share of their 95 % intervals that hold the truth", 0.95, held),
    ]


def of_chance(laws: int) -> tuple[list[claims.Row], dict[str, list[float]]]:
    """Return the plug-in total variation of two samples of one law of 64 tokens, and what is left beyond chance."""
    random = np.random.default_rng(0)
    drawn = random.dirichlet(np.ones(TOKENS), laws)
    rows, plugin, formula = [], [], []
    for m, (reference, expected) in PLUGIN.items():
        found = [plugin_tv(*random.multinomial(m, law, 2), seed=i, shuffles=20) for i, law in enumerate(drawn)]
        plugin.append(float(np.mean([f.plugin for f in found])))
        formula.append(float(np.mean([plugin_bias(law, m) for law in drawn])))
        rows += [
            claims.near("estimator", f"one law, two samples of {m}: plug-in TV", reference, plugin[-1], absolute=0.02),
            claims.near(
                "estimator", f"the same by Σ √(p (1 - p) / π m), m = {m}", expected, formula[-1], absolute=0.01
            ),
            claims.near(
                "estimator",
                f"the same beyond chance, m = {m}",
                0,
                float(np.mean([f.excess for f in found])),
                absolute=0.015,
            ),
        ]
    return rows, {"m": list(PLUGIN), "plugin": plugin, "formula": formula}


def of_kernels() -> list[claims.Row]:
    """Return the slope that kernel smoothing gives an expert that jumps: the ceiling, whatever the truth."""
    line = (np.arange(3000) + 0.5) / 3000 * 2 - 1
    states = list(np.random.default_rng(0).permutation(line).reshape(100, 30, 1).astype(np.float32))
    actions = [np.sign(x) for x in states]
    tokenizer = BinningTokenizer(bins=64, range=Range([-1.0], [1.0]), horizon=1).fit(actions)
    places = Places.of(Subject.of(tokenizer, Episodes(actions, states=states), 1, np.ones(1)), states)
    std = float(places.scale[0])
    parts = kernel_slope(places, sigmas=[sigma / std for sigma in SIGMAS]).parts
    rows = []
    for i, (sigma, reference) in enumerate(zip(SIGMAS, SLOPES, strict=True)):
        rows += [
            claims.near(
                "estimator",
                f"discontinuous expert, kernel of σ = {sigma}: slope",
                reference,
                parts["slope"][i] / std,
                percent=5,
            ),
            claims.near(
                "estimator",
                f"the ceiling .399 / σ, σ = {sigma}",
                1 / (math.sqrt(2 * math.pi) * sigma),
                parts["ceiling"][i] / std,
                absolute=1e-3,
            ),
        ]
    return rows


def of_rounding(count: int) -> list[claims.Row]:
    """Return what rounding of coefficients does to chunks of seven dims, and one coefficient that is off by one."""
    uniform = np.random.default_rng(0).uniform(-1, 1, (count, HORIZON, DIMS)).astype(np.float32)
    whole = Range([-1.0] * DIMS, [1.0] * DIMS)
    tokenizer = FASTTokenizer(horizon=HORIZON, scale=SCALE, range=whole, vocab_size=512).fit(uniform)
    # half as large, no decoded value leaves the range, so that clamping cannot lower the error
    error = np.linalg.norm((tokenizer.quantize(uniform / 2) - uniform / 2).reshape(count, -1), axis=1)
    clamped = np.linalg.norm((tokenizer.quantize(uniform) - uniform).reshape(count, -1), axis=1)
    episodes = smooth_episodes(8, length=(30, 50), action_dim=DIMS, gripper=False, seed=0)
    smooth = FASTTokenizer(horizon=HORIZON, scale=SCALE, range=whole, vocab_size=512).fit(episodes)
    bound = error_sup(Subject.of(smooth, episodes, HORIZON, np.ones(DIMS))).parts["chunk"]
    step = 1 / SCALE * dct_matrix(HORIZON)
    note = "the law behind the reference is not stated; these are uniform chunks"
    return [
        claims.near(
            "FAST", "T = 16, D = 7, Δ = .1: bound (Δ / 2) √(T D) on the error of a chunk", 0.529, bound, absolute=5e-4
        ),
        claims.at_most(
            "FAST", "uniform chunks in half the range: largest error in L2", bound, float(error.max()), limit_is="bound"
        ),
        claims.near(
            "FAST",
            "uniform chunks in half the range: mean error in L2, Δ √(T D / 12) nearly",
            0.1 * math.sqrt(HORIZON * DIMS / 12),
            float(error.mean()),
            percent=1.5,
        ),
        claims.differs(
            "FAST",
            "uniform chunks, decoded values clamped to the range: mean error in L2",
            0.285,
            float(clamped.mean()),
            known=0.303,
            absolute=0.003,
            note=note,
        ),
        claims.differs(
            "FAST",
            "the same: largest error of a chunk",
            0.334,
            float(clamped.max()),
            known=0.351,
            absolute=0.015,
            note=note,
        ),
        claims.near(
            "FAST", "one coefficient off by one: L2", 0.1, float(np.linalg.norm(step, axis=1).max()), absolute=1e-9
        ),
        claims.near(
            "FAST", "one coefficient off by one: largest value", 0.0352, float(np.abs(step).max()), absolute=5e-5
        ),
        claims.at_most(
            "FAST", "the same", 0.1 * math.sqrt(2 / HORIZON), float(np.abs(step).max()), limit_is="Δ √(2 / T)"
        ),
    ]


def run(smoke: bool = False) -> claims.Found:
    chance, series = of_chance(20 if smoke else LAWS)
    rows = [*of_sequences(100 if smoke else 400), *chance, *of_kernels(), *of_rounding(1000 if smoke else CHUNKS)]
    return claims.results(rows, **series)


def plot(found: claims.Found) -> object:
    made, (axes,) = claims.figure()
    axes.loglog(found["m"], found["plugin"], "o", color=claims.COLOURS[0])
    axes.loglog(found["m"], found["formula"], "-", color=claims.COLOURS[1])
    axes.annotate(
        "two samples of one law",
        (found["m"][1], found["plugin"][1]),
        xytext=(6, 8),
        textcoords="offset points",
        color=claims.COLOURS[0],
    )
    axes.annotate(
        "Σ √(p (1 - p) / π m)",
        (found["m"][2], found["formula"][2]),
        xytext=(-8, -14),
        textcoords="offset points",
        color=claims.COLOURS[1],
        ha="right",
    )
    axes.set(xlabel="draws m from each of two places", ylabel="plug-in total variation, all of it chance")
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
