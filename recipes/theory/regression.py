# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""Regression cloning beside log-loss cloning on tokens, and when either is safe (Proposition 4, Lemma 13).

    python recipes/theory/regression.py [--smoke] [--json FILE] [--plot FILE]

x' = a x + b u with an expert that is linear in x; both systems forget without feedback, one of the two closed loops
does not. A deterministic learner that is wrong by δ loses order δ in the one and, after log(1 / δ) steps, everything in
the other. With Gaussian actions on both sides (total variation continuity) it loses order H δ in both: the noise
spreads as fast as the error grows. Log-loss on densities has nothing to say about a deterministic expert (total
variation 1); on tokens it has, because an id has an atom.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import claims
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import erf, ndtr

from action_tokenizers import BinningTokenizer, Range
from action_tokenizers.diagnostics.coupling import exact_tv
from action_tokenizers.diagnostics.dynamics import impulse_gain, scalar_gain
from action_tokenizers.diagnostics.theorems import bound_stochastic
from action_tokenizers.diagnostics.variation import STEEPEST

BIASES = [10.0**-k for k in range(3, 9)]  # δ
HORIZONS = [10, 20, 40, 80, 160, 320]
LONG = 400  # steps after which the unstable loop has lost everything at any of these δ
SPREAD = 0.1  # σ of the expert's actions
WIDTH = 0.05  # of the bins
REACH = 32.0  # of the bins: beyond what the unstable loop reaches in EPISODE steps
EPISODE = 20  # steps
SIZES = [16, 64, 256, 1024]  # demonstrations
REPEATS = 24
ROBOTS = 4000  # chains of each deployment
OFFSET = 0.02  # of the expert: u = K x + OFFSET + noise

Floats = NDArray[np.float64]


class System(NamedTuple):
    """x' = a x + b u with an expert of slope K."""

    a: float
    b: float
    slope: float

    @property
    def loop(self) -> float:
        """The closed loop, a + b K."""
        return self.a + self.b * self.slope


SYSTEMS = {"stable": System(0.5, 1, -0.3), "unstable": System(0.9, 1, 0.2)}


@cache
def gains(system: System) -> Floats:
    """Return how far a lasting action error of 1 moves the state of the closed loop, before each of `LONG` steps."""
    return np.array([0.0, *(impulse_gain(system.loop, system.b, h) for h in range(1, LONG))])


def lost_without_noise(system: System, bias: float, horizon: int) -> float:
    """Return the regret of u = K x against u = K x + δ from x = 0; the reward is 1 - the distance from the latter's."""
    return float(np.minimum(bias * gains(system)[:horizon], 1).sum())


def lost_with_noise(system: System, bias: float, horizon: int) -> float:
    """Return the most that N(K x, σ²) can lose against N(K x + δ, σ²) with rewards of 0..1: the sum of TV of (x, u).

    The two Gaussians of a step differ in their means alone: by m_h in the state, of variance s_h², and by δ in the
    action given the state.
    """
    steps = np.arange(horizon)
    means = bias * gains(system)[:horizon]
    spreads = SPREAD * abs(system.b) * np.sqrt(np.cumsum(system.loop ** (2 * steps)))
    states = np.divide(means, np.append(1.0, spreads[:-1]))  # the first state is known
    return float(erf(np.sqrt(states**2 + (bias / SPREAD) ** 2) / (2 * math.sqrt(2))).sum())


