"""E1: what demonstrations teach, and what is left when there are enough: statistics of Theorem 2 and 3.

    python recipes/theory/e1_rates.py [--smoke] [--json FILE] [--plot FILE]

A stochastic expert is learned at the rate 1 / sqrt(n), a deterministic one at 1 / n, and both within the paper's
bounds, which grow with log |Π|. No number of demonstrations removes what the quantizer lost. All sums are exact: over
the binomial law of the counts, with no random numbers.
"""

from __future__ import annotations

import math

import claims
import numpy as np
from scipy.stats import binom

from action_tokenizers.diagnostics.coupling import exact_tv
from action_tokenizers.diagnostics.theorems import statistical_rate
from action_tokenizers.tokenizers.presets import rt1

CHANCE = 0.37  # of the token 1, in the only state
SIZES = [4**k for k in range(3, 9)]
CLASSES = [2**k for k in range(2, 13)]  # |Π|
CLASS_SAMPLES = 4096
WIDTHS = [2.0**-k for k in range(2, 9)]
HORIZON = 100
UNIFORM = (np.arange(65536) + 0.5) / 65536  # actions of the expert


def stochastic(n: int) -> float:
    """Return E TV of the maximum-likelihood law of one coin from n throws."""
    ones = np.arange(n + 1)
    learned = np.stack([1 - ones / n, ones / n], 1)
    return float(binom.pmf(ones, n, CHANCE) @ exact_tv(learned, np.array([1 - CHANCE, CHANCE])))


def deterministic(n: int) -> float:
    """Return E TV where the state that decides has mass 1 / n: it is missed as often as it was never seen."""
    return float(1 / n * binom.pmf(0, n, 1 / n))


def worst_of_class(size: int, n: int) -> float:
    """Return the mean square of the largest of `size` independent deviations of n throws of a fair coin."""
    ones = np.arange(n + 1)
    apart = np.abs(ones / n - 0.5)
    order = np.argsort(apart, kind="stable")
    below = binom.pmf(ones, n, 0.5)[order].cumsum().clip(0, 1) ** size
    return float(np.diff(below, prepend=0) @ apart[order] ** 2)


def left_end_regret(width: float) -> float:
    """Return what bins that decode to their lower end lose per step where the reward is the action."""
    tokenizer = rt1(1, low=0.0, high=1.0, bins=round(1 / width) + 1)
    return float((UNIFORM - tokenizer.quantize(UNIFORM[:, None, None])[:, 0, 0]).mean())


def run(smoke: bool = False) -> claims.Found:
    sizes = SIZES[:4] if smoke else SIZES
    noisy, sure = [stochastic(n) for n in sizes], [deterministic(n) for n in sizes]
    bounds = {
        name: [statistical_rate(n, math.log(2), is_deterministic=name == "deterministic") for n in sizes]
        for name in ("stochastic", "deterministic")
    }
    squares = [worst_of_class(size, CLASS_SAMPLES) for size in CLASSES]
    regrets = [HORIZON * left_end_regret(width) for width in WIDTHS]
    rows = [
        claims.near(
            "Thm 2", "exponent of E TV in n, a stochastic token", -0.5003, claims.slope(sizes, noisy), absolute=0.02
        ),
        claims.near(
            "Thm 3", "exponent of E TV in n, a deterministic token", -0.999, claims.slope(sizes, sure), absolute=0.02
        ),
        claims.near("Thm 3", f"n E TV at n = {sizes[-1]}", 0.3679, sizes[-1] * sure[-1], absolute=0.002),
        claims.at_most(
            "Thm 2, 3",
            "largest E TV over the bound of the calculator, |Π| = 2",
            1,
            max(np.max(np.divide(noisy, bounds["stochastic"])), np.max(np.divide(sure, bounds["deterministic"]))),
        ),
        claims.near(
            "Thm 2",
            "R² of squared deviation against log |Π|, |Π| = 4 … 4096",
            0.9986,
            claims.explained(np.log(CLASSES), squares),
            absolute=0.0015,
            note="the reference is of another class",
        ),
        claims.near(
            "Thm 2",
            f"regret of bins that decode to their lower end (RT-1's), over H width / 2, H = {HORIZON}",
            1,
            float(np.mean(np.divide(regrets, np.multiply(WIDTHS, HORIZON / 2)))),
            absolute=0.001,
        ),
        claims.near("Thm 2", "exponent of that regret in the width", 1, claims.slope(WIDTHS, regrets), absolute=0.001),
    ]
    return claims.results(
        rows, n=sizes, stochastic=noisy, deterministic=sure, bounds=bounds, classes=CLASSES, squares=squares
    )


def plot(found: claims.Found) -> object:
    made, (left, right) = claims.figure(2)
    for name, colour in zip(("stochastic", "deterministic"), claims.COLOURS, strict=False):
        left.loglog(found["n"], found[name], "o-", color=colour)
        left.loglog(found["n"], found["bounds"][name], "--", color=colour, linewidth=1)
        claims.label_at_end(left, found["n"], found[name], name, colour)
    left.annotate(
        "bounds", (found["n"][1], found["bounds"]["stochastic"][1]), xytext=(8, 6), textcoords="offset points"
    )
    left.set(xlabel="demonstrations n", ylabel="E TV", xlim=(found["n"][0] / 2, found["n"][-1] * 20))
    right.plot(np.log(found["classes"]), found["squares"], "o-", color=claims.COLOURS[1])
    right.set(xlabel="log |Π|", ylabel="mean square of the largest deviation")
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
