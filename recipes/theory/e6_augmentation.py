"""E6: the remedy: predict tokens in a model of the system and execute them without looking (Algorithm 1, Theorem 7).

    python recipes/theory/e6_augmentation.py [--smoke] [--json FILE] [--plot FILE]

With an exact model the trap loses an order of ε. What has to be learned, policy and model together, is learned at the
rate sqrt((log |Π| + log |M|) / n) in finite classes, by maximum likelihood. A model that stays wrong leaves a floor
that neither n nor ε lowers. The bounds of the calculator grow with the horizon as the theorems say.
"""

from __future__ import annotations

import math

import claims
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from action_tokenizers.diagnostics.coupling import exact_tv
from action_tokenizers.diagnostics.dynamics import scalar_gain
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.theorems import (
    bound_augmented,
    bound_deterministic,
    statistical_rate,
)

POWERS = range(5, 13)  # ε = 2**-power
CHAINS = 512
SIZES = [4**k for k in range(3, 9)]  # demonstrations
POLICY, MODEL = 0.37, 0.62  # chance of token 1, and of next state 1
MEMBERS = 4001  # of either class: all chances i / 4000
BITS = [1, 2, 4, 8, 16, 32]  # log2 |Π| = log2 |M|
BITS_SAMPLES = 2**16
SHIFT = 0.25  # how far the hard class is from a fair coin, in standard deviations of what a coin shows
BIAS = 0.1
HORIZON = 100
HORIZONS = 2 ** np.arange(6, 9)
GIVEN = {"n": 500, "policies": 256, "models": 64, "error": 0.01, "k": 4.0}

Floats = NDArray[np.float64]


def learned_error(n: int, chance: float, members: Floats) -> float:
    """Return E TV of the most likely of some coins, `members (m,)` ascending, from n throws of one: an exact sum."""
    ones = np.arange(n + 1)
    # the likelihood of ones / n rises and falls once: a neighbour of the peak is the best
    above = np.searchsorted(members, ones / n).clip(1, len(members) - 1)
    pair = np.stack([members[above - 1], members[above]])
    with np.errstate(divide="ignore", invalid="ignore"):
        likely = np.nan_to_num(ones * np.log(pair), nan=0.0) + np.nan_to_num((n - ones) * np.log1p(-pair), nan=0.0)
    chosen = pair[likely.argmax(0), np.arange(n + 1)]
    laws = np.stack([1 - chosen, chosen], 1)
    return float(binom.pmf(ones, n, chance) @ exact_tv(laws, np.array([1 - chance, chance])))


def hard_error(bits: int, n: int) -> float:
    """Return E TV of the most likely of 2**bits laws: in each of as many states a coin leans one of two ways.

    Every state is seen n / bits times, so lightly leaning that it is often misjudged: a hard class.
    """
    seen = n // bits
    lean = SHIFT / math.sqrt(seen)
    ones = np.arange(seen + 1)
    mass = binom.pmf(ones, seen, 0.5 + lean)
    wrong = mass[2 * ones < seen].sum() + mass[2 * ones == seen].sum() / 2
    return float(2 * lean * wrong)


def of_the_trap(powers: list[int], chains: int) -> tuple[list[claims.Row], dict[str, list[float]]]:
    """Return the regret of Algorithm 1 with an exact model, beside the bound and ordinary execution."""
    epsilon, regret, ratio = [], [], []
    for power in powers:
        trap = Trap(2.0**-power)
        tokenizer = trap.tokenizer()
        error = float(trap.in_distribution(tokenizer, chains).mean())
        regret.append(float(trap.rollout(tokenizer, chains, open_loop=True).regret.mean()))
        bound = bound_augmented([trap.horizon], total_variation=0, mean_error=error, gain=scalar_gain(trap.a, trap.b))
        ratio.append(trap.horizon * regret[-1] / float(bound.total[0]))
        epsilon.append(trap.epsilon)
    span = f"ε = 2^-{powers[0]} … 2^-{powers[-1]}"
    rows = [
        claims.near(
            "Thm 7",
            f"trap, {span}: exponent of the regret of Algorithm 1 in ε",
            0.974,
            claims.slope(epsilon, regret),
            absolute=0.03,
        ),
        claims.at_most("Thm 7", f"trap, {span}: largest regret over the bound H ε (1 + B / (1 - A))", 1, max(ratio)),
    ]
    return rows, {"epsilon": epsilon, "augmented": regret}