def of_regression() -> tuple[list[claims.Row], dict[str, list[float]]]:
    """Return Proposition 4 with and without its condition, for a learner that is wrong by δ everywhere."""
    rows: list[claims.Row] = []
    series: dict[str, list[float]] = {}
    bias = BIASES[0]
    for name, system in SYSTEMS.items():
        bare = [lost_without_noise(system, bias, h) for h in HORIZONS]
        noisy = [lost_with_noise(system, bias, h) for h in HORIZONS]
        gain = scalar_gain(system.a, system.b)
        bound = bound_stochastic(
            HORIZONS, total_variation=0, mean_error=bias, policy_slope=STEEPEST / SPREAD, gain=gain
        )
        series |= {f"{name} bare": bare, f"{name} noisy": noisy, f"{name} bound": bound.capped.tolist()}
        limit = bias / SPREAD * math.sqrt(2 * max(1, system.loop) / abs(1 - system.loop))
        rows += [
            claims.near(
                "Prop 4",
                f"{name} loop, Gaussian actions: exponent of the most that is lost in H, 160 … 320",
                1,
                claims.slope(HORIZONS[-2:], noisy[-2:]),
                absolute=0.05,
            ),
            claims.near(
                "Prop 4",
                f"{name} loop, Gaussian actions: loss per late step over its limit",
                1,
                (noisy[-1] - noisy[-2]) / (HORIZONS[-1] - HORIZONS[-2]) / math.erf(limit / (2 * math.sqrt(2))),
                absolute=0.001,
            ),
            claims.at_most(
                "Prop 4",
                f"{name} loop, Gaussian actions: largest ratio to the bound, any H",
                1,
                float(np.max(noisy / bound.total)),
            ),
            claims.near(
                "Prop 4",
                f"{name} loop, Gaussian actions: exponent of the loss in δ",
                1,
                claims.slope(BIASES, [lost_with_noise(system, d, 80) for d in BIASES]),
                absolute=0.01,
            ),
        ]
    stable, unstable = ([lost_without_noise(system, d, LONG) for d in BIASES] for system in SYSTEMS.values())
    needed = [math.log(0.1 / d) / math.log(SYSTEMS["unstable"].loop) for d in BIASES]  # steps until the gap is 1
    rows += [
        claims.near(
            "Lipschitz",
            f"stable loop, no noise: exponent of the loss in δ, H = {LONG}",
            1,
            claims.slope(BIASES, stable),
            absolute=0.001,
        ),
        claims.near(
            "Lipschitz",
            "unstable loop, no noise: steps that are not lost entirely, over log(.1 / δ) / log 1.1, smallest δ",
            1,
            (LONG - unstable[-1]) / needed[-1],
            absolute=0.1,
        ),
        claims.near(
            "Lipschitz",
            "unstable loop, no noise: exponent of loss / (H Σ E|u* - û|) in δ: no constant will do",
            -1,
            claims.slope(BIASES, np.divide(unstable, np.multiply(BIASES, LONG**2))),
            absolute=0.1,
        ),
    ]
    return rows, series


def of_atoms() -> tuple[list[claims.Row], dict[str, list[float]]]:
    """Return how far a Gaussian learner of the right mean is from a deterministic expert, on ids and as a density."""
    counts = [2**k for k in range(2, 15)]
    spread = 0.5 / 4 / 4  # a quarter of the widest cell considered, at 4 bins of [-1, 1]
    apart = []
    for count in counts:
        edges = bins(1.0, count).scalar_cells().edges[0].double().numpy()
        mean = 1 / count  # the middle of a cell
        learned = np.diff(ndtr(np.concatenate([[-np.inf], (edges - mean) / spread, [np.inf]])))
        expert = (np.arange(count) == np.searchsorted(edges, mean)).astype(np.float64)
        apart.append(float(exact_tv(learned, expert)))
    quarter = bins(1.0, 16).scalar_cells().edges[0].double().numpy()
    learned = np.diff(ndtr(np.concatenate([[-np.inf], (quarter - 1 / 16) / (1 / 8 / 4), [np.inf]])))
    return [
        claims.near(
            "Lemma 13",
            "deterministic expert, cells 4 σ wide: TV of ids, 1 - erf(√2)",
            0.0455,
            1 - float(learned.max()),
            absolute=1e-4,
        ),
        claims.near(
            "Lemma 13", f"the same as cells shrink to a density ({counts[-1]} bins)", 1, apart[-1], absolute=0.002
        ),
        claims.near(
            "Lemma 13",
            "exponent of 1 - TV in the width",
            1,
            claims.slope(np.divide(1, counts[-4:]), 1 - np.array(apart[-4:])),
            absolute=0.01,
        ),
    ], {"bins": counts, "density": apart}


def bins(reach: float, count: int) -> BinningTokenizer:
    """Return uniform bins of [-reach, reach]."""
    tokenizer = BinningTokenizer(range=Range([-reach], [reach]), bins=count, horizon=1)
    return tokenizer.fit(np.linspace(-reach, reach, 64)[:, None, None])


def drive(
    system: System, policy: Floats, z: Floats, tokenizer: BinningTokenizer | None = None
) -> tuple[Floats, Floats]:
    """Return states and wanted actions `(h, n)` under u = K x + c + σ z; a tokenizer decodes what is executed."""
    x = np.zeros(z.shape[1])
    states, actions = np.empty((2, *z.shape))
    for h in range(len(z)):
        states[h], actions[h] = x, policy[0] * x + policy[1] + SPREAD * z[h]
        executed = actions[h] if tokenizer is None else quantize(tokenizer, actions[h])
        x = system.a * x + system.b * executed
    return states, actions


def quantize(tokenizer: BinningTokenizer, u: Floats) -> Floats:
    """Return decoded scalar actions."""
    return np.asarray(tokenizer.quantize(u.reshape(-1, 1, 1)), np.float64).reshape(u.shape)


def reward(x: Floats) -> float:
    """Return the mean over chains of the sum over steps of 1 / (1 + x²), of slope below 1."""
    return float((1 / (1 + x**2)).sum(0).mean())


def by_regression(x: Floats, u: Floats) -> Floats:
    """Return the slope and offset of least squares."""
    return np.asarray(np.polyfit(x.ravel(), u.ravel(), 1))


def by_log_loss(x: Floats, low: Floats, high: Floats, first: Floats) -> Floats:
    """Return the slope and offset under which the ids, of actions between `low` and `high`, are most likely."""

    def loss(theta: Floats) -> tuple[float, Floats]:
        lower, upper = ((end - theta[0] * x - theta[1]) / SPREAD for end in (low, high))
        mass = np.maximum(ndtr(upper) - ndtr(lower), 1e-300)
        pull = (np.exp(-(upper**2) / 2) - np.exp(-(lower**2) / 2)) / (math.sqrt(2 * math.pi) * SPREAD * mass)
        return -float(np.log(mass).mean()), np.array([(pull * x).mean(), pull.mean()])

    return np.asarray(minimize(loss, first, jac=True, method="BFGS", options={"gtol": 1e-9}).x)


def learn(system: System, n: int, seed: int) -> tuple[Floats, Floats]:
    """Return what regression learns from n demonstrations, and what log-loss learns from their ids."""
    z = np.random.default_rng([n, seed]).standard_normal((EPISODE, n))
    x, u = drive(system, np.array([system.slope, OFFSET]), z)
    tokenizer = bins(REACH, round(2 * REACH / WIDTH))
    middle = quantize(tokenizer, u)
    return by_regression(x, u), by_log_loss(x, middle - WIDTH / 2, middle + WIDTH / 2, by_regression(x, middle))