def of_classes(sizes: list[int]) -> tuple[list[claims.Row], dict[str, list[float]]]:
    """Return how fast policy and model are learned, and what a biased model leaves."""
    members = np.linspace(0, 1, MEMBERS)
    biased = members[members >= MODEL + BIAS - 1e-9]
    policy = [learned_error(n, POLICY, members) for n in sizes]
    error = [p + learned_error(n, MODEL, members) for p, n in zip(policy, sizes, strict=True)]
    wrong = [p + learned_error(n, MODEL, biased) for p, n in zip(policy, sizes, strict=True)]
    size = 2 * math.log(MEMBERS)
    square = [(2 * hard_error(bits, BITS_SAMPLES)) ** 2 for bits in BITS]
    logs = [2 * bits * math.log(2) for bits in BITS]
    over = [e / statistical_rate(n, size) for e, n in zip(error, sizes, strict=True)]
    over += [math.sqrt(s) / statistical_rate(BITS_SAMPLES, log) for s, log in zip(square, logs, strict=True)]
    rows = [
        claims.near(
            "Thm 7",
            f"|Π| = |M| = {MEMBERS}: exponent of the error of policy and model in n",
            -0.49983,
            claims.slope(sizes, error),
            absolute=0.02,
        ),
        claims.near(
            "Thm 7",
            "hardest classes: R² of the squared error against log |Π||M|",
            1,
            claims.explained(logs, square),
            absolute=0.002,
        ),
        claims.near(
            "Thm 7",
            "hardest classes: exponent of the error in log |Π||M|",
            0.5,
            claims.slope(logs, np.sqrt(square)),
            absolute=0.02,
        ),
        claims.at_most("Thm 7", "largest error over the bound of the calculator", 1, max(over)),
        claims.near(
            "Thm 7",
            f"model wrong by {BIAS}: H · error at n = {sizes[-1]}, H = {HORIZON} (floor .1 H)",
            BIAS * HORIZON,
            HORIZON * wrong[-1],
            percent=5,
            note="what the policy still gets wrong comes on top",
        ),
        claims.at_least("Thm 7", f"model wrong by {BIAS}: smallest H · error over .1 H, any n", 1, min(wrong) / BIAS),
    ]
    return rows, {"n": [float(n) for n in sizes], "error": error, "biased": wrong, "logs": logs, "squares": square}


def of_formulas() -> list[claims.Row]:
    """Return how the calculator's bounds grow with the horizon."""
    policies, models = math.log(GIVEN["policies"]), math.log(GIVEN["models"])
    n = int(GIVEN["n"])
    sure = statistical_rate(n, policies, is_deterministic=True)
    gain = scalar_gain(0.2, 0.3)
    smooth, rough = (
        bound_deterministic(
            HORIZONS, total_variation=sure, worst_error=GIVEN["error"], lipschitz=lipschitz, gain=gain, k=GIVEN["k"]
        )
        for lipschitz in (0.5, 5.0)  # L g (k + 1) below and above k - 2
    )
    both = bound_augmented(
        HORIZONS, total_variation=statistical_rate(n, policies + models), mean_error=GIVEN["error"], gain=gain
    )
    span = f"H = {HORIZONS[0]} … {HORIZONS[-1]}"
    return [
        claims.near("Thm 7", f"bound: exponent in H, {span}", 1.0, claims.slope(HORIZONS, both.total), absolute=0.005),
        claims.near(
            "Thm 3", f"bound, κ = 0: exponent in H, {span}", 1.0, claims.slope(HORIZONS, smooth.total), absolute=0.005
        ),
        claims.near(
            "Thm 3", f"bound, κ = 1: exponent in H, {span}", 1.996, claims.slope(HORIZONS, rough.total), absolute=0.005
        ),
    ]


def run(smoke: bool = False) -> claims.Found:
    trapped, series = of_the_trap([5, 6, 7] if smoke else list(POWERS), 128 if smoke else CHAINS)
    learned, classes = of_classes(SIZES[::2] if smoke else SIZES)
    return claims.results([*trapped, *learned, *of_formulas()], trap=series, classes=classes)


def plot(found: claims.Found) -> object:
    made, (left, right) = claims.figure(2)
    classes = found["classes"]
    for name, text, colour in (
        ("error", "class holds\nthe truth", claims.COLOURS[1]),
        ("biased", "model wrong\nby .1", claims.COLOURS[0]),
    ):
        left.loglog(classes["n"], classes[name], "o-", color=colour)
        claims.label_at_end(left, classes["n"], classes[name], text, colour)
    left.set(
        xlabel="demonstrations n",
        ylabel="error of policy and model (TV)",
        xlim=(classes["n"][0] / 2, classes["n"][-1] * 20),
    )
    right.plot(classes["logs"], classes["squares"], "o-", color=claims.COLOURS[1])
    right.set(xlabel="log |Π||M|", ylabel="squared error, hardest classes")
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