def of_learning(
    sizes: list[int], repeats: int, slack: float
) -> tuple[list[claims.Row], dict[str, dict[str, list[float]]]]:
    """Return both ways of cloning on the same data: error on the expert's states, and regret when deployed."""
    rows: list[claims.Row] = []
    series = {}
    z = np.random.default_rng(0).standard_normal((EPISODE, ROBOTS))
    tokenizer = bins(REACH, round(2 * REACH / WIDTH))
    for name, system in SYSTEMS.items():
        right = np.array([system.slope, OFFSET])
        x, u = drive(system, right, z)
        best, rounding = reward(x), float(np.abs(u - quantize(tokenizer, u)).mean())
        inputs = {"policy_slope": STEEPEST / SPREAD, "gain": scalar_gain(system.a, system.b)}
        found: dict[str, list[float]] = {
            key: [] for key in ("regression error", "tokens error", "regression regret", "tokens regret")
        }
        ratios = []
        for n in sizes:
            learned = [learn(system, n, seed) for seed in range(repeats)]
            for way, (policies, executed) in {"regression": (0, None), "tokens": (1, tokenizer)}.items():
                thetas = [pair[policies] for pair in learned]
                errors = [float(np.abs((t[0] - right[0]) * x + t[1] - right[1]).mean()) for t in thetas]
                regrets = [abs(best - reward(drive(system, t, z, executed)[0])) for t in thetas]
                found[f"{way} error"].append(float(np.mean(errors)))
                found[f"{way} regret"].append(float(np.mean(regrets)))
                for error, regret in zip(errors, regrets, strict=True):
                    # over an episode ids differ at most as often as the Gaussians of its steps together
                    tv = 0.0 if executed is None else min(1.0, EPISODE * STEEPEST * error / SPREAD)
                    mean_error = error if executed is None else rounding
                    bound = bound_stochastic([EPISODE], total_variation=tv, mean_error=mean_error, **inputs)
                    ratios.append(regret / float(bound.total[0]))
        alone = abs(best - reward(drive(system, right, z, tokenizer)[0]))
        bound = bound_stochastic([EPISODE], total_variation=0, mean_error=rounding, **inputs)
        for way in ("regression", "tokens"):
            rows.append(
                claims.near(
                    "Prop 4" if way == "regression" else "Thm 2",
                    f"{name} loop, {way}: exponent of E|u* - û| in n",
                    -0.5,
                    claims.slope(sizes, found[f"{way} error"]),
                    absolute=slack,
                )
            )
        rows += [
            claims.near(
                "Thm 2",
                f"{name} loop: error of log-loss on ids over that of regression, n = {sizes[-1]}",
                math.sqrt(1 + WIDTH**2 / 12 / SPREAD**2),
                found["tokens error"][-1] / found["regression error"][-1],
                absolute=0.1,
            ),
            claims.at_most(
                "Prop 4, Thm 2", f"{name} loop: largest regret over the bound of the calculator, any n", 1, max(ratios)
            ),
            claims.at_most(
                "Thm 2",
                f"{name} loop: regret of the right policy on ids, over the bound",
                1,
                alone / float(bound.total[0]),
            ),
            claims.at_most(
                "Thm 2",
                f"{name} loop: what ids cost beyond regression, n = {sizes[-1]}, per step",
                rounding,
                (found["tokens regret"][-1] - found["regression regret"][-1]) / EPISODE,
                limit_is="E|u - q(u)|",
            ),
        ]
        series[name] = found
    return rows, series


def run(smoke: bool = False) -> claims.Found:
    rows, curves = of_regression()
    atoms, shrinking = of_atoms()
    sizes = [16, 256] if smoke else SIZES
    learned, series = of_learning(sizes, 4 if smoke else REPEATS, 0.3 if smoke else 0.08)
    return claims.results(
        [*rows, *atoms, *learned], horizons=HORIZONS, curves=curves, atoms=shrinking, n=sizes, learned=series
    )


def plot(found: claims.Found) -> object:
    made, (left, right) = claims.figure(2)
    red, blue, green, *_ = claims.COLOURS
    curves = found["curves"]
    for key, text, colour in (
        ("unstable bare", "unstable,\ndeterministic", red),
        ("unstable noisy", "unstable,\nGaussian", blue),
        ("stable bare", "stable,\ndeterministic", green),
    ):
        left.loglog(found["horizons"], curves[key], "o-", color=colour)
        claims.label_at_end(left, found["horizons"], curves[key], text, colour)
    left.set(xlabel="horizon H", ylabel="reward lost, δ = .001", xlim=(8, 2500))
    for way, colour in (("regression", blue), ("tokens", red)):
        for name, mark in (("stable", "o-"), ("unstable", "s--")):
            right.loglog(found["n"], found["learned"][name][f"{way} error"], mark, color=colour, label=f"{way}, {name}")
    right.set(xlabel="demonstrations n", ylabel="E|u* - û| on the expert's states")
    right.legend(loc="lower left", fontsize=8)
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
